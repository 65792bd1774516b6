"""Value embeddings: a second embedding table, added to the values of attention in some of the layers.

A layer's values are a function of the residual stream; a vector that depends on the token alone is added to them, so
that deep layers need not keep the token's identity in the stream. It costs memory and a look-up, and no product.

A gate for each key/value head, 2 sigmoid(W x), lets a token take less or more of it; initially it is 1.

The gradient of a table is a sum over the tokens of each entry. In a compiled block several threads would add to one
entry as they arrive, and the last digits would differ from run to run; `LookUp` keeps PyTorch's own kernel, which adds
in the order of the tokens.

Sources: value residuals, Zhou et al. 2024, arXiv 2410.17897; as separate tables, and with gates, in the GPT-2
speed-runs (Jordan et al. 2024, modded-nanogpt).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.model.scalars import Gate


class LookUp(torch.autograd.Function):
    """table[tokens], with a gradient that is the same bits at every call, compiled or not."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor) -> Tensor:
        """tokens (...), table (V, K) -> (..., K)."""
        ctx.save_for_backward(tokens)
        ctx.num_entries = len(table)
        return F.embedding(tokens, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None]:  # type: ignore[override]
        """The gradient of the output (..., K) -> the table's (V, K), None where it is frozen."""
        (tokens,) = ctx.saved_tensors
        return None, sum_by_entry(gradient, tokens, ctx.num_entries) if ctx.needs_input_grad[1] else None


@torch.library.custom_op("fledgling::sum_by_entry", mutates_args=())
def sum_by_entry(rows: Tensor, entries: Tensor, num_entries: int) -> Tensor:
    """Returns the sum of the rows (..., K) of each entry, (num_entries, K). The compiler calls it as it is."""
    return torch.ops.aten.embedding_dense_backward(rows, entries, num_entries, -1, False)


@sum_by_entry.register_fake
def _(rows: Tensor, entries: Tensor, num_entries: int) -> Tensor:
    return rows.new_empty(num_entries, rows.shape[-1])


class ValueEmbedding(nn.Module):
    """v + gate table[token], over the whole key/value width K."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.kv_heads * config.head_width))
        self.gate = Gate(config, config.kv_heads) if config.value_gates else None

    def forward(self, v: Tensor, tokens: Tensor, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """v (B, T, K), tokens (B, T), the layer's normalized input x (B, T, C) -> (B, T, K) in v's dtype."""
        added = LookUp.apply(tokens, self.weight).to(v.dtype)
        if self.gate is not None:
            gate = 2 * self.gate(x, deferred_scale)  # (B, T, G)
            added = (added.unflatten(-1, (gate.shape[-1], -1)) * gate[..., None]).flatten(-2)
        return v + added


def make_value_embedding(config: ModelConfig, layer: int) -> ValueEmbedding | None:
    """Returns the layer's value embedding, or None where it has none."""
    return ValueEmbedding(config) if config.has_value_embedding(layer) else None
