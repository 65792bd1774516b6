"""Multi-token prediction: a position predicts the next token and, with smaller weights, those after it.

The loss of a position with hidden state h is  sum over k = 0 ... n of w_k (-log p(y_k | h)), where y_0 is its target
and y_k the target k places later in the same document. All come from one head and one hidden state, so the model and
its answers are unchanged, and so are the products of a step. The weights are w_0 = 1 and w_k = 2^-k. With n targets,
the steps are divided into n equal parts: in each, the weight of the furthest target that is left falls linearly to 0;
for n = 2 they are 1, 1/2, 1/4 -> 0, then 1, 1/2 -> 0, then 1.

The loss that a step records is this sum, over the number of y_0. Evaluations are of the next token alone.

Sources: several tokens from one hidden state, with a head each, Gloeckle et al. 2024, arXiv 2404.19737; with one head
and weights that fall, the GPT-2 speed-runs (Jordan et al. 2024, modded-nanogpt: "multi-token prediction").

B rows, T positions, K = n + 1 targets of a position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fledgling.data.batch import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class MultiTokenTargets:
    """Targets of a position after its first, and the steps over which their weights fall; 0 steps: they stay."""

    count: int = 0
    steps: int = 0

    def weights_at(self, step: int) -> list[float]:
        """Returns w_0 ... w_m of a step; targets without weight are left out."""
        weights = [2.0**-k for k in range(self.count + 1)]
        if self.steps == 0 or self.count == 0:
            return weights
        finished = self.count * step / self.steps  # parts
        last = self.count - int(finished)
        return [*weights[:last], weights[last] * (1 - finished % 1)] if last > 0 else weights[:1]

    def add(self, batch: Batch, step: int) -> Batch:
        """Returns the batch with the weights of a step, 0 where a target is ignored, or in another document."""
        weights = self.weights_at(step)
        if len(weights) == 1:
            return batch
        exists = torch.stack([batch.targets != IGNORE_INDEX] * len(weights), -1)
        for k in range(1, len(weights)):
            exists[:, :, k] &= shift_left(batch.targets, k, IGNORE_INDEX) != IGNORE_INDEX
            if batch.document_ids is not None:
                exists[:, :, k] &= shift_left(batch.document_ids, k, -1) == batch.document_ids
        return replace(batch, target_weights=exists * torch.tensor(weights))


NEXT_TOKEN_ONLY = MultiTokenTargets()


def shift_left(values: Tensor, places: int, fill: int) -> Tensor:
    """Returns, at each position of (B, T), the value `places` positions later, `fill` after the end of the row."""
    return torch.nn.functional.pad(values[:, places:], (0, min(places, values.shape[1])), value=fill)


def stack_targets(targets: Tensor, weights: Tensor) -> Tensor:
    """Returns the targets y_0 ... y_(K - 1) of each position (B, T, K) of targets (B, T) with weights (B, T, K)."""
    return torch.stack([shift_left(targets, k, IGNORE_INDEX) for k in range(weights.shape[-1])], -1)
