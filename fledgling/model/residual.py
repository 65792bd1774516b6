"""What a block reads of the stream: the stream itself, or a mixture of it with the embedded token.

One idea: two learned numbers a layer, a x + b x0, let deep layers turn the stream down and look back at the token. At
the beginning a = 1 and b = 0: the model without them.

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

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """x, embedded (B, T, C) -> (B, T, C)."""
        a, b = self.weight.to(x.dtype)
        return a * x + b * embedded


def make_residual(config: ModelConfig) -> ResidualScalars | None:
    """The part that `config.residual_scalars` asks for."""
    return ResidualScalars() if config.residual_scalars else None
