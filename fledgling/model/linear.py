"""Products with a weight: `apply_linear`, and `apply_linears` for several weights that read the same input.

What multiplies is the weight's own choice: plain tensors take PyTorch's product, and the other kinds of weights
(`fledgling.kernels`) answer `torch.nn.functional.linear` themselves.

In training off the CPU, matrices that read the same input are one product, and the weights of a step with several
micro-batches are cast once (`cast_weights`). On a CPU both were no faster, and one product of three matrices rounds
differently from three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.model.adapter import AdaptedLinear


class _UseCast(torch.autograd.Function):
    """Replaces a weight by a cast of it that was made before; the gradient is the weight's, in the weight's dtype."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return cast.view_as(cast)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.to(ctx.dtype), None


class Linear(nn.Linear):
    """`nn.Linear` whose weight may have a cast of this step (`cast_weights`), and another product in training.

    product: (x, weight) -> x W^T, used where gradients are computed; fp8.py replaces it.
    fake_quantizer: weight -> the weight that is multiplied by where gradients are computed, which are then those of the
        weight itself; `fledgling.kernels.qat` sets it.
    fake_quantized: its result in this step (`fake_quantize_weights`).
    """

    cast: Tensor | None = None
    fake_quantizer: Callable[[Tensor], Tensor] | None = None
    fake_quantized: Tensor | None = None
    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight (out, in) in a dtype."""
        if self.cast is not None and self.cast.dtype == dtype and torch.is_grad_enabled():
            return _UseCast.apply(self.weight, self.cast)
        return self.trained_weight().to(dtype)

    def trained_weight(self) -> Tensor:
        """Returns the weight (out, in) that is multiplied by: fake-quantized where gradients are computed."""
        if self.fake_quantizer is None or not torch.is_grad_enabled():
            return self.weight
        fake_quantized = (
            self.fake_quantizer(self.weight.detach()) if self.fake_quantized is None else self.fake_quantized
        )
        return _UseCast.apply(self.weight, fake_quantized)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Returns whether a layer only multiplies by its weight and adds its bias: no adapter, nothing else around it."""
    return type(module) in (nn.Linear, Linear)


def apply_linear(x: Tensor, linear: nn.Linear, deferred_scale: Tensor | None = None) -> Tensor:
    """Computes x W^T + b, with the weights cast to x's dtype: the products run in the compute dtype.

    Args:
        x: (..., in).
        deferred_scale: (..., 1), a factor of x still to be applied (flash_norm.py); the result is then
            deferred_scale * (x W^T) + b.

    Returns:
        (..., out) in x's dtype.
    """
    bias = None if linear.bias is None else linear.bias.to(x.dtype)
    if isinstance(linear, Linear):
        weight, product = linear.weight_in(x.dtype), linear.product if torch.is_grad_enabled() else F.linear
    else:
        weight, product = linear.weight.to(x.dtype), F.linear
    if isinstance(linear, AdaptedLinear):
        y = linear.adapter(product(x, weight), x, linear.weight)
    elif deferred_scale is None and product is F.linear:
        return F.linear(x, weight, bias)
    else:
        y = product(x, weight)
    y = y if deferred_scale is None else y * deferred_scale
    return y if bias is None else y + bias


def apply_linears(x: Tensor, linears: Sequence[nn.Linear], deferred_scale: Tensor | None = None) -> Sequence[Tensor]:
    """Returns `apply_linear` of x with each layer, (..., out) each; one product in training off the CPU.

    Args:
        x: (..., in).
        linears: of one input width.
        deferred_scale: (..., 1), which the products are multiplied by; None: 1.
    """
    plain = [linear for linear in linears if type(linear) is Linear]  # another kind may do more than multiply
    if not joins_products(x) or len(plain) < len(linears):
        return [apply_linear(x, linear, deferred_scale) for linear in linears]
    y = plain[0].product(x, torch.cat([linear.weight_in(x.dtype) for linear in plain]))
    y = y if deferred_scale is None else y * deferred_scale
    parts = y.split([linear.out_features for linear in plain], dim=-1)
    biases = [linear.bias for linear in plain]
    return [part if bias is None else part + bias.to(x.dtype) for part, bias in zip(parts, biases, strict=True)]


def joins_products(x: Tensor) -> bool:
    """Returns whether matrices that read x (..., in) are one product: in training off the CPU."""
    return x.device.type != "cpu" and torch.is_grad_enabled()


@contextmanager
def cast_weights(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the context every `Linear` inside `module` has a cast of its weight as it is now, made at once.

    The weights must not change within the context.
    """
    linears = [part for part in module.modules() if isinstance(part, Linear)]
    with torch.no_grad():
        for linear in linears:
            linear.cast = (linear.weight if linear.fake_quantized is None else linear.fake_quantized).to(dtype)
    try:
        yield
    finally:
        for linear in linears:
            linear.cast = None


@contextmanager
def fake_quantize_weights(module: nn.Module) -> Iterator[None]:
    """Within the context every `Linear` with a fake quantizer keeps its result for the weight as it is now.

    The weights must not change within the context.
    """
    linears = [part for part in module.modules() if isinstance(part, Linear) and part.fake_quantizer is not None]
    for linear in linears:
        assert linear.fake_quantizer is not None
        linear.fake_quantized = linear.fake_quantizer(linear.weight.detach())
    try:
        yield
    finally:
        for linear in linears:
            linear.fake_quantized = None
