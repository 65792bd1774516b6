"""Value embeddings: a second embedding table, added to the values of attention in some of the layers.

A layer's values are a function of the residual stream; a vector that depends on the token alone is added to them, so
that deep layers need not keep the token's identity in the stream. It costs memory and a look-up, and no product.

Sources: value residuals, Zhou et al. 2024, arXiv 2410.17897; as separate tables in the GPT-2 speed-runs (Jordan et al.
2024, modded-nanogpt). Here the vector is added without a gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig


class ValueEmbedding(nn.Module):
    """v + table[token], over the whole key/value width K."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.kv_heads * config.head_width))

    def forward(self, v: Tensor, tokens: Tensor) -> Tensor:
        """v (B, T, K), tokens (B, T) -> (B, T, K) in v's dtype."""
        return v + nn.functional.embedding(tokens, self.weight).to(v.dtype)


def make_value_embedding(config: ModelConfig, layer: int) -> ValueEmbedding | None:
    """Returns the layer's value embedding, or None where it has none."""
    return ValueEmbedding(config) if config.has_value_embedding(layer) else None
