"""GRPO, its variants, PPO and on-policy distillation: how advantages come about, and the loss that is minimized.

They differ in the baseline of an answer's reward. GRPO compares an answer with the others of its group; PPO estimates
the value of every token's state with a critic. The variants of GRPO differ in the surrogate and in two defaults:

    grpo      the clipped ratio of a token                        centered, token
    dr_grpo   the same (arXiv 2503.20783)                         centered, constant
    cispo     the clipped weight of a token (arXiv 2506.13585)    zscore, token
    gspo      the clipped ratio of an answer (arXiv 2507.18071)   zscore, sequence

On-policy distillation needs no reward: the model writes, and a teacher scores every token.

`make_algorithm` returns the one that `rl.algorithm` names.

Shapes: P prompts, G answers per prompt, B rows, T positions of packed rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fledgling.config import RLConfig, UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.train.critic import get_critic
from fledgling.train.loss import (
    CLIPPED,
    CLIPPED_ANSWERS,
    CLIPPED_WEIGHTS,
    StepMetrics,
    Surrogate,
    policy_gradient_loss,
)
from fledgling.train.rl.advantage import EPSILON, gae, group_advantages


class Algorithm(Protocol):
    """The parts of a policy-gradient stage that depend on the algorithm."""

    @property
    def loss_normalization(self) -> str:
        """What has equal weight in the loss: see `token_weights`."""
        ...

    def keep_groups(self, rewards: np.ndarray) -> np.ndarray:
        """Returns which groups are trained on, (P,) bool, from rewards (P, G)."""
        ...

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Returns each answer's advantage, (P, G), from rewards (P, G); 0 where `add_token_advantages` computes it."""
        ...

    def add_token_advantages(self, batches: Sequence[Batch], model: Transformer, world: World) -> None:
        """Writes what needs the current weights into this rank's packed `batches`; every rank calls it."""
        ...

    def loss(self, model: Transformer, batch: Batch, kl_weight: float, metrics: StepMetrics) -> Tensor:
        """Returns the loss summed over the batch's targets, and adds its parts to `metrics`.

        `kl_weight` multiplies the KL divergence from the reference policy.
        """
        ...


@dataclass(frozen=True)
class GRPO:
    """Group-relative policy optimization (arXiv 2402.03300), and its variants.

    default_advantages, default_weights: the normalizations where the recipe has none.
    """

    config: RLConfig
    surrogate: Surrogate = CLIPPED
    default_advantages: str = "centered"
    default_weights: str = "token"

    @property
    def loss_normalization(self) -> str:
        """What has equal weight in the loss."""
        return self.config.loss_normalization or self.default_weights

    def keep_groups(self, rewards: np.ndarray) -> np.ndarray:
        """Returns (P,) bool from rewards (P, G): False for groups of equal rewards, whose advantages are all 0.

        With a KL penalty or an entropy bonus all are kept: both terms are of the policy, whatever the rewards.
        """
        config = self.config
        keeps_all = not config.drop_uniform_groups or config.kl_weight > 0 or config.entropy_weight > 0
        return (np.ptp(rewards, axis=1) > 0) | keeps_all

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Returns each answer's advantage over its group, (P, G), as `rl.advantage_normalization` defines it.

        See `group_advantages`.
        """
        return group_advantages(rewards, self.config.advantage_normalization or self.default_advantages)

    def add_token_advantages(self, batches: Sequence[Batch], model: Transformer, world: World) -> None:
        """Does nothing: every token has the advantage of its answer."""

    def loss(self, model: Transformer, batch: Batch, kl_weight: float, metrics: StepMetrics) -> Tensor:
        """Returns the surrogate with its KL and entropy terms, summed over the batch's targets."""
        return policy_gradient_loss(model, batch, self.config, kl_weight, metrics, surrogate=self.surrogate)


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimization with a critic (arXiv 1707.06347) and generalized advantage estimation."""

    config: RLConfig

    @property
    def loss_normalization(self) -> str:
        """What has equal weight in the loss."""
        return self.config.loss_normalization or "token"

    def __post_init__(self) -> None:
        """Raises UserError for an advantage normalization that needs groups."""
        if self.config.advantage_normalization == "leave_one_out":
            raise UserError(
                'rl.advantage_normalization "leave_one_out" compares a group: with rl.algorithm="ppo" use centered or '
                "zscore"
            )

    def keep_groups(self, rewards: np.ndarray) -> np.ndarray:
        """Returns True for all groups (P,) of rewards (P, G): the critic learns from equal rewards too."""
        return np.ones(len(rewards), dtype=bool)

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Returns zeros (P, G): `add_token_advantages` computes an advantage per token from `Batch.rewards`."""
        return np.zeros_like(rewards)

    @torch.no_grad()
    def add_token_advantages(self, batches: Sequence[Batch], model: Transformer, world: World) -> None:
        """Writes `old_values`, `returns` and `advantages` into the batches.

        Advantages have mean 0 over the sampled tokens of all ranks, and deviation 1 with "zscore".
        """
        config, critic, moments = self.config, get_critic(model), []
        for batch in batches:
            assert batch.rewards is not None and batch.document_ids is not None
            on_device = batch.to(model.head.weight.device)
            batch.old_values = critic(model(on_device.tokens, on_device.document_ids)).to(batch.tokens.device)
            mask = (batch.targets != IGNORE_INDEX).numpy()
            rewards, values = batch.rewards.double().numpy(), batch.old_values.double().numpy()
            estimates = gae(rewards, values, mask, batch.document_ids.numpy(), config.gamma, config.gae_lambda)
            batch.returns = torch.from_numpy(np.where(mask, estimates + values, 0.0)).float()
            batch.advantages = torch.from_numpy(estimates).float()
            moments.append((math.fsum(estimates[mask]), math.fsum(estimates[mask] ** 2), int(mask.sum())))
        total, square, count = sum_over_ranks(moments, 3, world)
        mean = total / max(1, count)
        deviation = max(0.0, square / max(1, count) - mean**2) ** 0.5
        scale = 1 / (deviation + EPSILON) if config.advantage_normalization == "zscore" else 1.0
        for batch in batches:
            assert batch.advantages is not None
            batch.advantages = torch.where(batch.targets != IGNORE_INDEX, (batch.advantages - mean) * scale, 0.0)

    def loss(self, model: Transformer, batch: Batch, kl_weight: float, metrics: StepMetrics) -> Tensor:
        """Returns the loss of `GRPO.loss` plus the critic's value loss, summed over the batch's targets."""
        return policy_gradient_loss(model, batch, self.config, kl_weight, metrics, get_critic(model))


