"""How many floating-point operations one training token costs.

The one idea: each weight of a matrix costs 2 operations forward and 4 backward; attention adds its two
products over the whole context. Per token, with as many key/value heads as query heads,

    6 (12 L C^2 + V C) + 12 L H D T        depth 20, V 65,536, T 2,048: 3,491,758,080

What it counts by convention: the embedding is a look-up and costs nothing; attention counts the full T x T
square, although a causal kernel needs half of it. The same convention stands behind every MFU this package
prints.
"""

from __future__ import annotations

from fledgling.model.config import ModelConfig
from fledgling.plan.size import matrices


def per_token(config: ModelConfig, context: int | None = None) -> int:
    """Return FLOPs of forward and backward for one token of a `context`-long row (default: the model's)."""
    T = config.context if context is None else context
    L, C = config.depth, config.width  # H x D = C
    return 6 * (matrices(config) + config.vocab_size * C) + 12 * L * C * T


def per_token_forward(config: ModelConfig, context: int | None = None) -> int:
    """Return FLOPs of the forward pass alone for one token: a third of training's."""
    return per_token(config, context) // 3


def mfu(config: ModelConfig, tokens_per_second: float, peak_flops: float, ranks: int = 1) -> float:
    """Return model FLOPs utilization in [0, 1]: the share of all ranks' peak that the model's own FLOPs are.

    `peak_flops` is one device's FLOP/s in the training dtype; tokens_per_second is over all ranks.
    """
    return per_token(config) * tokens_per_second / (peak_flops * ranks)
