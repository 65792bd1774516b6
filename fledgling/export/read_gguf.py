"""Reads a model from a GGUF file of any source, and trusts nothing in it.

The architectures are those that are written (gguf_architectures.py); the types are those that the `gguf` package
dequantizes: F32, F16, BF16, Q8_0, Q4_K and kin. A tensor's shape is compared with the model's before it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.gguf import import_gguf
from fledgling.export.gguf_architectures import BY_NAME, Architecture
from fledgling.export.gguf_header import check_header
from fledgling.export.gguf_mapping import from_gguf_tensor, list_tensors
from fledgling.export.gguf_tokenizer import read_gguf_tokenizer
from fledgling.export.gguf_values import find_scaling, read_gguf_config
from fledgling.export.read_hf import HfModel
from fledgling.export.untrusted import require_finite
from fledgling.model.transformer import Transformer

UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, MemoryError, UnicodeDecodeError)


def read_gguf(path: Path) -> HfModel:
    """Reads configuration, weights in float32 and tokenizer of a file. Raises UserError for what is not supported."""
    gguf = import_gguf()
    try:
        check_header(path)
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        stored = {tensor.name: tensor for tensor in reader.tensors}
    except UNREADABLE as problem:
        reason = " ".join(str(problem).split())[:120] or type(problem).__name__
        raise UserError(f"{path} is not a readable GGUF file: {reason}") from None
    config = read_gguf_config(values, set(stored))
    if "rope_freqs.weight" in stored:
        config = find_scaling(config, _dequantize(gguf, stored.pop("rope_freqs.weight")))
    state = _read_state(gguf, config, stored, BY_NAME[values["general.architecture"]], path)
    tokenizer = read_gguf_tokenizer(values)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path}: the tokenizer has {tokenizer.vocab_size} entries, the model {config.vocab_size}")
    return HfModel(config, state, tokenizer)


def _read_state(
    gguf: Any, config: ModelConfig, stored: dict[str, Any], architecture: Architecture, path: Path
) -> dict[str, Tensor]:
    """Returns our state dictionary. Raises UserError for a tensor that is missing, left over or misshapen."""
    if config.depth > len(stored):
        raise UserError(f"the GGUF file says {config.depth} layers, but there are only {len(stored)} tensors")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    entries = {entry.name: entry for entry in list_tensors(config, architecture)}
    for missing, problem in ((set(entries) - set(stored), "is missing"), (set(stored) - set(entries), "is left over")):
        if missing:
            raise UserError(f"tensor {min(missing)[:120]} {problem} in the GGUF file")
    state: dict[str, Tensor] = {}
    for name, entry in entries.items():
        tensor = stored[name]
        shape = tuple(int(size) for size in reversed(tensor.shape))
        sources = [shapes[source] for source in entry.sources]
        expected = (sum(source[0] for source in sources), *sources[0][1:])
        if shape != expected:
            raise UserError(f"tensor {name} has the shape {list(shape)}; the file's values imply {list(expected)}")
        values = require_finite(path, name, _dequantize(gguf, tensor).view(shape))
        state |= from_gguf_tensor(entry, values, shapes, config, architecture)
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state


def _dequantize(gguf: Any, tensor: Any) -> Tensor:
    """Returns a tensor in float32."""
    try:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    except (NotImplementedError, *UNREADABLE) as problem:
        reason = " ".join(str(problem).split())[:100]
        raise UserError(f"tensor {tensor.name[:120]} of type {tensor.tensor_type!r} cannot be read: {reason}") from None
    return torch.from_numpy(values)
