"""Causal self-attention with grouped key/value heads. Start with `Attention.forward`, which chooses one of six ways:

    blockwise_attention   short rows on a CPU, in training and prefill
    fused_attention       long rows and GPUs: PyTorch's kernel (fused_attention.py)
    windowed_sdpa         the same with a window (window.py)
    flex_sdpa             training with a block mask on CUDA (cuda_attention.py)
    paged_attention       new tokens after those of a cache, block by block
    DecodeLayer.attend    one new token of each row, with all tables on the device (decode_attention.py)

Where queries and keys are normalized, |q k| / sqrt(D) <= sqrt(D) and the softmax needs no maximum. So for short rows
`blockwise_attention` is two matrix products around one fused exponential, which on CPU is 3x faster than PyTorch's
kernel (docs/decisions/measured-choices.md). Families that do not normalize subtract each row's maximum.

B batch, T queries, S keys, C width, H heads, G key/value heads, D head width, N blocks of a cache, M shared blocks with
K rows each, R = H / G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.model.cache import CacheBatch
from fledgling.model.cuda_attention import BlockMask, flex_sdpa
from fledgling.model.decode_attention import DecodeLayer
from fledgling.model.fused_attention import fused_attention, repeat_heads
from fledgling.model.linear import Linear, apply_linear, apply_linears
from fledgling.model.positions import Rotary
from fledgling.model.query_key import choose_rotary, make_query_key
from fledgling.model.scalars import Gate
from fledgling.model.value_embedding import make_value_embedding
from fledgling.model.window import first_visible_key, window_mask, windowed_sdpa

QUERY_BLOCK = 128  # queries of a block: keys after a block's end are never multiplied
MAX_BLOCKWISE_TRAINING = 1024  # tokens: above it (T, T) scores, kept for backward, exceed the processor's cache
MAX_BLOCKWISE_INFERENCE = 2048  # without backward a block's scores are freed at once
MIN_SCORE = -1e30  # the maximum over keys none of which is seen: far below any score, and finite


@dataclass(frozen=True)
class TreeMask:
    """Rows that fork: a trunk, then branches, each of which sees the trunk and itself but no other branch.

    branches: (B, T) int64, 0 on the trunk, else the number of the branch; padding may have any number of its own.
    positions: (B, T) int64, the position of a token along the trunk and its own branch.
    """

    branches: Tensor
    positions: Tensor

    def visible_mask(self, queries: slice, window_size: int | None = None) -> Tensor:
        """Returns (B, queries, queries.stop): whether a query sees a key along the tree.

        With a window_size only the last `window_size` positions are seen, and none after the query; without one,
        causality is left to the caller.
        """
        keys = self.branches[:, None, : queries.stop]
        visible = (keys == 0) | (keys == self.branches[:, queries, None])
        if window_size is None:
            return visible
        return visible & window_mask(self.positions[:, queries], self.positions[:, : queries.stop], window_size)

    def previous_places(self) -> tuple[Tensor, Tensor]:
        """Returns the place in the row of the token before each one along the tree, and whether there is one (B, T).

        A branch begins after the trunk, whose places are its positions.
        """
        places = torch.arange(self.branches.shape[1], device=self.branches.device).expand_as(self.branches)
        same_branch = F.pad(self.branches[:, 1:] == self.branches[:, :-1], (1, 0))
        return torch.where(same_branch, places, self.positions).sub(1).clamp(min=0), self.positions > 0


def masked_exp(scores: Tensor, visible: Tensor, bounded: bool) -> Tensor:
    """Returns exp(scores) where visible and 0 elsewhere, fp32; each row's maximum is subtracted unless bounded.

    bounded: |score| <= sqrt(D), as for normalized queries and keys (11.3 for D = 128): far inside the range of fp32.
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
    """Computes causal attention in blocks of queries. Exact up to rounding.

    Args:
        q, k, v: (B, H, T, D).
        document_ids: (B, T), attention stays within equal numbers; None: one document a row.
        bounded: whether the root mean square of q and k is at most 1, so that no maximum is subtracted.
        tree: rows that fork; None: rows that do not.
        window_size: number of keys that a query sees, its own included; None: all.

    Returns:
        (B, H, T, D).
    """
    time, scale = q.shape[2], q.shape[3] ** -0.5
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # else each block would make and keep its own copies
    outputs = []
    index_window = window_size if tree is None else None  # along a branch, positions count and not indices
    for start in range(0, time, QUERY_BLOCK):
        end, first = min(start + QUERY_BLOCK, time), first_visible_key(start, index_window)
        scores = (q[:, :, start:end] @ k[:, :, first:end].transpose(2, 3)).float() * scale  # (B, H, block, keys)
        queries, keys = (torch.arange(begin, end, device=q.device) for begin in (start, first))
        visible = window_mask(queries, keys, index_window)  # (block, keys)
        if document_ids is not None:
            same = document_ids[:, start:end, None] == document_ids[:, None, first:end]
            visible = (visible & same)[:, None]  # (B, 1, block, keys)
        if tree is not None and (window_size or tree.branches[:, start:end].any()):
            visible = (visible & tree.visible_mask(slice(start, end), window_size))[:, None]
        weights = masked_exp(scores, visible, bounded)
        total = weights.sum(-1, keepdim=True)  # (B, H, block, 1)
        outputs.append((weights.to(v.dtype) @ v[:, :, first:end]) / total.to(v.dtype))
    return torch.cat(outputs, dim=2)


