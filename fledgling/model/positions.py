"""Where a token stands: rotary angles for every head, or a learned vector added to the embedding.

One idea: a part takes the embedded tokens and their positions and gives back (x, rotary): what flows on, and what
attention has to turn queries and keys by (None where positions are already in x). So a block need not know which of
the two a model has.

B batch, H heads, T time, D head width, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig

Rotary = tuple[Tensor, Tensor]  # cos and sin, (B or 1, 1, T, D/2)


def make_rotary_table(config: ModelConfig, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """cos and sin (context, D/2) of RoPE's angles (Su et al. 2021, arXiv 2104.09864), fp32.

    The direction is in the sine: `rotate` turns by -angle, as NanoChat does; with the sine negated it turns by
    +angle, as Llama does. Attention sees differences of angles only, so either is as good; weights trained with one
    mean something else with the other.
    """
    pairs = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_base ** (pairs / config.head_width)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), -config.rope_direction * angles.sin()


def apply_rotary(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Rotate the two halves of x (B, H, T, D) against each other by -angle; None leaves x as it is."""
    if rotary is None:
        return x
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


class RotaryPositions(nn.Module):
    """Angles from a table, for every position up to the context; nothing is learned."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cos, sin = make_rotary_table(config, torch.get_default_device())
        self.register_buffer("cos", cos, persistent=False)  # (context, D/2)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, positions: slice | Tensor) -> tuple[Tensor, Rotary | None]:
        """x (B, T, C) at positions index, a slice of T or (B, T) -> x, and cos and sin in x's dtype."""
        cos, sin = self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype)
        if cos.ndim == 2:
            return x, (cos[None, None], sin[None, None])  # (1, 1, T, D/2)
        return x, (cos[:, None], sin[:, None])  # (B, 1, T, D/2)


class LearnedPositions(nn.Module):
    """A vector for every position (context, C), added to the embedding (Radford et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.context, config.width))

    def forward(self, x: Tensor, positions: slice | Tensor) -> tuple[Tensor, Rotary | None]:
        """x (B, T, C) at positions index, a slice of T or (B, T) -> x with its positions, and no angles."""
        return x + self.weight[positions].to(x.dtype), None


def make_positions(config: ModelConfig) -> nn.Module:
    """The part that `config.positions` names."""
    return (RotaryPositions if config.positions == "rope" else LearnedPositions)(config)
