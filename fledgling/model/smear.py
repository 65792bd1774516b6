"""Smear: the token before, mixed into the embedded token: x_t + w g(x_t) x_{t-1}, with a number w and a gate g.

Every layer then reads pairs of tokens, which else takes a head of the first layer. At the start of a document nothing
is before. With a cache, the token before a row's first new one is read from the cache, which keeps the tokens of a
model with smear. Initially w = 0: the model without it.

Source: the GPT-2 speed-runs (Jordan et al. 2024, modded-nanogpt: "smear").

B batch, T time, C width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.model.attention import TreeMask
from fledgling.model.cache import CacheBatch
from fledgling.model.scalars import Gate, LearnedScalars


class Smear(nn.Module):
    """x + w g(x) previous."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = LearnedScalars(0.0)
        self.gate = Gate(config, 1)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """x and the embedded tokens before, zeros where there are none, both (B, T, C) -> (B, T, C)."""
        return x + self.scale.weight.to(x.dtype) * self.gate(x) * previous


def shift_embeddings(
    x: Tensor,
    tokens: Tensor,
    embed: Callable[[Tensor], Tensor],
    document_ids: Tensor | None,
    cache_batch: CacheBatch | None,
    tree: TreeMask | None,
) -> Tensor:
    """Returns the embedded token before each of the tokens, zeros where there is none, (B, T, C).

    Args:
        x: the embedded tokens (B, T, C).
        tokens: (B, T).
        embed: of tokens (B, 1), for the token before the first one in a cache.
        document_ids, cache_batch, tree: of `Transformer.forward`.
    """
    if cache_batch is not None:
        before, exists = exchange_tokens(cache_batch, tokens)
        return torch.cat([embed(before) * exists[..., None].to(x.dtype), x[:, :-1]], dim=1)
    if tree is not None:
        places, exists = tree.previous_places()
        return x.gather(1, places[..., None].expand_as(x)) * exists[..., None].to(x.dtype)
    previous = F.pad(x[:, :-1], (0, 0, 1, 0))
    if document_ids is None:
        return previous
    same = F.pad(document_ids[:, 1:] == document_ids[:, :-1], (1, 0))
    return previous * same[..., None].to(x.dtype)


def exchange_tokens(batch: CacheBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Stores new tokens (B, T) in a cache; returns the one before each row's first, and whether it exists, (B, 1)."""
    (stored,) = batch.cache.tokens
    stored[batch.block_indices, batch.block_offsets] = tokens
    places = batch.positions[:, :1] - 1
    before, size = places.clamp(min=0), batch.cache.block_size
    return stored[batch.padded_block_tables.gather(1, before // size), before % size], places >= 0


def make_smear(config: ModelConfig) -> Smear | None:
    """Returns the module that `config.smear` selects, or None."""
    return Smear(config) if config.smear else None
