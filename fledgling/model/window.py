"""Attention over the last W tokens only: the mask, and the same by pieces of a long row.

One idea: a query sees the W keys that end with its own. A piece of W queries needs at most 2 W - 1 keys, so cut in
pieces the work grows with T W instead of T^2, whatever kernel multiplies the piece.

Source: Beltagy et al. 2020, arXiv 2004.05150; as a pattern of short and long layers in GPT-3, Brown et al. 2020.

B batch, T queries, S keys, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def window_mask(queries: Tensor, keys: Tensor, window_size: int | None) -> Tensor:
    """Whether keys at positions (..., S) are in the window of queries at (..., T), and not behind them: (..., T, S)."""
    ahead = queries[..., :, None] - keys[..., None, :]
    return ahead >= 0 if window_size is None else (ahead >= 0) & (ahead < window_size)


def first_visible_key(start: int, window_size: int | None) -> int:
    """The first key that any query from `start` on can see."""
    return 0 if window_size is None else max(0, start - window_size + 1)


def windowed_sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window_size: int, min_piece: int = 128
) -> Tensor:
    """Windowed attention of q (B, H, T, D) over k, v (B, G, T, D) by PyTorch's kernel, max(window, least) rows a time.

    mask (B, 1, T, T): added to the scores, 0 where seen and -inf elsewhere; None: causal.
    """
    time, outputs = q.shape[2], []
    places = torch.arange(time, device=q.device)
    size, grouped = max(window_size, min_piece), q.shape[1] != k.shape[1]
    for start in range(0, time, size):
        end, first = min(start + size, time), first_visible_key(start, window_size)
        seen = window_mask(places[start:end], places[first:end], window_size)
        if mask is not None:
            seen = mask[:, :, start:end, first:end].masked_fill(~seen, float("-inf"))
        part = (t[:, :, first:end] for t in (k, v))
        outputs.append(F.scaled_dot_product_attention(q[:, :, start:end], *part, attn_mask=seen, enable_gqa=grouped))
    return torch.cat(outputs, dim=2)
