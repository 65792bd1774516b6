"""Products of the blocks in fp8, in training only: torchao's float8 training, as `run.fp8` asks for it.

Inputs, weights and gradients of a product are each scaled by their largest value and rounded to 8 bits, again in every
step; sums, weights and optimizer state keep their dtypes. Evaluation and answers use the dtype of the run.

Source: Micikevicius et al. 2022, FP8 formats for deep learning, arXiv 2209.05433.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from fledgling.config import UserError
from fledgling.model.linear import Linear

SIZE_MULTIPLE = 16  # of inputs and outputs, for the kernels


def make_fp8_product(emulate: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns (x, weight) -> x W^T in fp8, differentiable. emulate: round to fp8, but multiply in the given dtype."""
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args

    config = Float8LinearConfig(emulate=emulate)
    settings = Float8Linear(1, 1, bias=False, config=config).linear_mm_config
    return partial(_multiply, matmul_with_hp_or_float8_args.apply, settings, config)


def _multiply(apply: Callable[..., Tensor], settings: object, config: object, x: Tensor, weight: Tensor) -> Tensor:
    return apply(x, weight.t(), settings, config)


def use_fp8(module: nn.Module, emulate: bool = False) -> None:
    """Gives every `Linear` inside `module` the product of fp8. Raises UserError for sizes that the kernels lack."""
    linears = [part for part in module.modules() if isinstance(part, Linear)]
    product = make_fp8_product(emulate)
    for linear in linears:
        require_fp8_sizes(linear.in_features, linear.out_features)
        linear.product = product


def require_fp8_sizes(*sizes: int) -> None:
    """Raises UserError for inputs and outputs of a product that the kernels lack."""
    if any(size % SIZE_MULTIPLE for size in sizes):
        product = " x ".join(map(str, sizes))
        raise UserError(f"run.fp8: a product of {product}; expected multiples of {SIZE_MULTIPLE}, or run.fp8=false")
