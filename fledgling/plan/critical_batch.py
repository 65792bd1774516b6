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

from fledgling.plan.scaling_laws import check_budget

N_C, ALPHA_N = 6.5e13, 0.077  # table 3
S_C, ALPHA_S = 2.1e3, 0.76
B_STAR, ALPHA_B = 2.1e8, 0.21  # table 5
ALPHA_C = 1 / (1 / ALPHA_S + 1 / ALPHA_B + 1 / ALPHA_N)  # equation B.7: 0.052


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
