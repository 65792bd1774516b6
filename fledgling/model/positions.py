"""Positions: rotary angles for every head (RoPE), or a learned vector added to the embedding.

A positions module takes the embedded tokens and their positions and returns (x, rotary): the input of the first block,
and the cosines and sines by which attention rotates queries and keys (None where the positions are already in x). So a
block does not depend on which of the two a model has.

B batch, H heads, T time, D head width, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig

Rotary = tuple[Tensor, Tensor]  # cos and sin, (B or 1, 1, T, D/2); of `widen_rotary` (..., D)


def make_rotary_table(config: ModelConfig, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Returns cos and sin (context, D/2) of RoPE's angles (Su et al. 2021, arXiv 2104.09864), fp32.

    The sign of the sine holds the direction: `apply_rotary` rotates by -angle, as NanoChat does; with the sine negated
    it rotates by +angle, as Llama does. Attention depends on differences of angles only, so both are equally good, but
    weights trained with one do not fit the other.
    """
    pairs = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_base ** (pairs / config.head_width)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), -config.rope_direction * angles.sin()


def apply_rotary(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Rotates the two halves of x (B, H, T, D) against each other by -angle; None returns x."""
    if rotary is None:
        return x
    cos, sin = rotary
    if cos.shape[-1] == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def widen_rotary(rotary: Rotary | None) -> Rotary | None:
    """Returns cos and sin of width D, with which `apply_rotary` takes three operations instead of seven."""
    if rotary is None:
        return None
    cos, sin = rotary
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, -sin), dim=-1)


class RotaryPositions(nn.Module):
    """Angles from a table, for every position up to the context; nothing is learned."""

    cos: Tensor  # (context, D/2)
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cos, sin = make_rotary_table(config, torch.get_default_device())
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, positions: slice | Tensor) -> tuple[Tensor, Rotary | None]:
        """x (B, T, C), positions a slice of length T or (B, T) -> x, and cos and sin in x's dtype."""
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
        """x (B, T, C), positions a slice of length T or (B, T) -> x with the positions' vectors added, and None."""
        return x + self.weight[positions].to(x.dtype), None


def make_positions(config: ModelConfig) -> RotaryPositions | LearnedPositions:
    """Returns the module that `config.positions` names."""
    return (RotaryPositions if config.positions == "rope" else LearnedPositions)(config)
