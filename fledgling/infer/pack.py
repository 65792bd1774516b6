"""Weights laid out for the processor's matrix unit: a pass over the engine's own copy of a model.

The one idea: a bf16 product on CPU runs in oneDNN, which wants the weight in blocks and, given rows, lays it out
anew for every product. With many tokens that is lost in the arithmetic; with one token it is most of the time.
Laid out once, one row reads its weight at 6 times the speed, 8 to 1,024 rows are 1.1 to 2 times quicker
(docs/benchmarks.md), and the numbers are the same.

What it is not: quantization, nor another model. The model's code is not changed: where it hands a weight to
`torch.nn.functional.linear`, the packed one answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedWeight:
    """The weight (out, in) of a linear layer in oneDNN's layout; takes part in `F.linear` and nothing else."""

    def __init__(self, weight: Tensor) -> None:
        self.copy_(weight)

    def copy_(self, weight: Tensor) -> None:
        """Take over other values, given as rows (out, in) of any dtype."""
        rows = weight.detach().to("cpu", torch.bfloat16)
        self.shape, self.dtype = rows.shape, rows.dtype
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(rows, 1)  # 1: the layout that is best for one row

    def to(self, dtype: torch.dtype) -> PackedWeight:
        """Itself: the model asks for its compute dtype, which is this one."""
        assert dtype == self.dtype, f"packed as {self.dtype}, asked for {dtype}"
        return self

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, arguments: tuple = (), named: Mapping[str, Any] | None = None
    ) -> Tensor:
        """x (..., in) -> (..., out) for F.linear(x, packed, bias or None)."""
        assert function is F.linear, f"a packed weight does not take part in {function.__name__}"
        x, weight, *rest = arguments
        bias = rest[0] if rest else (named or {}).get("bias")
        return torch.ops.mkldnn._linear_pointwise(x, weight.blocks, bias, "none", [], "")


def can_pack_bf16(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing is possible and pays: bf16 on a processor that multiplies it."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linear_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """Replace the weight of every linear layer by its packed form; return these by the parameter's name."""
    packed = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and isinstance(module.weight, Tensor):
            weight = PackedWeight(module.weight)
            del module.weight
            module.weight = weight
            packed[f"{name}.weight"] = weight
    return packed
