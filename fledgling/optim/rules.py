"""Update rules as functions of tensors: AdamW, and Muon with its variants.

A rule takes values and returns values. It does not see parameters, groups or ranks, so it can be compared with its
paper, compiled, and applied to a shard. Names that end in `_` work in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Jordan et al. 2024: the steepest at 0 that keeps singular values in [.7, 1.2]; the same at every step.
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
SAFETY_FACTOR = 1.01  # divides every polynomial but the limit, and the norm: rounding must not lead beyond 1
POLAR_EXPRESS_COEFFICIENTS = tuple(
    (a / SAFETY_FACTOR, b / SAFETY_FACTOR**3, c / SAFETY_FACTOR**5) for a, b, c in _POLAR_EXPRESS
)
LIMIT_COEFFICIENTS = (1.875, -1.25, 0.375)


def newton_schulz_coefficients(variant: str, steps: int) -> tuple[tuple[float, float, float], ...]:
    """Returns (a, b, c) of p(x) = a x + b x^3 + c x^5 for each step; variant is "jordan" or "polar_express"."""
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
    """Computes one step of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    Args:
        parameter, gradient, exp_avg, exp_avg_sq: tensors of one shape, fp32.
        step: 0-d tensor, the number of this update, from 1.
        lr: 0-d tensor.
        cautious: decay only the values that the update moves nearer to 0 (arXiv 2510.12402).

    Returns:
        parameter, exp_avg and exp_avg_sq after the step.
    """
    beta1, beta2 = betas
    exp_avg = exp_avg.lerp(gradient, 1 - beta1)
    exp_avg_sq = exp_avg_sq.lerp(gradient * gradient, 1 - beta2)
    denominator = (exp_avg_sq / (1 - beta2**step)).sqrt() + eps
    update = exp_avg / (1 - beta1**step) / denominator
    decay = lr * weight_decay * (update * parameter >= 0) if cautious else lr * weight_decay
    return parameter * (1 - decay) - lr * update, exp_avg, exp_avg_sq


def adamw_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *settings,
    applies: Tensor | None = None,
) -> None:
    """Applies `adamw` in place; compiled, it is one pass over the four tensors without a temporary.

    Args:
        parameter, gradient, exp_avg, exp_avg_sq: of one shape; all but the gradient are updated.
        settings: those of `adamw`.
        applies: 0-d bool on the parameters' device; where it is False nothing changes. None: it is known to be True.
    """
    tensors = (parameter, exp_avg, exp_avg_sq)
    for old, new in zip(tensors, adamw(parameter, gradient, exp_avg, exp_avg_sq, *settings), strict=True):
        old.copy_(new if applies is None else torch.where(applies, new, old))


def orthogonalize(
    matrices: Tensor,
    steps: int = 5,
    dtype: torch.dtype = torch.bfloat16,
    pad_to_pair: bool = False,
    variant: str = "jordan",
) -> Tensor:
    """Approximates the polar factor U V^T of each matrix U S V^T by Newton-Schulz iteration.

    The singular vectors stay. A singular value of at least .0015 of the matrix's Frobenius norm comes out between .68
    and 1.21 after 5 steps, an error of at most .32 in the spectral norm, which training does not notice (Jordan et al.
    2024, "Muon"); smaller ones grow by a factor of up to 485. In bf16 this holds from .005 on, within .01. For values
    from .001 of the norm on, "polar_express" is within .16 of 1 after 5 steps and "jordan" within .53 (in exact
    arithmetic).

    Args:
        matrices: (n, rows, columns).
        dtype: of the products.
        pad_to_pair: compute a single matrix as a stack of two. On several threads the product of one matrix takes
            another kernel, which rounds differently.
        variant: see `newton_schulz_coefficients`.

    Returns:
        (n, rows, columns), fp32.
    """
    if pad_to_pair and len(matrices) == 1:
        return orthogonalize(matrices.expand(2, -1, -1), steps, dtype, variant=variant)[:1]
    if dtype == torch.float16:  # gradients may be smaller than its smallest number
        matrices = matrices / (matrices.square().sum((-2, -1), keepdim=True).sqrt() + 1e-30)
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


@dataclass(frozen=True)
class MuonSettings:
    """The settings of Muon, which are the same in every step.

    Attributes:
        momentum: of Nesterov's momentum, in [0, 1).
        weight_decay: share of a weight, per unit of the learning rate, that a step takes away.
        steps, dtype, pad_to_pair, variant: of `orthogonalize`.
        cautious: decay only the values that the update moves nearer to 0 (arXiv 2510.12402).
        equilibrate: divide each row by its norm before the iteration, which then begins with more equal singular values
            (MuonEq, form R, arXiv 2603.28254).
        normalize: make columns, then rows, of the update equally long (`normalize_lines_`).
    """

    momentum: float = 0.95
    weight_decay: float = 0.0
    steps: int = 5
    dtype: torch.dtype = torch.bfloat16
    pad_to_pair: bool = False
    variant: str = "jordan"
    cautious: bool = False
    equilibrate: bool = False
    normalize: bool = False


def muon_direction_(gradient: Tensor, momentum_buffer: Tensor, settings: MuonSettings) -> Tensor:
    """Returns Muon's orthogonal directions (n, rows, columns); updates the momentum buffer, overwrites the gradient.

    Args:
        gradient, momentum_buffer: (n, rows, columns), fp32.
    """
    momentum_buffer.lerp_(gradient, 1 - settings.momentum)
    gradient.lerp_(momentum_buffer, settings.momentum)
    if settings.equilibrate:
        gradient /= torch.linalg.vector_norm(gradient, dim=-1, keepdim=True).clamp(min=1e-30)
    direction = orthogonalize(gradient, settings.steps, settings.dtype, settings.pad_to_pair, settings.variant)
    return normalize_lines_(direction) if settings.normalize else direction


def muon_(
    parameters: Sequence[Tensor],
    gradient: Tensor,
    momentum_buffer: Tensor,
    lr: Tensor,
    settings: MuonSettings,
    *,
    exp_avg_sq_row: Tensor | None = None,
    make_direction: Callable[[Tensor, Tensor, MuonSettings], Tensor] = muon_direction_,
    applies: Tensor | None = None,
) -> None:
    """Makes one step of Muon with Nesterov momentum, in place, on n matrices of one shape.

    The orthogonal update is scaled by sqrt(max(1, rows / columns)), so that its effect on the root mean square of the
    outputs does not depend on the shape. A matrix whose gradient is zero has no update: orthogonalization would make a
    whole step of momentum that has decayed to almost nothing. Its momentum and its weights decay as always.

    Args:
        parameters: n tensors (rows, columns).
        gradient: (n, rows, columns); overwritten.
        momentum_buffer: (n, rows, columns).
        lr: 0-d tensor.
        exp_avg_sq_row: (n, rows), the state of NorMuon (`normalize_rows_`); None for Muon.
        make_direction: `muon_direction_`, or its compiled form.
        applies: 0-d bool on the parameters' device; where it is False nothing changes. None: it is known to be True.
    """
    has_gradient = gradient.flatten(1).any(1)[:, None, None]  # (n, 1, 1)
    decay: Tensor | float = lr * settings.weight_decay
    if applies is not None:  # momentum that moves toward itself stays; nan times 0 would not be 0
        torch.where(applies, gradient, momentum_buffer, out=gradient)
        has_gradient, decay = has_gradient & applies, decay * applies
    update = make_direction(gradient, momentum_buffer, settings)
    if exp_avg_sq_row is not None:
        normalize_rows_(update, exp_avg_sq_row, applies=applies)
    rows, columns = gradient.shape[-2:]
    update *= lr * max(1.0, rows / columns) ** 0.5 * has_gradient
    if gradient.device.type != "cpu" and not settings.cautious:  # two launches instead of two for each matrix
        if settings.weight_decay:
            torch._foreach_mul_(list(parameters), float(1 - decay) if applies is None else 1 - decay)
        torch._foreach_sub_(list(parameters), update.unbind())
        return
    for parameter, step in zip(parameters, update.unbind(), strict=True):
        if settings.cautious and settings.weight_decay:
            nearer = parameter * (step * parameter >= 0)
            parameter.sub_(nearer, alpha=float(decay)) if applies is None else parameter.sub_(nearer * decay)
            parameter.sub_(step)
        else:
            parameter.mul_(1 - decay).sub_(step)


def normalize_rows_(
    updates: Tensor, exp_avg_sq_row: Tensor, beta: float = 0.95, eps: float = 1e-8, applies: Tensor | None = None
) -> None:
    """Divides each row of the updates by the root of its running mean square, in place.

    The norm of each matrix is restored afterwards, so that the learning rate keeps its meaning.

    Args:
        updates: (n, rows, columns).
        exp_avg_sq_row: (n, rows), the running mean square of each row; updated here.
        applies: as in `muon_`.

    Source: NorMuon, arXiv 2510.05491, algorithm 1 (which has its own learning rate instead of restoring the norm).
    """
    squares = torch.linalg.vector_norm(updates, dim=-1).square()  # (n, rows)
    means = squares / updates.shape[-1]
    exp_avg_sq_row.lerp_(means if applies is None else torch.where(applies, means, exp_avg_sq_row), 1 - beta)
    factors = 1 / (exp_avg_sq_row.sqrt() + eps)
    before, after = squares.sum(-1), (squares * factors.square()).sum(-1)  # (n,)
    updates *= (factors * (before / after.clamp(min=1e-30)).sqrt()[:, None])[..., None]


def normalize_lines_(updates: Tensor) -> Tensor:
    """Makes the columns, then the rows, of each of the updates (n, rows, columns) equally long, in place.

    The norm of each matrix is restored, so that the learning rate keeps its meaning. Rows without values stay zero.

    Source: Muon+, arXiv 2602.21545.
    """
    before = torch.linalg.vector_norm(updates, dim=(-2, -1), keepdim=True)
    for dim in (-2, -1):
        updates /= torch.linalg.vector_norm(updates, dim=dim, keepdim=True).clamp(min=1e-30)
    updates *= before / torch.linalg.vector_norm(updates, dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    return updates
