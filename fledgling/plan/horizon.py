"""Derives the length of pretraining from the depth, by rules 1 to 3 of `fledgling.config.scaling_rules`.

A recipe can pin every value; a pinned value is used unchanged, and the rest follows from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fledgling.config import ModelConfig, UserError, scaling_rules
from fledgling.plan.parameters import count_law_parameters


@dataclass(frozen=True)
class PretrainHorizon:
    """The length of pretraining: tokens = steps x batch_tokens."""

    batch_tokens: int
    steps: int

    @property
    def tokens(self) -> int:
        """Training tokens in total."""
        return self.batch_tokens * self.steps


def compute_horizon(
    config: ModelConfig, batch_tokens: int | None = None, steps: int | None = None, stage: str = "pretrain"
) -> PretrainHorizon:
    """Returns the horizon of a model; `batch_tokens` and `steps` pin its values. stage: whose table gives them."""
    tokens = scaling_rules.TOKENS_PER_PARAMETER * count_law_parameters(config)
    if batch_tokens is None:
        batch_tokens = max(config.context, choose_batch_tokens(tokens))
    if batch_tokens % config.context:
        raise UserError(f"{stage}.batch_tokens: got {batch_tokens}, expected whole rows of {config.context}")
    return PretrainHorizon(batch_tokens, max(1, tokens // batch_tokens) if steps is None else steps)


def choose_batch_tokens(tokens: int) -> int:
    """Returns the batch size in tokens for a run of `tokens` tokens: the power of two nearest to rule 3."""
    return 2 ** round(math.log2(scaling_rules.optimal_batch_tokens(tokens)))
