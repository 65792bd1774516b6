"""Causal self-attention: turned and normalized queries and keys, grouped heads, three ways to the same sum.

One idea: where queries and keys are normalized, |q k| / sqrt(D) <= sqrt(D) and the softmax needs no maximum: for short
rows, `blockwise` is two matrix products around one fused exponential, which on CPU is 3x faster than the library's
kernel (docs/benchmarks.md). Families that do not normalize take the same way with the maximum subtracted. Long rows
and GPUs use the library's kernel; decoding attends to the blocks of a cache (`paged`).

B batch, T queries, S keys, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.model.cache import Reading
from fledgling.model.config import ModelConfig
from fledgling.model.feed_forward import project
from fledgling.model.norm import RMSNorm
from fledgling.model.positions import Rotary, rotate
from fledgling.model.value_embedding import make_value_embedding
from fledgling.model.window import first_key, in_pieces, near

BLOCK = 128  # queries a block: keys beyond a block's end are never multiplied
LONGEST_PLAIN = 1024  # beyond it (T, T) scores, kept for backward, no longer stay in the processor's cache
LONGEST_READ = 2048  # of rows that are only read: a block's scores are let go at once
LOWEST = -1e30  # a maximum over keys none of which is seen: far below any score, and finite


@dataclass(frozen=True)
class Tree:
    """Rows that fork: a trunk, then branches side by side that see the trunk and themselves, never each other.

    branches (B, T) int64: 0 on the trunk, else the branch's number; positions (B, T) int64: how far a token stands from
    the row's beginning along its own branch. Padding behind a row may have any number of its own.
    """

    branches: Tensor
    positions: Tensor

    def seen(self, queries: slice, window: int | None = None) -> Tensor:
        """(B, queries, queries.stop): whether a query sees a key, causality aside, `window` tokens back where given."""
        keys = self.branches[:, None, : queries.stop]
        seen = (keys == 0) | (keys == self.branches[:, queries, None])
        if window is None:
            return seen
        return seen & near(self.positions[:, queries], self.positions[:, : queries.stop], window)


def exponentials(scores: Tensor, seen: Tensor, bounded: bool) -> Tensor:
    """exp(scores) where seen, 0 elsewhere, in fp32; less each row's maximum unless the scores are bounded.

    bounded: |score| <= sqrt(D), as of normalized queries and keys (11.3 for D = 128): far inside fp32 as it is.
    """
    scores = scores.masked_fill(~seen, float("-inf"))  # masked before exp: backward then keeps one tensor, not two
    if bounded:
        return scores.exp()
    return (scores - scores.detach().amax(-1, keepdim=True)).exp()  # a shift of the whole row cancels in the quotient


def blockwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    bounded: bool = True,
    tree: Tree | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention of q (B, H, T, D) over k, v (B, H, T, D), inside documents (B, T) or along a tree where given.

    bounded: q and k have root mean square 1 at most, so no maximum is subtracted; window: keys that a query sees, its
    own included; None: all. Exact up to rounding.
    """
    time, scale = q.shape[2], q.shape[3] ** -0.5
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # each block would else make and keep copies of its own
    outputs = []
    straight = window if tree is None else None  # along a branch, positions count and not places
    for start in range(0, time, BLOCK):
        end, first = min(start + BLOCK, time), first_key(start, straight)
        scores = (q[:, :, start:end] @ k[:, :, first:end].transpose(2, 3)).float() * scale  # (B, H, block, keys)
        rows, keys = (torch.arange(begin, end, device=q.device) for begin in (start, first))
        seen = near(rows, keys, straight)  # (block, keys)
        if documents is not None:
            same = documents[:, start:end, None] == documents[:, None, first:end]
            seen = (seen & same)[:, None]  # (B, 1, block, keys)
        if tree is not None and (window or tree.branches[:, start:end].any()):
            seen = (seen & tree.seen(slice(start, end), window))[:, None]
        weights = exponentials(scores, seen, bounded)
        total = weights.sum(-1, keepdim=True)  # (B, H, block, 1)
        outputs.append((weights.to(v.dtype) @ v[:, :, first:end]) / total.to(v.dtype))
    return torch.cat(outputs, dim=2)


def is_plain(x: Tensor) -> bool:
    """Whether rows x (B, T, ...) go through `blockwise`; the others go through `library`."""
    longest = LONGEST_PLAIN if torch.is_grad_enabled() else LONGEST_READ
    return x.device.type == "cpu" and x.shape[1] <= longest


def row_mask(x: Tensor, documents: Tensor | None, tree: Tree | None) -> Tensor:
    """What rows x (B, T, ...) may see of themselves, in x's dtype: (B, 1, T, T), 0 where seen, -inf elsewhere.

    One for all layers: each would else turn a boolean one into its own and keep it, T^2 values a row and layer.
    """
    time = x.shape[1]
    seen = torch.ones(time, time, dtype=torch.bool, device=x.device).tril()
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])
    if tree is not None:
        seen = seen & tree.seen(slice(0, time))
    return torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill_(~seen, float("-inf"))[:, None]


