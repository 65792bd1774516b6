"""Update rules as functions of tensors: AdamW, and Muon's orthogonalized momentum.

One idea: a rule knows nothing of parameters, groups or ranks; it takes values and returns values, so it can be
compared with its paper, compiled, and applied to a shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan et al. 2024: steepest at 0 while singular values stay in [.7, 1.2]


def adamw(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    rate: Tensor,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    All tensors of one shape, fp32; step (from 1) and rate are 0-d tensors. Returns parameter, mean, square.
    """
    first, second = betas
    mean = mean.lerp(gradient, 1 - first)
    square = square.lerp(gradient * gradient, 1 - second)
    denominator = (square / (1 - second**step)).sqrt() + eps
    update = mean / (1 - first**step) / denominator
    return parameter * (1 - rate * decay) - rate * update, mean, square


def adamw_(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *settings) -> None:
    """`adamw` in place; compiled, it is one pass over the four tensors without a temporary."""
    for old, new in zip((parameter, mean, square), adamw(parameter, gradient, mean, square, *settings), strict=True):
        old.copy_(new)


def orthogonalize(
    matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16, paired: bool = False
) -> Tensor:
    """An approximation of the polar factor U V^T of each matrix U S V^T, by Newton-Schulz iteration.

    matrices (n, rows, columns). Computed in `dtype`. U and V stay; a singular value of at least .0015 of the matrix's
    Frobenius norm comes out between .68 and 1.21 after 5 steps, an error of at most .32 in the spectral norm, which
    training does not notice (Jordan et al. 2024, "Muon"); smaller ones grow by up to 485. In bf16 it holds from .005
    on, within .01.
    paired: compute a matrix that is alone as a stack of two; on several threads the product of one takes another
    kernel, which rounds differently.
    """
    if paired and len(matrices) == 1:
        return orthogonalize(matrices.expand(2, -1, -1), steps, dtype)[:1]
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.float().square().sum((-2, -1), keepdim=True).sqrt() + 1e-7).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float()


def muon_(
    parameters: Sequence[Tensor],
    gradient: Tensor,
    velocity: Tensor,
    rate: Tensor,
    momentum: float,
    decay: float,
    steps: int,
    dtype: torch.dtype = torch.bfloat16,
    paired: bool = False,
) -> None:
    """One step of Muon with Nesterov momentum, in place, on n equal-shaped matrices (rows, columns).

    gradient, velocity (n, rows, columns); the gradient is used up. The orthogonal step is scaled by
    sqrt(max(1, rows / columns)), so that its effect on the outputs' root mean square does not depend on the shape.
    """
    velocity.lerp_(gradient, 1 - momentum)
    direction = orthogonalize(gradient.lerp_(velocity, momentum), steps, dtype, paired)
    rows, columns = gradient.shape[-2:]
    direction *= rate * max(1.0, rows / columns) ** 0.5
    for parameter, step in zip(parameters, direction.unbind(), strict=True):
        parameter.mul_(1 - rate * decay).sub_(step)


def muon(parameter: Tensor, gradient: Tensor, velocity: Tensor, *settings) -> tuple[Tensor, Tensor]:
    """`muon_` as a pure function of stacks (n, rows, columns): returns parameter, velocity."""
    parameter, velocity = parameter.clone(), velocity.clone()
    muon_(parameter.unbind(), gradient.clone(), velocity, *settings)
    return parameter, velocity
