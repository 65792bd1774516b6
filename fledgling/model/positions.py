"""Positions: rotary angles for every head (RoPE), or a learned vector added to the embedding.

A positions module takes the embedded tokens and their positions and returns (x, rotary): the input of the first block,
and the cosines and sines by which attention rotates queries and keys (None where the positions are already in x). So a
block does not depend on which of the two a model has.

B batch, H heads, T time, D head width, d of it rotated, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.model.rope import make_frequencies, plain_frequencies

# cos and sin, (B or 1, 1, T, d/2), of `widen_rotary` (..., D); where layers differ, then those of layers with a window
Rotary = tuple[Tensor, ...]


def make_rotary_table(
    config: ModelConfig, device: torch.device | str = "cpu", local: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns cos and sin (context, d/2) of RoPE's angles (Su et al. 2021, arXiv 2104.09864), fp32.

    The sign of the sine holds the direction: `apply_rotary` rotates by -angle, as NanoChat does; with the sine negated
    it rotates by +angle, as Llama does. Attention depends on differences of angles only, so both are equally good, but
    weights trained with one do not fit the other.

    Args:
        local: the table of the layers with a window, of `rope_local_base`.
    """
    frequencies, scale = make_frequencies(config, device)
    if local:
        frequencies, scale = plain_frequencies(config.rope_local_base, config.rotary_width, device), 1.0
    angles = torch.outer(torch.arange(config.context, dtype=torch.float32, device=device), frequencies)
    return angles.cos() * scale, -config.rope_direction * angles.sin() * scale


def apply_rotary(x: Tensor, rotary: Rotary | None) -> Tensor:
    """Rotates the two halves of the first d values of x (B, H, T, D) against each other by -angle; None returns x."""
    if rotary is None:
        return x
    cos, sin = rotary
    if cos.shape[-1] == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
    width = 2 * cos.shape[-1]
    first, second = x[..., :width].chunk(2, dim=-1)
    rest = (x[..., width:],) if width < x.shape[-1] else ()
    return torch.cat((first * cos + second * sin, second * cos - first * sin, *rest), dim=-1)


def widen_rotary(rotary: Rotary | None, head_width: int) -> Rotary | None:
    """Returns cos and sin of width D, with which `apply_rotary` takes three operations instead of seven.

    Where only a part of a head is rotated, they are returned as they are.
    """
    if rotary is None or 2 * rotary[0].shape[-1] != head_width:
        return rotary
    pairs = zip(rotary[::2], rotary[1::2], strict=True)
    return tuple(wide for cos, sin in pairs for wide in (torch.cat((cos, cos), dim=-1), torch.cat((sin, -sin), dim=-1)))


class RotaryPositions(nn.Module):
    """Angles from tables, for every position up to the context; nothing is learned."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kinds = (False, True) if config.rope_local_base else (False,)
        self.names = [f"{part}{'_local' if local else ''}" for local in kinds for part in ("cos", "sin")]
        tables = [table for local in kinds for table in make_rotary_table(config, torch.get_default_device(), local)]
        for name, table in zip(self.names, tables, strict=True):
            self.register_buffer(name, table, persistent=False)  # (context, d/2)

    def forward(self, x: Tensor, positions: slice | Tensor) -> tuple[Tensor, Rotary | None]:
        """x (B, T, C), positions a slice of length T or (B, T) -> x, and cosines and sines in x's dtype."""
        tables = [self.get_buffer(name)[positions].to(x.dtype) for name in self.names]
        if tables[0].ndim == 2:
            return x, tuple(table[None, None] for table in tables)  # (1, 1, T, d/2)
        return x, tuple(table[:, None] for table in tables)  # (B, 1, T, d/2)


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
