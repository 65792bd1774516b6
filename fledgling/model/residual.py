"""The input of a block: the residual stream, or a mixture of it with the embedded token.

Two learned numbers for each layer, a x + b x0, let deep layers scale the stream down and read the token again.
Initially a = 1 and b = 0: the model without them.

Source: the GPT-2 speed-runs (Jordan et al. 2024, modded-nanogpt: "x0 lambdas").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig


class ResidualScalars(nn.Module):
    """a x + b x0, with weight = (a, b)."""

    initial_values = (1.0, 0.0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(self.initial_values))

    def forward(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """x, embeddings (B, T, C) -> (B, T, C)."""
        a, b = self.weight.to(x.dtype)
        return a * x + b * embeddings


def make_residual(config: ModelConfig) -> ResidualScalars | None:
    """Returns the module that `config.residual_scalars` selects, or None."""
    return ResidualScalars() if config.residual_scalars else None
