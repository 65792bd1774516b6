"""A quantized matrix that a model holds where its weight was: packed in memory, a tensor to whoever asks.

The one idea: it is a tensor by its shape and dtype, and what it holds are values and scales. A linear layer of few rows
reads them as they are (native.cpp), one of many rows and everything else makes the matrix whole for the moment
that it is needed, and an embedding makes only the rows that are looked up. So a model's code has no branch for it.

N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fledgling.kernels import native
from fledgling.kernels.format import dequantize_matrix, quantize_matrix

aten = torch.ops.aten


class QuantizedTensor(torch.Tensor):
    """A matrix (N, K) in 8 or 4 bits, of nominal `dtype`: what it becomes when it is made whole."""

    values: Tensor
    scales: Tensor
    bits: int

    @staticmethod
    def __new__(cls, values: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> QuantizedTensor:
        shape = (values.shape[0], values.shape[1] * (2 if bits == 4 else 1))
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=values.device)

    def __init__(self, values: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> None:
        self.values, self.scales, self.bits = values, scales, bits
        usable = values.device.type == "cpu" and native.load_library() is not None
        self.matrix = native.describe_matrix(values, scales, bits) if usable else None

    @classmethod
    def from_weight(cls, weight: Tensor, bits: int, group_size: int, dtype: torch.dtype) -> QuantizedTensor:
        """Quantize a matrix."""
        return cls(*quantize_matrix(weight, bits, group_size), bits, dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix (N, K) as an ordinary tensor."""
        if self.matrix is not None and (dtype or self.dtype) == torch.bfloat16:
            return native.widen_matrix(self.matrix)
        return dequantize_matrix(self.values, self.scales, self.bits, dtype or self.dtype)

    @property
    def packed_bytes(self) -> int:
        """Of memory, and of a file."""
        return self.values.nbytes + self.scales.nbytes

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantizedTensor({tuple(self.shape)}, {self.bits} bits, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, arguments: tuple = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is F.linear:
            return _quantized_linear(*arguments, **named)
        if function is F.embedding:
            index, weight = arguments[:2]
            rows = dequantize_matrix(
                weight.values[index.flatten()], weight.scales[index.flatten()], weight.bits, weight.dtype
            )
            return rows.view(*index.shape, -1)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*arguments, **named)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        named = named or {}
        if function.overloadpacket in (aten.detach, aten.alias, aten.clone, aten._to_copy, aten.to):
            return _copy_tensor(function.overloadpacket, *arguments, *named.values())
        if function is aten.copy_.default and isinstance(arguments[1], cls):
            to, source = arguments[:2]
            to.values.copy_(source.values)
            to.scales.copy_(source.scales)
            return to
        arguments, named = tree_map_only(cls, cls.dequantize, (arguments, named))
        return function(*arguments, **named)


def _copy_tensor(how: Any, tensor: QuantizedTensor, *wishes: Any) -> QuantizedTensor:
    """The same numbers on another device or of another nominal dtype, where the wishes name one, or copied."""
    dtype = next((wish for wish in wishes if isinstance(wish, torch.dtype)), tensor.dtype)
    device = next((wish for wish in wishes if isinstance(wish, torch.device)), tensor.device)
    if how is aten.to and (dtype, device) == (tensor.dtype, tensor.device):
        return tensor  # inside inference mode it comes here though nothing is asked
    copy = how in (aten.clone, aten._to_copy)
    parts = [part.to(device, copy=copy) for part in (tensor.values, tensor.scales)]
    return QuantizedTensor(*parts, tensor.bits, dtype)


def _quantized_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) -> (..., N) in x's dtype."""
    assert isinstance(weight, QuantizedTensor), "only the weight of a product is quantized"
    if weight.matrix is not None and x.dtype == torch.bfloat16 and x.numel() <= native.MAX_ROWS * x.shape[-1]:
        out = native.multiply_matrix(x, weight.matrix)
        return (out if bias is None else out + bias).to(x.dtype)
    return F.linear(x, weight.dequantize(x.dtype), bias)
