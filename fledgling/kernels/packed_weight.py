"""Weights in the layout of the processor's matrix unit.

A bf16 product on CPU runs in oneDNN, which wants the weight in blocks and, given plain rows, reorders it for every
product. With many tokens this is negligible; with one token it is most of the time. Reordered once, one row reads its
weight at 6 times the speed, and 8 to 1,024 rows are 1.1 to 2 times as fast. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.model.linear import is_plain


class PackedWeight:
    """The weight (out, in) of a linear layer in oneDNN's layout, bf16; takes part in `F.linear` only."""

    def __init__(self, weight: Tensor) -> None:
        self.copy_(weight)

    def copy_(self, weight: Tensor) -> None:
        """Takes over the values of a weight (out, in) of any dtype."""
        rows = weight.detach().to("cpu", torch.bfloat16)
        self.shape, self.dtype = rows.shape, rows.dtype
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(rows, 1)  # 1: the best layout for one row

    def to(self, dtype: torch.dtype) -> PackedWeight:
        """Returns itself; dtype is the model's compute dtype, which must be bf16."""
        assert dtype == self.dtype, f"packed as {self.dtype}, requested as {dtype}"
        return self

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Computes x (..., in) -> (..., out) for F.linear(x, weight, bias or None)."""
        assert function is F.linear, f"a packed weight does not take part in {function.__name__}"
        x, weight, *rest = args
        bias = rest[0] if rest else (kwargs or {}).get("bias")
        return torch.ops.mkldnn._linear_pointwise(x, weight.blocks, bias, "none", [], "")


def can_pack_bf16(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing is possible and faster: bf16 on a processor that multiplies it."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linear_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """Replaces the plain weight of every linear layer by its packed form; returns these by the parameter's name."""
    packed = {}
    for name, module in model.named_modules():
        if is_plain(module) and isinstance(module.weight, Tensor):  # DoRA reads the rows of an adapted one
            weight = PackedWeight(module.weight)
            del module.weight
            module.weight = weight  # type: ignore[assignment]
            packed[f"{name}.weight"] = weight
    return packed
