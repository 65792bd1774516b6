"""Read a Hugging Face directory that somebody else may have written.

The one idea: everything is checked against what config.json says before a model is made of it: which files, which
tensors, which shapes. Weights come from safetensors alone, never from a pickle; what is missing, left over, misshapen
or of another kind is named in one line, and nothing is half loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.hf_mapping import CLASSES, from_hf_config, from_hf_tensor, tensor_mappings
from fledgling.model.transformer import Transformer
from fledgling.text.gpt2 import load_gpt2_tokenizer
from fledgling.text.tokenizer import Tokenizer

MAX_JSON_BYTES = 64 * 2**20  # bytes of config.json or of an index
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
# Masks and tables that older writers stored: no weights.
_NO_WEIGHTS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class HfModel:
    """What a directory holds: configuration, our state dictionary in float32, and the tokenizer."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer


def read_hf(directory: Path) -> HfModel:
    """Read `directory`. Raises UserError naming the file, key or tensor that does not hold."""
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {what}; expected a directory with config.json (hf download NAME --local-dir DIR)")
    config = from_hf_config(_json(directory / "config.json"))
    state = _state(config, _where(directory))
    tokenizer = _tokenizer(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} entries, config.json says {config.vocab_size}"
        )
    return HfModel(config, state, tokenizer)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; expected a directory that transformers can load")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path} is not readable JSON: {' '.join(str(problem).split())[:100]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; whatever is wrong with it becomes one line that names the file (and the tensor, if known)."""
    try:
        with safe_open(path, "pt") as file:
            _header(path)
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as problem:
        reason = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise UserError(f"{path}: weights cannot be read: {_culprit(path) or reason}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's pairs as a dictionary; a key that stands twice means two things, and so nothing."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]} stands there twice")
        found[key] = value
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and how many bytes of data follow."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length), object_pairs_hook=_once) if length <= MAX_JSON_BYTES else {}
    return header, path.stat().st_size - 8 - length


def _culprit(path: Path) -> str:
    """The first tensor whose entry in a broken header cannot be true, in words; empty where none is to be found."""
    try:
        header, data = _header(path)
        for name, said in header.items():
            if name == "__metadata__":
                continue
            values, (start, end) = prod(said["shape"]), said["data_offsets"]
            size = _BYTES.get(said["dtype"])
            if size is None or min(said["shape"], default=0) < 0 or not 0 <= start <= end <= data:
                return f"tensor {name[:80]} is said to be {str(said)[:120]}, in {data} bytes of data"
            if values * size != end - start:
                return f"tensor {name[:80]} has {end - start} bytes, its shape {said['shape']} means {values * size}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    return ""


def _where(directory: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index or from the one file. Names in an index lead nowhere but here."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    if not index.is_file():
        pickles = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise UserError(f"{directory} has only {pickles[0]}, a pickle, which is never read: convert to safetensors")
        raise UserError(f"{directory} has no model.safetensors and no model.safetensors.index.json")
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index}: weight_map is missing or no table of names")
    found: dict[str, Path] = {}
    for name, file in listed.items():
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise UserError(f"{index}: {name} is said to be in {str(file)[:80]!r}; expected the plain name of a file")
        found[name] = directory / file
    for path in sorted(set(found.values())):
        if not path.is_file():
            raise UserError(f"{index} names {path.name}, which is not there")
        with _opened(path) as file:
            held = set(file.keys())
        absent = sorted(name for name, place in found.items() if place == path and name not in held)
        if absent:
            raise UserError(f"{index}: tensor {absent[0]} is not in {path.name}")
    return found


def _state(config: ModelConfig, where: dict[str, Path]) -> dict[str, Tensor]:
    """Our state dictionary, every tensor checked."""
    if config.depth > len(where):
        raise UserError(f"config.json says {config.depth} layers, and there are {len(where)} tensors in all")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    where = {name: path for name, path in where.items() if not _NO_WEIGHTS.fullmatch(name)}
    bare = config.family == "gpt2" and "wte.weight" in where  # as the published files are
    table = {
        entry.hf_name.removeprefix("transformer.") if bare else entry.hf_name: entry
        for entry in tensor_mappings(config)
    }
    tied_head = where.pop("lm_head.weight", None) if config.tie_embeddings else None
    for names, said in ((set(table) - set(where), "is missing"), (set(where) - set(table), "is left over")):
        if names:
            raise UserError(f"tensor {min(names)} {said}: these are not the weights of {CLASSES[config.family]}")
    state: dict[str, Tensor] = {}
    for path in sorted(set(where.values())):
        with _opened(path) as file:
            for name in sorted(name for name, place in where.items() if place == path):
                state |= from_hf_tensor(table[name], _floats(name, file.get_tensor(name)), shapes)
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    if tied_head is not None:
        with _opened(tied_head) as file:
            if not torch.equal(_floats("lm_head.weight", file.get_tensor("lm_head.weight")), state["head.weight"]):
                raise UserError("tensor lm_head.weight is not the embedding, and config.json says that they are tied")
    return state


def _floats(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"tensor {name} is of {kind}; expected float32, bfloat16 or float16")
    return tensor.to(torch.float32)


def _tokenizer(directory: Path) -> Tokenizer:
    """tokenizer.json, or the two files in which GPT-2's came."""
    if (directory / "tokenizer.json").is_file():
        return Tokenizer.load(directory / "tokenizer.json")
    found = load_gpt2_tokenizer(directory)
    if found is None:
        raise UserError(f"{directory} has no tokenizer.json (nor vocab.json and merges.txt)")
    return found
