"""The part of a parameter and of its state that a rank owns: shapes, rows, and what it takes from the other ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fledgling.config import UserError
from fledgling.optim.partition import Bucket, Partition

HALF_DTYPES = (torch.bfloat16, torch.float16)
ROLES_READ_IN_HALF = ("embedding", "matrix", "head")  # whose values the model casts before it uses them


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained; frozen ones have neither gradients nor optimizer state."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def state_shape(state_name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a parameter's state: its own, or one value for each row."""
    return shape[:1] if state_name == "exp_avg_sq_row" else shape


def select_rows(tensor: Tensor, rows: range) -> Tensor:
    """Returns rows of a tensor as a view; a 0-d tensor counts as one row."""
    return tensor[rows.start : rows.stop] if tensor.ndim else tensor


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
    """Writes values into all rows of a parameter but those that this rank owns."""
    for rows in (range(own.start), range(own.stop, len(parameter))):
        parameter[rows.start : rows.stop].copy_(values[rows.start : rows.stop])
