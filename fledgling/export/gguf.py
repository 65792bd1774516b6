"""Writes a model as one GGUF file, with its tokenizer, for llama.cpp and programs based on it.

The file is the same model under other names (gguf_mapping.py). Types of matrices (gguf_types.py):

    f32  exact    f16, bf16  half precision    q8_0  blocks of 32 in 8 bits    q4_0  in 4 bits
    q6_k  q5_k_m  q4_k_m  q3_k_m  q2_k  iq4_xs    by ggml itself, also with the importance of inputs

`gguf` is the format's own package (an extra: pip install "fledgling[gguf]").
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.ggml_quantize import load_ggml
from fledgling.export.gguf_architectures import choose_architecture
from fledgling.export.gguf_mapping import from_gguf_tensor, list_divisors, list_tensors, to_gguf_tensor
from fledgling.export.gguf_types import FILE_TYPES, choose_type, needs_ggml, store
from fledgling.export.gguf_values import write_values
from fledgling.export.gguf_vocabulary import check_tokenizer, safe_model_name, write_vocabulary
from fledgling.model.transformer import Transformer
from fledgling.record import make_write_error
from fledgling.record.durable import make_directory, replace_file
from fledgling.text.tokenizer import Tokenizer


def import_gguf() -> Any:
    """Returns the `gguf` package; raises UserError if it is not installed."""
    if find_spec("gguf") is None:
        raise UserError('the gguf package is not installed; pip install "fledgling[gguf]"')
    import gguf

    return gguf


def write_gguf(
    path: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    kind: str,
    name: str,
    importance: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes the file in one rename and returns its path.

    Args:
        path: the file to write.
        config: the model's configuration.
        state: our state dictionary.
        tokenizer: None for a model of token ids.
        kind: one of FILE_TYPES.
        name: the model's name in the file.
        importance: `measure_importance`; None weighs all inputs alike.

    Raises UserError for an unsupported model, an unknown type, a package that is missing and a write error.
    """
    architecture = choose_architecture(config)
    if kind not in FILE_TYPES:
        raise UserError(f"type {kind!r} is unknown; expected one of {', '.join(FILE_TYPES)}")
    if needs_ggml(kind, importance is not None):
        load_ggml()
    if tokenizer:
        check_tokenizer(tokenizer)
    gguf = import_gguf()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        make_directory(path.parent)
        writer = gguf.GGUFWriter(temporary, architecture.name)
        writer.add_name(safe_model_name(name, tokenizer))
        writer.add_file_type(FILE_TYPES[kind].number)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        write_values(writer, config, architecture, gguf)
        if importance is not None:
            writer.add_uint32("quantize.imatrix.entries_count", len(importance))
        if tokenizer:
            write_vocabulary(writer, config, tokenizer, gguf)
        else:
            writer.add_tokenizer_model("no_vocab")
        for entry in list_tensors(config, architecture):
            tensor = to_gguf_tensor(entry, state, config, architecture)
            storage = choose_type(kind, entry.name, tensor.shape, config.depth)
            weights = (importance or {}).get(entry.sources[0]) if entry.sources else None
            stored = store(tensor.contiguous().numpy(), storage, weights, gguf)
            writer.add_tensor(entry.name, stored, raw_dtype=gguf.GGMLQuantizationType[storage])
        if (divisors := list_divisors(config)) is not None:
            writer.add_tensor("rope_freqs.weight", divisors.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        replace_file(temporary, path)
    except OSError as problem:
        raise make_write_error(path, problem) from None
    finally:
        with suppress(OSError):  # no directory, so no file
            temporary.unlink(missing_ok=True)
    return path


def read_gguf_state(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Returns our state dictionary from a file that `write_gguf` wrote, dequantized to float32."""
    gguf = import_gguf()
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Transformer(config).state_dict().items()}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    architecture = choose_architecture(config)
    state: dict[str, Tensor] = {}
    for entry in list_tensors(config, architecture):
        tensor = stored[entry.name]
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        state |= from_gguf_tensor(entry, values, shapes, config, architecture)
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state
