"""Attention over the last W tokens only: the mask, and attention by pieces of a long row.

A query sees the W keys that end with its own. A piece of W queries needs at most 2 W - 1 keys, so in pieces the work
grows with T W instead of T^2, whatever kernel multiplies a piece.

Source: Beltagy et al. 2020, arXiv 2004.05150; as a pattern of short and long layers in GPT-3, Brown et al. 2020.

B batch, T queries, S keys, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fledgling.model.fused_attention import fused_attention

WINDOW_PIECE = 128  # fewest queries of a piece


def window_mask(queries: Tensor, keys: Tensor, window_size: int | None) -> Tensor:
    """Returns (..., T, S): whether a query sees a key, from positions of queries (..., T) and keys (..., S).

    A key is seen if it is not after the query and less than window_size tokens before it; None: all keys not after it.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    return distance >= 0 if window_size is None else (distance >= 0) & (distance < window_size)


def first_visible_key(start: int, window_size: int | None) -> int:
    """Returns the first key that any query at position `start` or later can see."""
    return 0 if window_size is None else max(0, start - window_size + 1)


def windowed_sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window_size: int, min_piece: int = WINDOW_PIECE
) -> Tensor:
    """Computes windowed attention with PyTorch's kernel, max(window_size, min_piece) queries at a time.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, T, D).
        mask: (B, 1, T, T), added to the scores: 0 where a key is seen, -inf elsewhere; None is causal.

    Returns:
        (B, H, T, D).
    """
    time, outputs = q.shape[2], []
    positions = torch.arange(time, device=q.device)
    size = max(window_size, min_piece)
    for start in range(0, time, size):
        end, first = min(start + size, time), first_visible_key(start, window_size)
        visible = window_mask(positions[start:end], positions[first:end], window_size)
        if mask is not None:
            visible = mask[:, :, start:end, first:end].masked_fill(~visible, float("-inf"))
        outputs.append(fused_attention(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], visible))
    return torch.cat(outputs, dim=2)
