"""The part of a parameter and of its state that a rank owns: shapes, rows, and what it takes from the other ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fledgling.config import UserError
from fledgling.optim.partition import Bucket, Partition

HALF_DTYPES = (torch.bfloat16, torch.float16)
ROLES_READ_IN_HALF = ("embedding", "matrix", "head")  # whose values the model casts before it uses them


@dataclass(frozen=True)
class UpdateGroup:
    """What is updated together: matrices of one shape as one stack, or the tensors of one bucket one by one."""

    role: str
    buckets: tuple[Bucket, ...]
    owned_names: tuple[str, ...]  # the parameters of which this rank owns a part


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained; frozen ones have neither gradients nor optimizer state."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def state_shape(state_name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a parameter's state: its own, or one value for each row."""
    return shape[:1] if state_name == "exp_avg_sq_row" else shape


def select_rows(tensor: Tensor, rows: range) -> Tensor:
    """Returns rows of a tensor as a view; a 0-d tensor counts as one row.

    Args:
        tensor: (R, ...) or 0-d.
        rows: of R.
    """
    return tensor[rows.start : rows.stop] if tensor.ndim else tensor


def owned_shape(shape: tuple[int, ...], rows: range) -> tuple[int, ...]:
    """Returns the shape of what a rank owns of a parameter: some of its rows."""
    return (len(rows), *shape[1:]) if shape else ()


def require_state(
    saved: Mapping[str, Tensor], partition: Partition, expected: Iterable[tuple[str, tuple[str, ...]]]
) -> None:
    """Raises UserError unless `saved` has the whole state of each parameter: (its name, the names of its state)."""
    for name, state_names in expected:
        for state_name in state_names:
            require_shape(saved, f"{name}.{state_name}", state_shape(state_name, partition.parameters[name]))
    require_shape(saved, "count", ())


def require_shape(saved: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless `saved` has a tensor of that name and shape."""
    found = tuple(saved[name].shape) if name in saved else "nothing"
    if found != shape:
        raise UserError(f"optimizer state {name}: expected shape {shape}, found {found}")


def is_gathered_in_half(bucket: Bucket, partition: Partition, dtype: torch.dtype) -> bool:
    """Whether ranks send each other a bucket's updated parameters cast to `dtype`, in which the model reads them.

    The owner keeps them in fp32, and so does a checkpoint. The critic's, which it reads in fp32, are sent as they are.
    """
    name = bucket.names[0]
    read_in_half = partition.roles[name] in ROLES_READ_IN_HALF and not name.startswith("critic.")
    return dtype in HALF_DTYPES and read_in_half and not bucket.replicated and not partition.shards_parameters


def write_other_rows(parameter: Tensor, values: Tensor, own: range) -> None:
    """Writes values into all rows of a parameter but those that this rank owns.

    Args:
        parameter: (R, ...), is changed.
        values: (R, ...).
        own: the rows that this rank owns.
    """
    for rows in (range(own.start), range(own.stop, len(parameter))):
        parameter[rows.start : rows.stop].copy_(values[rows.start : rows.stop])


def pack_chunk(bucket: Bucket, tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Returns this rank's chunk of a bucket (unit x units_per_rank,), zero-padded.

    tensors: what this rank owns, by parameter name.
    """
    own = [tensors[name].reshape(-1) for name in bucket.names if name in tensors]
    if len(own) == 1 and len(own[0]) == bucket.chunk_values:
        return own[0]
    chunk = torch.zeros(bucket.chunk_values, device=device)
    if own:
        chunk[: len(own[0])] = own[0]
    return chunk


def split_bucket(bucket: Bucket, partition: Partition, flat: Tensor, state_name: str = "") -> list[tuple[str, Tensor]]:
    """Returns a bucket's parameters by name, or their state of one name, from its values, padded at the end.

    Args:
        bucket: names the parameters.
        partition: has their shapes.
        flat: (n,), all values one after another, n at least their number.
        state_name: "" for the parameters themselves.
    """
    shapes = [partition.parameters[name] for name in bucket.names]
    values = flat[: bucket.num_values].split([prod(shape) for shape in shapes])
    state_shapes = [state_shape(state_name, shape) for shape in shapes]
    return [(name, v[: prod(s)].view(s)) for name, v, s in zip(bucket.names, values, state_shapes, strict=True)]
