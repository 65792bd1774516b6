"""Update rules as functions of tensors: AdamW, and Muon's orthogonalized momentum.

One idea: a rule knows nothing of parameters, groups or ranks; it takes values and returns values, so it can be
compared with its paper, compiled, and applied to a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Jordan et al. 2024: steepest at 0 while singular values stay in [.7, 1.2]; the same at every step.
JORDAN_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Amsel et al. 2025, arXiv 2505.16932, algorithm 1: the best polynomial of each step for singular values in [.001, 1].
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
SAFETY_FACTOR = 1.01  # of all polynomials but the limit, and of the norm: rounding must not lead beyond 1
POLAR_EXPRESS_COEFFICIENTS = tuple(
    (a / SAFETY_FACTOR, b / SAFETY_FACTOR**3, c / SAFETY_FACTOR**5) for a, b, c in _POLAR_EXPRESS
)
LIMIT_COEFFICIENTS = (1.875, -1.25, 0.375)


def newton_schulz_coefficients(variant: str, steps: int) -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) of p(x) = a x + b x^3 + c x^5 for each step of a "jordan" or "polar_express" iteration."""
    if variant == "polar_express":
        return (POLAR_EXPRESS_COEFFICIENTS + (LIMIT_COEFFICIENTS,) * steps)[:steps]
    return (JORDAN_COEFFICIENTS,) * steps


def adamw(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    cautious: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    All tensors of one shape, fp32; step (from 1) and rate are 0-d tensors; cautious: only values that the update brings
    nearer to 0 decay (arXiv 2510.12402). Returns parameter, mean, square.
    """
    first, second = betas
    exp_avg = exp_avg.lerp(gradient, 1 - first)
    exp_avg_sq = exp_avg_sq.lerp(gradient * gradient, 1 - second)
    denominator = (exp_avg_sq / (1 - second**step)).sqrt() + eps
    update = exp_avg / (1 - first**step) / denominator
    kept = lr * weight_decay * (update * parameter >= 0) if cautious else lr * weight_decay
    return parameter * (1 - kept) - lr * update, exp_avg, exp_avg_sq


def adamw_(parameter: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *settings) -> None:
    """`adamw` in place; compiled, it is one pass over the four tensors without a temporary."""
    for old, new in zip(
        (parameter, exp_avg, exp_avg_sq), adamw(parameter, gradient, exp_avg, exp_avg_sq, *settings), strict=True
    ):
        old.copy_(new)


def orthogonalize(
    matrices: Tensor,
    steps: int = 5,
    dtype: torch.dtype = torch.bfloat16,
    pad_to_pair: bool = False,
    variant: str = "jordan",
) -> Tensor:
    """An approximation of the polar factor U V^T of each matrix U S V^T, by Newton-Schulz iteration.

    matrices (n, rows, columns). Computed in `dtype`. U and V stay; a singular value of at least .0015 of the matrix's
    Frobenius norm comes out between .68 and 1.21 after 5 steps, an error of at most .32 in the spectral norm, which
    training does not notice (Jordan et al. 2024, "Muon"); smaller ones grow by up to 485. In bf16 it holds from .005
    on, within .01.
    paired: compute a matrix that is alone as a stack of two; on several threads the product of one takes another
    kernel, which rounds differently.
    kind: of `coefficients`; for values from .001 of the norm on, "polar_express" is within .16 of 1 after 5 steps,
    Jordan's within .53 (both in exact arithmetic).
    """
    if pad_to_pair and len(matrices) == 1:
        return orthogonalize(matrices.expand(2, -1, -1), steps, dtype, variant=variant)[:1]
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    safety = SAFETY_FACTOR if variant == "polar_express" else 1.0
    x = x / (x.float().square().sum((-2, -1), keepdim=True).sqrt() * safety + 1e-7).to(dtype)
    for a, b, c in newton_schulz_coefficients(variant, steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float()


def muon_direction_(
    gradient: Tensor,
    momentum_buffer: Tensor,
    momentum: float,
    steps: int,
    dtype: torch.dtype,
    pad_to_pair: bool,
    variant: str,
) -> Tensor:
    """Returns Muon's orthogonal directions (n, rows, columns); moves the momentum buffer, and uses up the gradient."""
    momentum_buffer.lerp_(gradient, 1 - momentum)
    return orthogonalize(gradient.lerp_(momentum_buffer, momentum), steps, dtype, pad_to_pair, variant)


def muon_(
    parameters: Sequence[Tensor],
    gradient: Tensor,
    momentum_buffer: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    steps: int,
    dtype: torch.dtype = torch.bfloat16,
    pad_to_pair: bool = False,
    variant: str = "jordan",
    exp_avg_sq_row: Tensor | None = None,
    cautious: bool = False,
    make_direction: Callable[..., Tensor] = muon_direction_,
) -> None:
    """One step of Muon with Nesterov momentum, in place, on n equal-shaped matrices (rows, columns).

    gradient, velocity (n, rows, columns); the gradient is used up. The orthogonal step is scaled by
    sqrt(max(1, rows / columns)), so that its effect on the outputs' root mean square does not depend on the shape.
    kind: see `orthogonalize`; variance (n, rows): NorMuon's (`even_rows`); cautious: only values that the step brings
    nearer to 0 decay (arXiv 2510.12402).
    """
    direction = make_direction(gradient, momentum_buffer, momentum, steps, dtype, pad_to_pair, variant)
    if exp_avg_sq_row is not None:
        normalize_rows_(direction, exp_avg_sq_row)
    rows, columns = gradient.shape[-2:]
    direction *= lr * max(1.0, rows / columns) ** 0.5
    if gradient.device.type != "cpu" and not cautious:  # two launches instead of two a matrix
        if weight_decay:
            torch._foreach_mul_(parameters, float(1 - lr * weight_decay))
        torch._foreach_sub_(parameters, direction.unbind())
        return
    for parameter, step in zip(parameters, direction.unbind(), strict=True):
        if cautious and weight_decay:
            parameter.sub_(parameter * (step * parameter >= 0), alpha=float(lr * weight_decay)).sub_(step)
        else:
            parameter.mul_(1 - lr * weight_decay).sub_(step)


def normalize_rows_(updates: Tensor, exp_avg_sq_row: Tensor, beta: float = 0.95, eps: float = 1e-8) -> None:
    """Divide each row of the directions (n, rows, columns) by the root of its mean square so far, in place.

    variance (n, rows): the running mean, moved on here. The norm of a whole matrix stays what it was, so that the rate
    means the same. Source: NorMuon, arXiv 2510.05491, algorithm 1 (there with a rate of its own in place of the norm).
    """
    squares = torch.linalg.vector_norm(updates, dim=-1).square()  # (n, rows)
    exp_avg_sq_row.lerp_(squares / updates.shape[-1], 1 - beta)
    factors = 1 / (exp_avg_sq_row.sqrt() + eps)
    total, scaled = squares.sum(-1), (squares * factors.square()).sum(-1)  # (n,)
    updates *= (factors * (total / scaled.clamp(min=1e-30)).sqrt()[:, None])[..., None]


def muon(parameter: Tensor, gradient: Tensor, momentum_buffer: Tensor, *settings) -> tuple[Tensor, Tensor]:
    """`muon_` as a pure function of stacks (n, rows, columns): returns parameter, velocity."""
    parameter, momentum_buffer = parameter.clone(), momentum_buffer.clone()
    muon_(parameter.unbind(), gradient.clone(), momentum_buffer, *settings)
    return parameter, momentum_buffer
