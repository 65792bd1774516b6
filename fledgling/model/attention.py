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

from fledgling.config import ModelConfig
from fledgling.model.cache import CacheBatch
from fledgling.model.cuda_attention import BlockMask, flex_sdpa
from fledgling.model.feed_forward import apply_linear
from fledgling.model.norm import RMSNorm
from fledgling.model.positions import Rotary, apply_rotary
from fledgling.model.value_embedding import make_value_embedding
from fledgling.model.window import first_visible_key, window_mask, windowed_sdpa

QUERY_BLOCK = 128  # queries a block: keys beyond a block's end are never multiplied
MAX_BLOCKWISE_TRAINING = 1024  # beyond it (T, T) scores, kept for backward, no longer stay in the processor's cache
MAX_BLOCKWISE_INFERENCE = 2048  # of rows that are only read: a block's scores are let go at once
MIN_SCORE = -1e30  # a maximum over keys none of which is seen: far below any score, and finite


@dataclass(frozen=True)
class TreeMask:
    """Rows that fork: a trunk, then branches side by side that see the trunk and themselves, never each other.

    branches (B, T) int64: 0 on the trunk, else the branch's number; positions (B, T) int64: how far a token stands from
    the row's beginning along its own branch. Padding behind a row may have any number of its own.
    """

    branches: Tensor
    positions: Tensor

    def visible_mask(self, queries: slice, window_size: int | None = None) -> Tensor:
        """(B, queries, queries.stop): whether a query sees a key, causality aside, `window` tokens back where given."""
        keys = self.branches[:, None, : queries.stop]
        seen = (keys == 0) | (keys == self.branches[:, queries, None])
        if window_size is None:
            return seen
        return seen & window_mask(self.positions[:, queries], self.positions[:, : queries.stop], window_size)


def masked_exp(scores: Tensor, visible: Tensor, bounded: bool) -> Tensor:
    """exp(scores) where seen, 0 elsewhere, in fp32; less each row's maximum unless the scores are bounded.

    bounded: |score| <= sqrt(D), as of normalized queries and keys (11.3 for D = 128): far inside fp32 as it is.
    """
    scores = scores.masked_fill(~visible, float("-inf"))  # masked before exp: backward then keeps one tensor, not two
    if bounded:
        return scores.exp()
    return (scores - scores.detach().amax(-1, keepdim=True)).exp()  # a shift of the whole row cancels in the quotient


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    document_ids: Tensor | None,
    bounded: bool = True,
    tree: TreeMask | None = None,
    window_size: int | None = None,
) -> Tensor:
    """Causal attention of q (B, H, T, D) over k, v (B, H, T, D), inside documents (B, T) or along a tree where given.

    bounded: q and k have root mean square 1 at most, so no maximum is subtracted; window: keys that a query sees, its
    own included; None: all. Exact up to rounding.
    """
    time, scale = q.shape[2], q.shape[3] ** -0.5
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # each block would else make and keep copies of its own
    outputs = []
    straight = window_size if tree is None else None  # along a branch, positions count and not places
    for start in range(0, time, QUERY_BLOCK):
        end, first = min(start + QUERY_BLOCK, time), first_visible_key(start, straight)
        scores = (q[:, :, start:end] @ k[:, :, first:end].transpose(2, 3)).float() * scale  # (B, H, block, keys)
        rows, keys = (torch.arange(begin, end, device=q.device) for begin in (start, first))
        seen = window_mask(rows, keys, straight)  # (block, keys)
        if document_ids is not None:
            same = document_ids[:, start:end, None] == document_ids[:, None, first:end]
            seen = (seen & same)[:, None]  # (B, 1, block, keys)
        if tree is not None and (window_size or tree.branches[:, start:end].any()):
            seen = (seen & tree.visible_mask(slice(start, end), window_size))[:, None]
        weights = masked_exp(scores, seen, bounded)
        total = weights.sum(-1, keepdim=True)  # (B, H, block, 1)
        outputs.append((weights.to(v.dtype) @ v[:, :, first:end]) / total.to(v.dtype))
    return torch.cat(outputs, dim=2)


