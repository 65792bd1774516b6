"""The law of a recipe's own runs, L(N, D) = (E + A / N^1.391 + B / (D + D0)^1.463)^(1/4) with E, A, B, D0 >= 0.

It goes as N^-.3478 where the model is what limits a run, and as D^-.3658 where the text is: the exponents of arXiv
2404.10102. Two things are other than there, because a run of a few minutes is not near the end of its curve:

- D0: B / D has no end towards few tokens, while a run of no step has the loss of a guess. Between 90 and 900 steps of
  the quickstart the loss falls by an ever larger share for each doubling, which no E >= 0 describes. Rosenfeld et al.
  (arXiv 1909.12673) join the two regions likewise.
- the power: what a small model lacks shows only once it has read much. The sum within a power is that of Kaplan et al.
  (arXiv 2001.08361, equation 1.5). A quarter fits the quickstart's runs of depths 2 and 4 best, with and without those
  of 12 minutes (docs/budgets.md).

Start with `fit_laws`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import mul
from typing import Protocol

from fledgling.plan.scaling_laws import REFIT

POWER = 0.25
LEAST_SHIFT = 0.25  # of the tokens of the shortest run; the most that is tried is those of the longest
SHIFT_STEP = math.sqrt(2)  # between two values of D0 that are tried
MISFIT = 0.01  # of a loss, root mean square: what such a law may be off, and still be as likely as the best
COLUMNS = (0, 1, 2)  # of E, A and B


class LossLaw(Protocol):
    """A law of the loss, by which model sizes are compared."""

    def loss(self, N: float, D: float) -> float:
        """Returns the loss of N parameters after D tokens."""


@dataclass(frozen=True)
class ShiftedLoss:
    """The law above; `shift` is D0, in tokens."""

    E: float
    A: float
    B: float
    shift: float = 0.0

    def loss(self, N: float, D: float) -> float:
        """Returns the loss of N parameters after D effective tokens."""
        terms = self.E + self.A / N ** (REFIT.alpha / POWER) + self.B / (D + self.shift) ** (REFIT.beta / POWER)
        return terms**POWER


def fit_laws(
    sizes: Sequence[tuple[float, float]], losses: Sequence[float], near: float | None = None
) -> list[ShiftedLoss]:
    """Returns the law of least relative error, and then those of other shifts that fit as well, except for `MISFIT`.

    Within the range of the runs they agree; beyond it the runs do not decide between them. The error is that of L^4, as
    a share of it, which for small ones is four times that of L.

    Args:
        sizes: parameters and effective tokens of each run.
        losses: what they reached.
        near: tokens of the run that is asked for: one that has d doublings more or fewer counts 1 / (1 + d^2). None:
            all count alike.
    """
    shortest, longest = min(tokens for _, tokens in sizes), max(tokens for _, tokens in sizes)
    shifts, shift = [0.0], LEAST_SHIFT * shortest
    while shift <= longest:
        shifts.append(shift)
        shift *= SHIFT_STEP
    weights = [1.0 if near is None else 1 / math.hypot(1.0, math.log2(D / near)) for _, D in sizes]
    relative = [weight * loss ** (-1 / POWER) for weight, loss in zip(weights, losses, strict=True)]
    of_parameters = [factor * N ** (-REFIT.alpha / POWER) for (N, _), factor in zip(sizes, relative, strict=True)]
    found = []
    for shift in shifts:
        of_tokens = [
            factor * (D + shift) ** (-REFIT.beta / POWER) for (_, D), factor in zip(sizes, relative, strict=True)
        ]
        error, (E, A, B) = fit_columns([relative, of_parameters, of_tokens], weights)
        found.append((error, ShiftedLoss(E, A, B, shift)))
    found.sort(key=lambda pair: pair[0])
    limit = found[0][0] + math.fsum(map(mul, weights, weights)) * (MISFIT / POWER) ** 2
    return [law for error, law in found if error <= limit]


def fit_columns(columns: Sequence[Sequence[float]], target: Sequence[float]) -> tuple[float, list[float]]:
    """Returns min |columns x - target|^2 and its x >= 0: non-negative least squares (NNLS) for three columns."""
    products = [[math.fsum(map(mul, a, b)) for b in columns] for a in columns]
    sums, square = [math.fsum(map(mul, column, target)) for column in columns], math.fsum(map(mul, target, target))
    best, least = [0.0] * len(columns), math.inf
    for count in (3, 2, 1):  # all sets of coefficients above 0: three columns have seven
        if min(best) > 0:
            break  # nothing is less than the least without a bound
        for chosen in combinations(COLUMNS, count):
            part = solve_normal_equations([[products[i][j] for j in chosen] for i in chosen], [sums[i] for i in chosen])
            if part is None or min(part) < 0:
                continue
            error = square - math.fsum(x * sums[i] for i, x in zip(chosen, part, strict=True))
            if error < least:
                best, least = [0.0] * len(columns), max(0.0, error)
                for column, value in zip(chosen, part, strict=True):
                    best[column] = value
    return least, best


def solve_normal_equations(products: Sequence[Sequence[float]], sums: Sequence[float]) -> list[float] | None:
    """Returns x of products x = sums, a symmetric system of a few rows; None if it is singular.

    Rows and columns are scaled to a diagonal of 1 first; three of them leave an error far below that of a loss.
    """
    size = len(sums)
    scales = [math.sqrt(products[i][i]) for i in range(size)]
    if min(scales) == 0:
        return None
    table = [[products[i][j] / scales[i] / scales[j] for j in range(size)] + [sums[i] / scales[i]] for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(table[row][i]))
        if abs(table[pivot][i]) < 1e-12:
            return None
        table[i], table[pivot] = table[pivot], table[i]
        for row in range(size):
            if row != i:
                factor = table[row][i] / table[i][i]
                table[row] = [a - factor * b for a, b in zip(table[row], table[i], strict=True)]
    return [table[i][size] / table[i][i] / scales[i] for i in range(size)]