def uses_blockwise_attention(x: Tensor) -> bool:
    """Whether rows x (B, T, ...) take `blockwise_attention`; others `fused_attention` with a `make_attention_mask`."""
    longest = MAX_BLOCKWISE_TRAINING if torch.is_grad_enabled() else MAX_BLOCKWISE_INFERENCE
    return x.device.type == "cpu" and x.shape[1] <= longest


def make_attention_mask(x: Tensor, document_ids: Tensor | None, tree: TreeMask | None) -> Tensor:
    """Returns the mask of rows x (B, T, ...) for `fused_attention`: (B or 1, 1, T, T), 0 where seen, -inf elsewhere.

    It has x's dtype, and is made once for all layers. From a boolean mask each layer would make and keep such a tensor
    of its own, T^2 values for each row.
    """
    time = x.shape[1]
    visible = torch.ones(time, time, dtype=torch.bool, device=x.device).tril()[None]  # (1, T, T)
    if document_ids is not None:
        visible = visible & (document_ids[:, :, None] == document_ids[:, None, :])
    if tree is not None:
        visible = visible & tree.visible_mask(slice(0, time))
    return torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill_(~visible, float("-inf"))[:, None]


def paged_attention(
    q: Tensor, cache_batch: CacheBatch, layer: int, bounded: bool = True, window_size: int | None = None
) -> Tensor:
    """Computes attention of new queries over the blocks of a cache, each read in place and only once.

    A block gives a partial result (sum of weighted values, sum of weights) for every query that sees it. A row's
    partial results add up to the softmax over all its keys; where scores are not bounded, each is relative to its own
    maximum (Milakov and Gimelshein 2018, arXiv 1805.02867). A block that several rows share is read with all their
    queries at once. Exact up to rounding: products round to q's dtype block by block, the sums over blocks are fp32.

    Args:
        q: (B, H, T, D).
        bounded, window_size: see `blockwise_attention`.

    Returns:
        (B, H, T, D) in q's dtype.
    """
    batch, heads, time, width = q.shape
    keys, values, plan = cache_batch.cache.keys[layer], cache_batch.cache.values[layer], cache_batch.attention_plan
    groups = keys.shape[1]
    queries = q.reshape(batch, groups, -1, width)  # (B, G, R T, D): heads that share keys are one group of queries
    blocked, shared_blocked = cache_batch.blocked_mask(window_size)
    partials = [partial_attention(queries[plan.query_rows], keys[plan.span], values[plan.span], blocked, bounded)]
    output_rows = [plan.output_rows]
    for shared, mask in zip(plan.shared_blocks, shared_blocked, strict=True):
        blocks, rows = shared.query_rows.shape
        joined = queries[shared.query_rows].transpose(1, 2).reshape(blocks, groups, -1, width)  # (M, G, K R T, D)
        results = partial_attention(joined, keys[shared.blocks], values[shared.blocks], mask, bounded)
        by_row = [part.view(blocks, groups, rows, -1, part.shape[-1]).transpose(1, 2) for part in results]
        sums, totals, maxima = (part.reshape(blocks * rows, groups, -1, part.shape[-1]) for part in by_row)
        partials.append((sums, totals, maxima))
        output_rows.append(shared.output_rows.flatten())
    sums, totals, maxima = partials[0] if len(partials) == 1 else map(torch.cat, zip(*partials, strict=True))
    if not bounded:
        rows_of_partials = torch.cat(output_rows)
        row_maxima = maxima.new_full((batch + 1, *maxima.shape[1:]), MIN_SCORE)
        row_maxima.scatter_reduce_(0, rows_of_partials[:, None, None, None].expand_as(maxima), maxima, "amax")
        factor = (maxima - row_maxima[rows_of_partials]).exp()
        sums, totals = sums * factor, totals * factor
    if batch == 1 and not plan.shared_blocks:  # every partial result belongs to the one row
        sums, totals = sums.sum(0), totals.sum(0)
    else:
        sums, totals = (
            torch.embedding_bag(part.flatten(1), plan.partial_order, plan.row_offsets)[0]  # (B, ...), in order
            for part in (sums, totals)
        )
    y = sums.view(batch, heads, time, width) / totals.view(batch, heads, time, 1)
    return y.to(q.dtype)


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None, bounded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the partial attention of queries over cache blocks.

    Args:
        q: (N, G, K R T, D), of K rows for each block.
        k, v: (N, G, S, D).
        blocked: (N, K, T, S), true for keys that a query must not see; None blocks no key.
        bounded: whether no maximum is needed.

    Returns:
        In fp32: sums of weighted values (N, G, K R T, D), sums of weights (N, G, K R T, 1), and the scores' maxima of
        the same shape. With `bounded`, the sums of weights are returned in place of the maxima.
    """
    scores = (q @ k.to(q.dtype).transpose(2, 3)).float() * q.shape[3] ** -0.5  # (N, G, K R T, S)
    if blocked is not None:
        by_row = scores.view(*scores.shape[:2], blocked.shape[1], -1, *blocked.shape[2:])  # (N, G, K, R, T, S)
        scores = by_row.masked_fill_(blocked[:, None, :, None], float("-inf")).view(scores.shape)
    maxima = None
    if bounded:
        weights = scores.exp_()
    else:
        maxima = scores.amax(-1, keepdim=True).clamp(min=MIN_SCORE)
        weights = (scores - maxima).exp()
    totals = weights.sum(-1, keepdim=True)
    return (weights.to(q.dtype) @ v.to(q.dtype)).float(), totals, totals if maxima is None else maxima


def exclude_own_value(y: Tensor, v: Tensor) -> Tensor:
    """Returns attention y (B, H, T, D) without its part along the token's own value v (B, G, T, D).

    Source: exclusive self-attention, Zhai 2026, arXiv 2603.09078.
    """
    groups = v.shape[1]
    y, own = y.unflatten(1, (groups, -1)), v[:, :, None].float()  # (B, G, H / G, T, D), (B, G, 1, T, D)
    share = (y.float() * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True).clamp(min=1e-12)
    return (y - (share * own).to(y.dtype)).flatten(1, 2)


class Attention(nn.Module):
    """Projects, rotates and normalizes queries and keys as the configuration says, attends, and projects back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.window_size = layer, config.layer_window_size(layer)
        self.rotary_part = choose_rotary(config, layer)
        self.bounded = config.qk_norm and config.qk_norm_weights == "none"
        self.cuts_rows = True  # with a window; False: a mask of the whole row, for a graph without loops
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        kv_width = config.kv_heads * config.head_width
        self.q_proj = Linear(config.width, config.attention_width, bias=config.qkv_bias)
        self.k_proj = Linear(config.width, kv_width, bias=config.qkv_bias)
        self.v_proj = Linear(config.width, kv_width, bias=config.qkv_bias)
        self.o_proj = Linear(config.attention_width, config.width, bias=config.bias)
        self.query_key = make_query_key(config)
        self.value_embedding = make_value_embedding(config, layer)
        self.gate = Gate(config, config.heads) if config.head_gates else None
        self.is_exclusive = config.exclusive_attention

    @property
    def input_projections(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the residual stream."""
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def output_projection(self) -> nn.Linear:
        """The matrix that writes to the residual stream."""
        return self.o_proj

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None,
        document_ids: Tensor | None,
        cache_batch: CacheBatch | DecodeLayer | None = None,
        tree: TreeMask | None = None,
        deferred_scale: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
    ) -> Tensor:
        """Computes attention, (B, T, C) -> (B, T, C).

        Args:
            x: (B, T, C), normalized.
            rotary: cosines and sines of the positions; None without RoPE.
            document_ids: (B, T), for `blockwise_attention`.
            cache_batch: keys and values before x, extended by those of x; None without a cache. A `DecodeLayer` is
                that of this layer alone.
            deferred_scale: (B, T, 1), a factor of x still to be applied (flash_norm.py).
            tokens: (B, T), for value embeddings.
            mask: `make_attention_mask`, for rows that do not take `blockwise_attention`; or a block mask for CUDA.
        """
        batch, time, _ = x.shape

        def split_heads(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, time, heads, self.head_width).transpose(1, 2)  # (B, heads, T, D)

        q, k, v = apply_linears(x, self.input_projections, deferred_scale)
        v = v if self.value_embedding is None else self.value_embedding(v, tokens, x, deferred_scale)
        q, k, v = split_heads(q, self.heads), split_heads(k, self.kv_heads), split_heads(v, self.kv_heads)
        own_value = v
        bounded = self.bounded and x.dtype != torch.float16  # e^11.3 exceeds its largest number
        rotary = None if rotary is None or self.rotary_part is None else rotary[self.rotary_part]
        q, k = self.query_key(q, k, rotary, as_one=isinstance(cache_batch, DecodeLayer))
        if isinstance(cache_batch, CacheBatch):
            cache_batch.write(self.layer, k, v)
        if isinstance(cache_batch, DecodeLayer):
            y = cache_batch.attend(q, k, v)
        elif cache_batch is not None and not cache_batch.starts_empty:  # else a prompt is read like a training row
            y = paged_attention(q, cache_batch, self.layer, bounded, self.window_size)
        elif isinstance(mask, BlockMask):
            y = flex_sdpa(q, k, v, mask)
        elif mask is None and uses_blockwise_attention(x):
            if self.heads != self.kv_heads:
                k, v = repeat_heads(k, self.heads), repeat_heads(v, self.heads)
            y = blockwise_attention(q, k, v, document_ids, bounded, tree, self.window_size)
        elif self.window_size is not None and tree is None and self.cuts_rows:
            y = windowed_sdpa(q, k, v, mask, self.window_size)
        elif self.window_size is not None:
            assert mask is not None
            if tree is None:
                positions = torch.arange(time, device=q.device)[None]
                seen = window_mask(positions, positions, self.window_size)  # (1, T, T)
            else:
                seen = tree.visible_mask(slice(0, time), self.window_size)
            y = fused_attention(q, k, v, mask.masked_fill(~seen[:, None], float("-inf")))
        else:
            y = fused_attention(q, k, v, mask, causal=mask is None)
        y = exclude_own_value(y, own_value) if self.is_exclusive else y
        if self.gate is not None:
            y = y * (2 * self.gate(x, deferred_scale)).transpose(1, 2)[..., None]
        return apply_linear(y.transpose(1, 2).reshape(batch, time, -1), self.o_proj)
