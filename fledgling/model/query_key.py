"""What happens to queries and keys before attention: rotation and normalization, in the order that a model has.

    without weights   rotated, then normalized (the order does not matter to the length, and was this one first)
    with weights      normalized and multiplied by the weights, for each head or over all of them, then rotated

B batch, H heads, T time, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.model.norm import RMSNorm, WeightedRMSNorm
from fledgling.model.positions import Rotary, apply_rotary


class RotateThenNorm(nn.Module):
    """Rotates, and divides by the root mean square where the model has qk_norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.qk_norm = RMSNorm(config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, q: Tensor, k: Tensor, rotary: Rotary | None, as_one: bool = False) -> tuple[Tensor, Tensor]:
        """q (B, H, T, D), k (B, G, T, D) -> the same shapes.

        Args:
            rotary: None where there are no positions.
            as_one: both in one tensor, for few values, where fewer kernels count.
        """
        if as_one and rotary is not None:
            both = self.qk_norm(apply_rotary(torch.cat((q, k), dim=1), rotary))
            q, k = both.split((q.shape[1], k.shape[1]), dim=1)
            return q, k
        return self.qk_norm(apply_rotary(q, rotary)), self.qk_norm(apply_rotary(k, rotary))


class NormThenRotate(nn.Module):
    """Normalizes with weights, for each head or over all heads together, then rotates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.over_heads = config.qk_norm_weights == "layer"
        heads = (config.heads, config.kv_heads) if self.over_heads else (1, 1)
        self.q_norm = WeightedRMSNorm(heads[0] * config.head_width, config.norm_eps)
        self.k_norm = WeightedRMSNorm(heads[1] * config.head_width, config.norm_eps)

    def forward(self, q: Tensor, k: Tensor, rotary: Rotary | None, as_one: bool = False) -> tuple[Tensor, Tensor]:
        """q (B, H, T, D), k (B, G, T, D) -> the same shapes; as `RotateThenNorm`, but each by itself."""
        normed = []
        for x, norm in ((q, self.q_norm), (k, self.k_norm)):
            if self.over_heads:
                rows = x.transpose(1, 2)  # (B, T, H, D)
                normed.append(norm(rows.flatten(2)).view(rows.shape).transpose(1, 2))
            else:
                normed.append(norm(x))
        return apply_rotary(normed[0], rotary), apply_rotary(normed[1], rotary)


def choose_rotary(config: ModelConfig, layer: int) -> slice | None:
    """Returns which of the tensors that `positions` returns are a layer's cos and sin; None: it has no positions.

    It is chosen once, by a value that layers of one kind share: a compiled block is compiled once for each kind.
    """
    if not config.has_rope(layer):
        return None
    return slice(2, 4) if config.has_local_rope(layer) else slice(0, 2)


def make_query_key(config: ModelConfig) -> RotateThenNorm | NormThenRotate:
    """Returns the part that `qk_norm` and `qk_norm_weights` name."""
    weighted = config.qk_norm and config.qk_norm_weights != "none"
    return NormThenRotate(config) if weighted else RotateThenNorm(config)