def uses_blockwise_attention(x: Tensor) -> bool:
    """Whether rows x (B, T, ...) go through `blockwise`; the others go through `library`."""
    longest = MAX_BLOCKWISE_TRAINING if torch.is_grad_enabled() else MAX_BLOCKWISE_INFERENCE
    return x.device.type == "cpu" and x.shape[1] <= longest


def make_attention_mask(x: Tensor, document_ids: Tensor | None, tree: TreeMask | None) -> Tensor:
    """What rows x (B, T, ...) may see of themselves, in x's dtype: (B, 1, T, T), 0 where seen, -inf elsewhere.

    One for all layers: each would else turn a boolean one into its own and keep it, T^2 values a row and layer.
    """
    time = x.shape[1]
    seen = torch.ones(time, time, dtype=torch.bool, device=x.device).tril()
    if document_ids is not None:
        seen = seen & (document_ids[:, :, None] == document_ids[:, None, :])
    if tree is not None:
        seen = seen & tree.visible_mask(slice(0, time))
    return torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill_(~seen, float("-inf"))[:, None]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same sum by PyTorch's scaled_dot_product_attention; k, v (B, G, T, D), mask as `row_mask` makes it."""
    causal, grouped = mask is None, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def paged_attention(
    q: Tensor, cache_batch: CacheBatch, layer: int, bounded: bool = True, window_size: int | None = None
) -> Tensor:
    """Attention of new queries q (B, H, T, D) over a cache's blocks, each read where it lies and only once.

    A block gives a partial result (sum of weighted values, sum of weights) for every query that sees it; a row's
    partial results, each less its own maximum where scores are not bounded, add up to the softmax over all its keys
    (Milakov and Gimelshein 2018, arXiv 1805.02867). A block that several rows share is read with all their queries at
    once. Exact up to rounding: products round to q's dtype block by block, the sums over blocks are fp32.
    """
    batch, heads, time, width = q.shape
    keys, values, plan = cache_batch.cache.keys[layer], cache_batch.cache.values[layer], cache_batch.attention_plan
    groups = keys.shape[1]
    asked = q.reshape(batch, groups, -1, width)  # (B, G, H/G T, D): heads that share keys ask together
    hidden, of_shared = cache_batch.blocked_mask(window_size)
    parts = [partial_attention(asked[plan.query_rows], keys[plan.span], values[plan.span], hidden, bounded)]
    owners = [plan.output_rows]
    for shared, unseen in zip(plan.shared_blocks, of_shared, strict=True):
        blocks, rows = shared.query_rows.shape
        together = asked[shared.query_rows].transpose(1, 2).reshape(blocks, groups, -1, width)  # (M, G, K H/G T, D)
        found = partial_attention(together, keys[shared.blocks], values[shared.blocks], unseen, bounded)
        apart = (part.view(blocks, groups, rows, -1, part.shape[-1]).transpose(1, 2) for part in found)
        parts.append(tuple(part.reshape(blocks * rows, groups, -1, part.shape[-1]) for part in apart))
        owners.append(shared.output_rows.flatten())
    sums, totals, highest = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    if not bounded:
        owner = torch.cat(owners)
        top = highest.new_full((batch + 1, *highest.shape[1:]), MIN_SCORE)
        top.scatter_reduce_(0, owner[:, None, None, None].expand_as(highest), highest, "amax")
        factor = (highest - top[owner]).exp()
        sums, totals = sums * factor, totals * factor
    if batch == 1 and not plan.shared_blocks:  # all that is not hidden is the one row's
        sums, totals = sums.sum(0), totals.sum(0)
    else:
        sums, totals = (
            torch.embedding_bag(part.flatten(1), plan.partial_order, plan.row_offsets)[
                0
            ]  # (B, ...): each row's, added up in order
            for part in (sums, totals)
        )
    y = sums.view(batch, heads, time, width) / totals.view(batch, heads, time, 1)
    return y.to(q.dtype)


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None, bounded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What blocks k, v (N, G, S, D) say to queries q (N, G, K R T, D), hidden (N, K, T, S) from some of them.

    fp32: weighted values (N, G, R T, D), sums of weights and the scores' maximum (N, G, R T, 1); of bounded scores the
    maximum is not asked for, and the sums stand in its place.
    """
    scores = (q @ k.to(q.dtype).transpose(2, 3)).float() * q.shape[3] ** -0.5  # (N, G, R T, S)
    if blocked is not None:
        apart = scores.view(*scores.shape[:2], blocked.shape[1], -1, *blocked.shape[2:])  # (N, G, K, R, T, S)
        scores = apart.masked_fill_(blocked[:, None, :, None], float("-inf")).view(scores.shape)
    highest = None
    if bounded:
        weights = scores.exp_()
    else:
        highest = scores.amax(-1, keepdim=True).clamp(min=MIN_SCORE)
        weights = (scores - highest).exp()
    sums = weights.sum(-1, keepdim=True)
    return (weights.to(q.dtype) @ v.to(q.dtype)).float(), sums, sums if highest is None else highest


class Attention(nn.Module):
    """Project, rotate, normalize, attend, project back: rotation and normalization where the configuration has them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.bounded, self.window_size = layer, config.qk_norm, config.layer_window_size(layer)
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        kv_width = config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.qk_norm = RMSNorm(config.norm_eps) if config.qk_norm else nn.Identity()
        self.value_embedding = make_value_embedding(config, layer)

    @property
    def input_projections(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the stream."""
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def output_projection(self) -> nn.Linear:
        """The matrix that writes to it."""
        return self.o_proj

    def forward(
        self,
        x: Tensor,  # (B, T, C)
        rotary: Rotary | None,
        documents: Tensor | BlockMask | None,  # (B, T), or the `row_mask` where rows are not plain
        cache_batch: CacheBatch | None = None,
        tree: TreeMask | None = None,
        deferred_scale: Tensor | None = None,  # (B, T, 1), what x is still to be times
        tokens: Tensor | None = None,  # (B, T), for values that know their token
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        batch, time, width = x.shape
        q = (
            apply_linear(x, self.q_proj, deferred_scale).view(batch, time, self.heads, self.head_width).transpose(1, 2)
        )  # (B, H, T, D)
        k = (
            apply_linear(x, self.k_proj, deferred_scale)
            .view(batch, time, self.kv_heads, self.head_width)
            .transpose(1, 2)
        )
        v = apply_linear(x, self.v_proj, deferred_scale)
        v = v if self.value_embedding is None else self.value_embedding(v, tokens)
        v = v.view(batch, time, self.kv_heads, self.head_width).transpose(1, 2)
        q, k = self.qk_norm(apply_rotary(q, rotary)), self.qk_norm(apply_rotary(k, rotary))
        if cache_batch is not None:
            cache_batch.write(self.layer, k, v)
        if (
            cache_batch is not None and not cache_batch.starts_empty
        ):  # where nothing came before a prompt is read as a training row is
            y = paged_attention(q, cache_batch, self.layer, self.bounded, self.window_size)
        elif isinstance(documents, BlockMask):
            y = flex_sdpa(q, k, v, documents)
        elif uses_blockwise_attention(x):
            repeats = self.heads // self.kv_heads
            if repeats > 1:
                k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
            y = blockwise_attention(q, k, v, documents, self.bounded, tree, self.window_size)
        elif self.window_size is not None and tree is None:
            y = windowed_sdpa(q, k, v, documents, self.window_size)
        elif self.window_size is not None:
            far = ~tree.visible_mask(slice(0, time), self.window_size)[:, None]
            y = sdpa(q, k, v, documents.masked_fill(far, float("-inf")))
        else:
            y = sdpa(q, k, v, documents)
        return apply_linear(y.transpose(1, 2).reshape(batch, time, width), self.o_proj)