@dataclass(frozen=True)
class OnPolicyDistillation:
    """The reverse KL divergence KL(model | teacher) of every token that the model wrote (arXiv 2306.13649).

    The advantage of a token is log p of the teacher less log p of the policy that wrote it. Its policy gradient is the
    gradient of the divergence at the states that the model visits, without a bias; what a token does to the divergence
    of later ones is left out. The teacher is the stream's reference.
    """

    config: RLConfig

    def __post_init__(self) -> None:
        """Raises UserError for settings that have no meaning where a teacher scores every token."""
        for name in ("advantage_normalization", "kl_weight", "kl_target"):
            if value := getattr(self.config, name):
                raise UserError(
                    f"rl.{name} is {value}: with rl.algorithm=\"distill\" a token's advantage is the teacher's log p "
                    f"less the model's, and the teacher is the only reference; leave rl.{name} out"
                )

    @property
    def loss_normalization(self) -> str:
        """What has equal weight in the loss."""
        return self.config.loss_normalization or "token"

    def keep_groups(self, rewards: np.ndarray) -> np.ndarray:
        """Returns True for all groups (P,) of rewards (P, G): no reward is compared."""
        return np.ones(len(rewards), dtype=bool)

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Returns zeros (P, G): `add_token_advantages` compares with the teacher."""
        return np.zeros_like(rewards)

    def add_token_advantages(self, batches: Sequence[Batch], model: Transformer, world: World) -> None:
        """Writes `advantages` into the batches, whose `reference_logprobs` are the teacher's."""
        for batch in batches:
            assert batch.reference_logprobs is not None and batch.old_logprobs is not None
            difference = batch.reference_logprobs - batch.old_logprobs
            batch.advantages = torch.where(batch.targets != IGNORE_INDEX, difference, 0.0)

    def loss(self, model: Transformer, batch: Batch, kl_weight: float, metrics: StepMetrics) -> Tensor:
        """Returns the clipped surrogate, summed over the batch's targets."""
        return policy_gradient_loss(model, batch, self.config, 0.0, metrics)


ALGORITHMS: dict[str, Callable[[RLConfig], Algorithm]] = {
    "grpo": GRPO,
    "dr_grpo": partial(GRPO, default_weights="constant"),
    "cispo": partial(GRPO, surrogate=CLIPPED_WEIGHTS, default_advantages="zscore"),
    "gspo": partial(GRPO, surrogate=CLIPPED_ANSWERS, default_advantages="zscore", default_weights="sequence"),
    "ppo": PPO,
    "distill": OnPolicyDistillation,
}


def make_algorithm(config: RLConfig) -> Algorithm:
    """Returns the algorithm that the recipe names. Raises UserError for settings that it does not have."""
    return ALGORITHMS[config.algorithm](config)


def sum_over_ranks(rows: Sequence[tuple[float, ...]], columns: int, world: World) -> tuple[float, ...]:
    """Returns the sum of each of `columns` columns over the rows of all ranks.

    Nothing is rounded in between (`math.fsum`), so that the result does not depend on how the rows are distributed.
    """
    all_rows = list(chain(*world.all_gather_object(list(rows))))
    return tuple(math.fsum(row[column] for row in all_rows) for column in range(columns))