def library(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same sum by PyTorch's scaled_dot_product_attention; k, v (B, G, T, D), mask as `row_mask` makes it."""
    causal, grouped = mask is None, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def paged(q: Tensor, reading: Reading, layer: int, bounded: bool = True, window: int | None = None) -> Tensor:
    """Attention of new queries q (B, H, T, D) over a cache's blocks, each read where it lies and only once.

    A block gives a partial result (sum of weighted values, sum of weights) for every query that sees it; a row's
    partial results, each less its own maximum where scores are not bounded, add up to the softmax over all its keys
    (Milakov and Gimelshein 2018, arXiv 1805.02867). A block that several rows share is read with all their queries at
    once. Exact up to rounding: products round to q's dtype block by block, the sums over blocks are fp32.
    """
    batch, heads, time, width = q.shape
    keys, values, plan = reading.cache.keys[layer], reading.cache.values[layer], reading.plan
    groups = keys.shape[1]
    asked = q.reshape(batch, groups, -1, width)  # (B, G, H/G T, D): heads that share keys ask together
    hidden, of_shared = reading.hidden(window)
    parts = [partial(asked[plan.asks], keys[plan.span], values[plan.span], hidden, bounded)]
    owners = [plan.owners]
    for shared, unseen in zip(plan.shared, of_shared, strict=True):
        blocks, rows = shared.asks.shape
        together = asked[shared.asks].transpose(1, 2).reshape(blocks, groups, -1, width)  # (M, G, K H/G T, D)
        found = partial(together, keys[shared.blocks], values[shared.blocks], unseen, bounded)
        apart = (part.view(blocks, groups, rows, -1, part.shape[-1]).transpose(1, 2) for part in found)
        parts.append(tuple(part.reshape(blocks * rows, groups, -1, part.shape[-1]) for part in apart))
        owners.append(shared.owners.flatten())
    sums, totals, highest = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    if not bounded:
        owner = torch.cat(owners)
        top = highest.new_full((batch + 1, *highest.shape[1:]), LOWEST)
        top.scatter_reduce_(0, owner[:, None, None, None].expand_as(highest), highest, "amax")
        factor = (highest - top[owner]).exp()
        sums, totals = sums * factor, totals * factor
    if batch == 1 and not plan.shared:  # all that is not hidden is the one row's
        sums, totals = sums.sum(0), totals.sum(0)
    else:
        sums, totals = (
            torch.embedding_bag(part.flatten(1), plan.order, plan.begins)[0]  # (B, ...): each row's, added up in order
            for part in (sums, totals)
        )
    y = sums.view(batch, heads, time, width) / totals.view(batch, heads, time, 1)
    return y.to(q.dtype)


def partial(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, bounded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What blocks k, v (N, G, S, D) say to queries q (N, G, K R T, D), hidden (N, K, T, S) from some of them.

    fp32: weighted values (N, G, R T, D), sums of weights and the scores' maximum (N, G, R T, 1); of bounded scores the
    maximum is not asked for, and the sums stand in its place.
    """
    scores = (q @ k.to(q.dtype).transpose(2, 3)).float() * q.shape[3] ** -0.5  # (N, G, R T, S)
    if hidden is not None:
        apart = scores.view(*scores.shape[:2], hidden.shape[1], -1, *hidden.shape[2:])  # (N, G, K, R, T, S)
        scores = apart.masked_fill_(hidden[:, None, :, None], float("-inf")).view(scores.shape)
    highest = None
    if bounded:
        weights = scores.exp_()
    else:
        highest = scores.amax(-1, keepdim=True).clamp(min=LOWEST)
        weights = (scores - highest).exp()
    sums = weights.sum(-1, keepdim=True)
    return (weights.to(q.dtype) @ v.to(q.dtype)).float(), sums, sums if highest is None else highest


class Attention(nn.Module):
    """Project, rotate, normalize, attend, project back: rotation and normalization where the configuration has them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.bounded, self.window = layer, config.qk_norm, config.window_of(layer)
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        kv_width = config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.qk_norm = RMSNorm(config.norm_eps) if config.qk_norm else nn.Identity()
        self.value_embedding = make_value_embedding(config, layer)

    @property
    def inward(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the stream."""
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def outward(self) -> nn.Linear:
        """The matrix that writes to it."""
        return self.o_proj

    def forward(
        self,
        x: Tensor,  # (B, T, C)
        rotary: Rotary | None,
        documents: Tensor | None,  # (B, T), or the `row_mask` where rows are not plain
        cache: Reading | None = None,
        tree: Tree | None = None,
        factor: Tensor | None = None,  # (B, T, 1), what x is still to be times
        tokens: Tensor | None = None,  # (B, T), for values that know their token
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        batch, time, width = x.shape
        q = (
            project(x, self.q_proj, factor).view(batch, time, self.heads, self.head_width).transpose(1, 2)
        )  # (B, H, T, D)
        k = project(x, self.k_proj, factor).view(batch, time, self.kv_heads, self.head_width).transpose(1, 2)
        v = project(x, self.v_proj, factor)
        v = v if self.value_embedding is None else self.value_embedding(v, tokens)
        v = v.view(batch, time, self.kv_heads, self.head_width).transpose(1, 2)
        q, k = self.qk_norm(rotate(q, rotary)), self.qk_norm(rotate(k, rotary))
        if cache is not None:
            cache.write(self.layer, k, v)
        if cache is not None and not cache.fresh:  # where nothing came before a prompt is read as a training row is
            y = paged(q, cache, self.layer, self.bounded, self.window)
        elif is_plain(x):
            repeats = self.heads // self.kv_heads
            if repeats > 1:
                k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
            y = blockwise(q, k, v, documents, self.bounded, tree, self.window)
        elif self.window is not None and tree is None:
            y = in_pieces(q, k, v, documents, self.window)
        elif self.window is not None:
            far = ~tree.seen(slice(0, time), self.window)[:, None]
            y = library(q, k, v, documents.masked_fill(far, float("-inf")))
        else:
            y = library(q, k, v, documents)
        return project(y.transpose(1, 2).reshape(batch, time, width), self.o_proj)
