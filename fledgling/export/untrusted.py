"""Reads JSON and safetensors files from any source: bounded, and with one line for everything that is wrong in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fledgling.config import UserError

MAX_JSON_BYTES = 64 * 2**20  # bytes of config.json, of an index or of a header
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises UserError if there is none, or a key appears twice."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; expected a directory that transformers can load")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes(), object_pairs_hook=_reject_duplicate_keys)
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path} is not readable JSON: {' '.join(str(problem).split())[:100]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Opens a safetensors file; every error in it becomes one line that names the file (and the tensor, if known)."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file: expected weights in safetensors' format")  # a pipe would never end
    try:
        with safe_open(path, "pt") as file:
            _read_header(path)
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as problem:
        reason = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise UserError(f"{path}: weights cannot be read: {_describe_bad_tensor(path) or reason}") from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs of a JSON object as a dictionary; raises ValueError for a duplicate key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]} appears twice")
        found[key] = value
    return found


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and how many bytes of data follow."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = (
            json.loads(file.read(length), object_pairs_hook=_reject_duplicate_keys) if length <= MAX_JSON_BYTES else {}
        )
    return header, path.stat().st_size - 8 - length


def _describe_bad_tensor(path: Path) -> str:
    """Returns a description of the first tensor with an impossible header entry; empty if there is none."""
    try:
        header, data = _read_header(path)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            count, (start, end) = prod(entry["shape"]), entry["data_offsets"]
            size = _BYTES.get(entry["dtype"])
            if size is None or min(entry["shape"], default=0) < 0 or not 0 <= start <= end <= data:
                return f"tensor {name[:80]} is declared as {str(entry)[:120]}, in {data} bytes of data"
            if count * size != end - start:
                return f"tensor {name[:80]} has {end - start} bytes, its shape {entry['shape']} needs {count * size}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    return ""


def require_floats(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Returns a tensor of any shape in float32. Raises UserError for one without numbers, or with one that is none."""
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{path}: tensor {name[:120]} has dtype {kind}; expected float32, bfloat16 or float16")
    return require_finite(path, name, tensor.to(torch.float32))


def require_finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Returns a tensor of any shape. Raises UserError for one that is empty, or has values that are NaN or infinite."""
    if not tensor.numel():
        raise UserError(f"{path}: tensor {name[:120]} has the shape {list(tensor.shape)}: it is empty")
    if not all(math.isfinite(float(value)) for value in (tensor.min(), tensor.max())):
        count = int((~tensor.isfinite()).sum())
        raise UserError(
            f"{path}: tensor {name[:120]} has {count:,} of {tensor.numel():,} values that are NaN or infinite; "
            "the file is corrupt, or was converted to a type that is too small for it"
        )
    return tensor


def check_value(key: str, value: Any, kind: type[int] | type[float]) -> Any:
    """Returns a value of config.json as `kind`; raises UserError if it has another type or is out of range."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or not (kind is bool or 0 < value < float("inf")):
        expected = {int: "a whole number above 0", float: "a number above 0", bool: "true or false"}[kind]
        raise UserError(f"config.json: {key} is {str(value)[:60]!r}; expected {expected}")
    return value
