"""A quantized matrix that takes the place of a model's weight: packed in memory, a tensor to all other code.

It is a tensor by its shape and dtype; its content is values and scales (`format.py`). A linear layer of few rows reads
them directly (native.py). One of many rows, and every other operation, dequantizes the matrix temporarily; an
embedding dequantizes only the rows that are looked up. So the model's code has no branch for it.

N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fledgling.kernels import native
from fledgling.kernels.device_matrix import MAX_DEVICE_ROWS, DeviceMatrix, can_pack, pack_device_matrix
from fledgling.kernels.format import LEVELS_4BIT, dequantize_matrix

aten = torch.ops.aten
Levels = tuple[float, ...]


class QuantizedTensor(torch.Tensor):
    """A matrix (N, K) in 8 or 4 bits.

    Args:
        values: int8 (N, K), or in 4 bits uint8 (N, K / 2), two values in each byte.
        scales: bf16 (N, K / group_size), one for each group of columns.
        bits: 8 or 4.
        dtype: nominal dtype: that of the dequantized matrix, unless another is requested.
        levels: of 4 bits, if they are not those of format.py.
    """

    values: Tensor  # type: ignore[assignment]
    scales: Tensor
    bits: int

    @staticmethod
    def __new__(
        cls, values: Tensor, scales: Tensor, bits: int, dtype: torch.dtype, levels: Levels = LEVELS_4BIT
    ) -> QuantizedTensor:
        shape = (values.shape[0], values.shape[1] * (2 if bits == 4 else 1))
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=values.device)

    def __init__(
        self, values: Tensor, scales: Tensor, bits: int, dtype: torch.dtype, levels: Levels = LEVELS_4BIT
    ) -> None:
        self.values, self.scales, self.bits, self.levels = values, scales, bits, levels
        is_known = values.device.type == "cpu" and levels is LEVELS_4BIT and self.ndim == 2
        usable = (
            is_known
            and native.can_multiply(self.shape[1], scales.shape[1], bits)
            and native.load_native_library() is not None
        )
        self.matrix = native.describe_matrix(values, scales, bits) if usable else None
        self._device_matrix: DeviceMatrix | None = None

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the matrix (N, K) as a plain tensor; dtype None is the nominal one."""
        if self.matrix is not None and (dtype or self.dtype) == torch.bfloat16:
            return native.widen_matrix(self.matrix)
        return dequantize_matrix(self.values, self.scales, self.bits, dtype or self.dtype, self.levels)

    @property
    def device_matrix(self) -> DeviceMatrix | None:
        """The matrix as its device multiplies it, packed on first use; None where the device has no kernel for it."""
        is_known = self.levels is LEVELS_4BIT
        if self._device_matrix is None and is_known and can_pack(self.values, self.scales, self.bits):
            self._device_matrix = pack_device_matrix(self.values, self.scales, self.bits)
        return self._device_matrix

    @property
    def packed_bytes(self) -> int:
        """Bytes of values and scales, in memory and in a file."""
        return self.values.nbytes + self.scales.nbytes

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantizedTensor({tuple(self.shape)}, {self.bits} bits, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replaces linear layers and embeddings; other functions continue to `__torch_dispatch__`."""
        kwargs = kwargs or {}
        if function is F.linear:
            return _quantized_linear(*args, **kwargs)
        if function is F.embedding:
            index, weight = args[:2]
            rows = dequantize_matrix(
                weight.values[index.flatten()],
                weight.scales[index.flatten()],
                weight.bits,
                weight.dtype,
                weight.levels,
            )
            return rows.view(*index.shape, -1)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # type: ignore[override]
        """Keeps the matrix packed in copies, views, conversions and `copy_`; dequantizes it for all others."""
        kwargs = kwargs or {}
        if function.overloadpacket in (aten.detach, aten.alias, aten.clone, aten._to_copy, aten.to):
            return _convert_tensor(function.overloadpacket, *args, *kwargs.values())
        if function is aten.copy_.default and isinstance(args[1], cls):
            target, source = args[:2]
            target.values.copy_(source.values)
            target.scales.copy_(source.scales)
            if target.matrix is not None:
                native.refresh_matrix(target.matrix, target.scales)
            if target._device_matrix is not None:
                target._device_matrix.copy_(pack_device_matrix(target.values, target.scales, target.bits))
            return target
        args, kwargs = tree_map_only(cls, cls.dequantize, (args, kwargs))
        return function(*args, **kwargs)


def _convert_tensor(operation: Any, tensor: QuantizedTensor, *options: Any) -> QuantizedTensor:
    """Returns the matrix on the device and of the nominal dtype that the options name, still packed.

    Args:
        operation: aten.clone or aten._to_copy, which copy; or aten.detach, alias or to, which share memory if possible.
        tensor: the matrix.
        options: the operation's other arguments, of which a torch.dtype and a torch.device are applied.
    """
    dtype = next((option for option in options if isinstance(option, torch.dtype)), tensor.dtype)
    device = next((option for option in options if isinstance(option, torch.device)), tensor.device)
    if operation is aten.to and (dtype, device) == (tensor.dtype, tensor.device):
        return tensor  # in inference mode PyTorch dispatches `to` even when it changes nothing
    copy = operation in (aten.clone, aten._to_copy)
    values, scales = (part.to(device, copy=copy) for part in (tensor.values, tensor.scales))
    return QuantizedTensor(values, scales, tensor.bits, dtype, tensor.levels)


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b of which only x has a gradient: W is dequantized again in the backward pass, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad @ ctx.weight.dequantize(grad.dtype), None, None


def _quantized_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x (..., K) -> (..., N) in x's dtype.

    A bfloat16 input of at most `native.MAX_ROWS` rows (on CUDA `MAX_DEVICE_ROWS`) is multiplied with the packed
    values; else they are dequantized.
    """
    assert isinstance(weight, QuantizedTensor), "only the weight of a product is quantized"
    if torch.is_grad_enabled() and x.requires_grad:
        return _FrozenProduct.apply(x, weight, bias)
    is_bf16, rows = x.dtype == torch.bfloat16, x.numel() // x.shape[-1]
    if is_bf16 and rows <= MAX_DEVICE_ROWS and weight.device_matrix is not None:
        out = weight.device_matrix.multiply(x)
        return out if bias is None else out + bias
    fits = x.shape[-1] == weight.shape[1] and x.device.type == "cpu"  # otherwise PyTorch raises its error
    if weight.matrix is not None and is_bf16 and fits and rows <= native.MAX_ROWS:
        out = native.multiply_matrix(x, weight.matrix)
        return (out if bias is None else out + bias).to(x.dtype)
    return F.linear(x, weight.dequantize(x.dtype), bias)


def has_quantized_weights(model: nn.Module) -> bool:
    """Returns whether any of a model's matrices is packed."""
    return any(isinstance(weight.data, QuantizedTensor) for weight in model.parameters())
