"""One tensor of a Hugging Face class: which of our tensors it holds, and how.

A Hugging Face tensor is one of ours or several of ours stacked along the first dimension (GPT-2 and Phi-3 keep queries,
keys and values in one), head by head in GPT-NeoX, possibly transposed (GPT-2 stores (in, out)), possibly without a
constant (Gemma stores the weight of a norm less one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fledgling.config import UserError


@dataclass(frozen=True)
class TensorMapping:
    """One Hugging Face tensor: the names of our tensors, stacked along dimension 0, then possibly transposed."""

    hf_name: str
    names: tuple[str, ...]
    transposed: bool = False
    heads: int = 0  # above 0: the parts are stacked head by head
    offset: float = 0.0  # our value less the stored one


def join_rows(mapping: TensorMapping, parts: Sequence[Tensor]) -> Tensor:
    """Returns the rows (rows, ...) of several of our tensors in the order of the Hugging Face tensor."""
    if len(parts) == 1:
        return parts[0]
    if not mapping.heads:
        return torch.cat(list(parts))
    by_head = [part.reshape(mapping.heads, -1, *part.shape[1:]) for part in parts]
    return torch.cat(by_head, dim=1).reshape(-1, *parts[0].shape[1:])


def split_hf_rows(mapping: TensorMapping, tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """Returns our tensors (rows, ...) from the rows of a Hugging Face tensor; inverts `join_rows`.

    Args:
        mapping: how our tensors are joined in theirs.
        tensor: (sum of rows, ...), of Hugging Face.
        rows: of each of our tensors.
    """
    if len(rows) == 1:
        return [tensor]
    if not mapping.heads:
        return list(tensor.split(list(rows)))
    by_head = tensor.reshape(mapping.heads, -1, *tensor.shape[1:])
    parts = by_head.split([count // mapping.heads for count in rows], dim=1)
    return [part.reshape(-1, *tensor.shape[1:]) for part in parts]


def to_hf_tensor(mapping: TensorMapping, state: Mapping[str, Tensor]) -> Tensor:
    """Returns the Hugging Face tensor from our state dictionary."""
    tensor = join_rows(mapping, [state[name] for name in mapping.names])
    tensor = tensor - mapping.offset if mapping.offset else tensor
    return tensor.T.contiguous() if mapping.transposed else tensor


def from_hf_tensor(mapping: TensorMapping, tensor: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Returns our tensors by name from a Hugging Face tensor; the inverse of `to_hf_tensor`.

    Args:
        mapping: how our tensors are joined in theirs.
        tensor: (R, ...), R the sum of our rows.
        shapes: of our tensors by name.

    Raises UserError naming the tensor if its shape is not the expected one.
    """
    rows = [shapes[name][0] for name in mapping.names]
    expected = [sum(rows), *shapes[mapping.names[0]][1:]]
    if mapping.transposed:
        expected.reverse()
    if list(tensor.shape) != expected:
        raise UserError(f"tensor {mapping.hf_name} has the shape {list(tensor.shape)}; config.json implies {expected}")
    untransposed = tensor.T if mapping.transposed else tensor
    untransposed = untransposed + mapping.offset if mapping.offset else untransposed
    pieces = split_hf_rows(mapping, untransposed, rows)
    return {name: piece.contiguous() for name, piece in zip(mapping.names, pieces, strict=True)}
