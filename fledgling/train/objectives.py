"""What preference tuning minimizes: each paper's loss as a function of tensors, without model, mask or batch.

An answer has `logprob`, the sum of log p over its tokens under the policy; `reference`, the same under the stage's
initial weights; and `tokens`. `gain` is logprob - reference; `mean` is logprob / tokens. All in nats, any shape.

    dpo     -log sigmoid(beta (gain_w - gain_l))                                 arXiv 2305.18290, equation 7
    ipo     (gain_w - gain_l - 1 / (2 beta))^2                                   arXiv 2310.12036, equation 17
    simpo   -log sigmoid(beta (mean_w - mean_l) - target_margin)                 arXiv 2405.14734, equation 6
    orpo    -mean_w - beta log sigmoid(logodds(mean_w) - logodds(mean_l))        arXiv 2403.07691, equations 6 and 7
    kto     weight_y (1 - sigmoid(sign_y beta (gain - baseline)))                arXiv 2402.01306, equation 8
    reward  -log sigmoid(r_w - r_l), the Bradley-Terry model                     arXiv 2203.02155, equation 1

w is the chosen answer of a pair, l the rejected one. `OBJECTIVES` has what the stage needs to know of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.config import DPOConfig

MAX_LOGPROB = -1e-6  # of a mean of log p, so that odds stay finite


@dataclass(frozen=True)
class Answers:
    """Answers as a loss reads them, each field of one shape; an entry without an answer has weight 0."""

    logprob: Tensor
    reference: Tensor
    tokens: Tensor
    weight: Tensor

    @property
    def gain(self) -> Tensor:
        """How much more probable the answer is than under the reference, in nats."""
        return self.logprob - self.reference

    @property
    def mean(self) -> Tensor:
        """log p of a token, on average."""
        return self.logprob / self.tokens.clamp(min=1)


def preference_loss(margin: Tensor, beta: float = 1.0) -> Tensor:
    """Returns -log sigmoid(beta margin) (n,), which DPO and a reward model minimize.

    Args:
        margin: (n,), the difference of two gains, in nats.
        beta: its factor.
    """
    return -F.logsigmoid(beta * margin)


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """Returns (margin - 1 / (2 beta))^2 (n,), for margins (n,): the difference of two gains."""
    return (margin - 1 / (2 * beta)).square()


def simpo_loss(margin: Tensor, beta: float, target_margin: float) -> Tensor:
    """Returns -log sigmoid(beta margin - target_margin) (n,), for margins (n,): differences of means of log p."""
    return -F.logsigmoid(beta * margin - target_margin)


def log_odds(logprob: Tensor) -> Tensor:
    """Returns log(p / (1 - p)) of log p (n,); above `MAX_LOGPROB` it is that of `MAX_LOGPROB`."""
    logprob = logprob.clamp(max=MAX_LOGPROB)
    return logprob - torch.log(-torch.expm1(logprob))


def orpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, beta: float) -> Tensor:
    """Returns -chosen_mean - beta log sigmoid(log odds ratio) (n,).

    Args:
        chosen_mean, rejected_mean: (n,), mean log p of a token of the answer.
        beta: the paper's lambda.
    """
    return -chosen_mean - beta * F.logsigmoid(log_odds(chosen_mean) - log_odds(rejected_mean))


def kto_loss(
    gain: Tensor, desirable: Tensor, baseline: float, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """Returns weight (1 - sigmoid(beta (gain - baseline))) of a desirable answer, and with the other sign of others.

    Args:
        gain: (n,), in nats.
        desirable: (n,) bool.
        baseline: the KL divergence from the reference, at least 0, which the paper calls z_0.
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-sign * beta * (gain - baseline))


PairLoss = Callable[[Answers, Answers, DPOConfig, float], Tensor]  # (chosen, rejected, config, beta)


@dataclass(frozen=True)
class Objective:
    """What the stage needs to know of an objective.

    pair_loss: the loss of pairs; None where answers are judged one by one (kto), or a head scores them (reward).
    """

    pair_loss: PairLoss | None = None
    beta: float = 0.1  # where `dpo.beta` is open


OBJECTIVES = {
    "dpo": Objective(lambda chosen, other, config, beta: preference_loss(chosen.gain - other.gain, beta)),
    "ipo": Objective(lambda chosen, other, config, beta: ipo_loss(chosen.gain - other.gain, beta)),
    "simpo": Objective(
        lambda chosen, other, config, beta: simpo_loss(chosen.mean - other.mean, beta, config.target_margin), beta=2.0
    ),
    "orpo": Objective(lambda chosen, other, config, beta: orpo_loss(chosen.mean, other.mean, beta)),
    "kto": Objective(),
    "reward": Objective(),
}
