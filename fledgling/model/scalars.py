"""Learned scalars and gates: what the optional features multiply by.

A scalar is one number for all tokens; a gate is one in (0, 1) for each token and head, from the first values of the
normalized input. Both begin with given values, so that a fresh model is the one without them, or nearly so.

B batch, T time, C width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.config.model import GATE_WIDTH


class LearnedScalars(nn.Module):
    """Numbers, with weight (n,)."""

    def __init__(self, *initial_values: float) -> None:
        super().__init__()
        self.initial_values = initial_values
        self.weight = nn.Parameter(torch.tensor(initial_values))


class Gate(nn.Module):
    """sigmoid(W x[:32]) for each of `heads` heads, with weight (heads, 32), initially 1/2."""

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, min(GATE_WIDTH, config.width)))

    def forward(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """x (B, T, C), and a factor (B, T, 1) still to be applied -> (B, T, H)."""
        z = F.linear(x[..., : self.weight.shape[1]], self.weight.to(x.dtype))
        return torch.sigmoid(z if deferred_scale is None else z * deferred_scale)
