"""In which type each tensor of a GGUF file is stored.

Vectors are in f32. Matrices have the type of the file, where their rows are whole blocks; a row that is no multiple of
256 has no K-quant and takes the type of blocks of 32 that llama.cpp takes too. In the mixtures (`_m`), values and the
feed-forward's last matrix have more bits in the first and last eighth of the layers and in every third between, as in
llama.cpp's mixtures of the same names; the head has more bits, unless the embedding is the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fledgling.export.ggml_quantize import ggml_quantize


@dataclass(frozen=True)
class FileType:
    """llama.cpp's number of a file's type, and the types of its matrices."""

    number: int
    matrices: str
    more: str = ""  # of the matrices that have more bits; "": as the others
    head: str = ""
    embedding: str = ""


FILE_TYPES = {
    "f32": FileType(0, "F32"),
    "f16": FileType(1, "F16"),
    "bf16": FileType(32, "BF16"),
    "q8_0": FileType(7, "Q8_0"),
    "q6_k": FileType(18, "Q6_K"),
    "q5_k_m": FileType(17, "Q5_K", more="Q6_K", head="Q6_K"),
    "q4_k_m": FileType(15, "Q4_K", more="Q6_K", head="Q6_K"),
    "q4_0": FileType(2, "Q4_0", head="Q8_0", embedding="Q8_0"),
    "iq4_xs": FileType(30, "IQ4_XS", more="Q5_K", head="Q6_K"),
    "q3_k_m": FileType(12, "Q3_K", more="Q5_K", head="Q6_K"),
    "q2_k": FileType(10, "Q2_K", more="Q4_K", head="Q6_K"),
}
ALWAYS_F32 = ("position_embd.weight",)  # as llama.cpp's own converter keeps it
MORE_BITS_SUFFIXES = ("attn_v.weight", "attn_qkv.weight", "ffn_down.weight")
BLOCK = {"F32": 1, "F16": 1, "BF16": 1, "Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q5_1": 32, "IQ4_NL": 32}  # others: 256
FALLBACK_TYPES = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
UNWEIGHTED = ("F32", "F16", "BF16", "Q8_0")  # no importance changes them
GGUF_PACKAGE_TYPES = (*UNWEIGHTED, "Q4_0", "Q5_0", "Q5_1")  # what `gguf` writes itself


def needs_ggml(kind: str, weighted: bool) -> bool:
    """Returns whether a file of this type needs llama.cpp's own quantization."""
    entry = FILE_TYPES[kind]
    return entry.matrices not in GGUF_PACKAGE_TYPES or (weighted and entry.matrices not in UNWEIGHTED)


def choose_type(kind: str, name: str, shape: Sequence[int], depth: int) -> str:
    """Returns the type of one tensor of a file, by ggml's name.

    Args:
        kind: one of FILE_TYPES.
        name: the tensor's, as in the file.
        shape: (out, in), or (n,).
        depth: layers of the model.
    """
    entry = FILE_TYPES[kind]
    if len(shape) == 1 or name in ALWAYS_F32:
        return "F32"
    chosen = entry.matrices
    if name == "output.weight":
        chosen = entry.head or chosen
    elif name == "token_embd.weight":
        chosen = entry.embedding or chosen
    elif entry.more and name.endswith(MORE_BITS_SUFFIXES):
        layer = int(name.split(".")[1])
        edge = depth // 8
        if layer < edge or layer >= 7 * depth // 8 or (layer - edge) % 3 == 2:
            chosen = entry.more
    if shape[1] % BLOCK.get(chosen, 256):
        chosen = FALLBACK_TYPES.get(chosen, chosen)
    return "F16" if shape[1] % BLOCK.get(chosen, 256) else chosen


def store(values: NDArray[np.float32], kind: str, importance: Tensor | None, gguf: Any) -> NDArray[Any]:
    """Returns a tensor in the type that `choose_type` named.

    importance: (in,), the mean square of each input; None weighs all alike.
    """
    number = gguf.GGMLQuantizationType[kind]
    if kind in GGUF_PACKAGE_TYPES and (importance is None or kind in UNWEIGHTED):
        return gguf.quantize(values, number)
    return ggml_quantize(values, int(number), None if importance is None else importance.numpy())
