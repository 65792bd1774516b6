"""Predicts the loss from steps and batch size: L = f(N, D, S, C) of Kaplan et al. 2020, sections 5 and 6.

    L(N, S_min) = (Nc / N)^0.077 + (Sc / S_min)^0.76      N without embeddings, nats per token
    B_crit(L)   = 2.1e8 / L^(1 / 0.21)                    tokens; a larger batch saves no steps, a smaller no compute
    S_min = S / (1 + B_crit / B)      C_min = C / (1 + B / B_crit)      D = B S      C = 6 N D

A batch far above B_crit takes S_min steps, one far below it takes C_min FLOPs, and at B_crit both are twice the
minimum. Data is assumed unlimited: no token is seen twice.

This is the published relation, fitted on models of up to 1.5 billion parameters; the batch size of a training run is
chosen by `fledgling.plan.horizon`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fledgling.config import UserError
from fledgling.plan.scaling_laws import check_budget

N_C, ALPHA_N = 6.5e13, 0.077  # table 3
S_C, ALPHA_S = 2.1e3, 0.76
B_STAR, ALPHA_B = 2.1e8, 0.21  # table 5
ALPHA_C = 1 / (1 / ALPHA_S + 1 / ALPHA_B + 1 / ALPHA_N)  # equation B.7: 0.052


def loss_after_steps(N: float, S_min: float) -> float:
    """Returns L(N, S_min), nats per token, of N parameters after S_min steps of a batch far above B_crit."""
    return (N_C / N) ** ALPHA_N + (S_C / S_min) ** ALPHA_S


def critical_batch_size(loss: float) -> float:
    """Returns B_crit(L) in tokens (equation 5.3)."""
    return B_STAR / loss ** (1 / ALPHA_B)


@dataclass(frozen=True)
class KaplanRun:
    """A run: N parameters, batch B in tokens, S steps; derived: D tokens, C FLOPs; the loss in nats per token."""

    N: float
    B: float
    S: float
    loss: float

    @property
    def D(self) -> float:
        """Tokens."""
        return self.B * self.S

    @property
    def C(self) -> float:
        """FLOPs, 6 N D."""
        return 6 * self.N * self.D

    @property
    def S_min(self) -> float:
        """Steps that a batch far above B_crit would need for this loss (equation 5.4)."""
        return self.S / (1 + critical_batch_size(self.loss) / self.B)

    @property
    def C_min(self) -> float:
        """FLOPs that a batch far below B_crit would need for this loss (equation 5.5)."""
        return self.C / (1 + self.B / critical_batch_size(self.loss))


def solve_run(N: float, B: float, S: float) -> KaplanRun:
    """Returns the run of N parameters over S steps of B tokens, with its loss.

    The loss is on both sides of L = L(N, S_min(S, B, L)): solved by bisection to a relative error of 1e-12. Raises
    UserError for a size, batch or length that is not above 0.
    """
    for name, value in (("parameters", N), ("batch", B), ("steps", S)):
        if not value > 0:
            raise UserError(f"{name}: got {value:g}, expected a number above 0")
    low, high = (N_C / N) ** ALPHA_N, loss_after_steps(N, S) + 1e3
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        loss = loss_after_steps(N, KaplanRun(N, B, S, middle).S_min)
        low, high = (middle, high) if loss > middle else (low, middle)
    return KaplanRun(N, B, S, (low + high) / 2)


def optimal_run(C: float) -> KaplanRun:
    """Returns the run of least loss for C FLOPs when it is trained at its critical batch (appendix B).

    It stops ALPHA_N / ALPHA_S, a tenth, above the converged loss of its N; N ~ C^(ALPHA_C / ALPHA_N), which is C^0.68.
    (Measured without that assumption the paper gives C^0.73: `fledgling.plan.scaling_laws`.)
    """
    ratio = ALPHA_N / ALPHA_S
    scale = 6 * N_C * B_STAR * S_C * (1 + ratio) ** (1 / ALPHA_S + 1 / ALPHA_N) * ratio ** (-1 / ALPHA_S)  # B.8
    loss = (scale / check_budget(C)) ** ALPHA_C  # B.6
    N = N_C * ((1 + ratio) / loss) ** (1 / ALPHA_N)  # B.5
    S = S_C * (loss * ratio / (1 + ratio)) ** (-1 / ALPHA_S)  # B.4: the part of the loss that more steps reduce
    return KaplanRun(N, critical_batch_size(loss), S, loss)
