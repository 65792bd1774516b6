"""PyTorch's scaled_dot_product_attention, called so that a CUDA card takes one of its fused kernels.

Grouped key/value heads are read in place by flash attention, which takes no mask, no fp32, and no card older than
capability 8.0 (a T4 has 7.5), and with a mask on some cards by cuDNN, which is not counted on. Else PyTorch falls back,
without a word, to products with scores of T x S for every head, kept for backward. So heads are repeated there: H / G
times the keys and values.

B batch, T queries, S keys, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH_CAPABILITY = 8  # major
MAX_FLASH_WIDTH = 256  # of a head


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """Computes attention, (B, H, T, D).

    Args:
        q: (B, H, T, D).
        k, v: (B, G, S, D).
        mask: (B or 1, 1, T, S) or (T, S), bool (true where a key is seen) or added to the scores; None without one.
        causal: of T = S without a mask: a query sees the keys up to its own.
    """
    grouped = q.shape[1] != k.shape[1]
    if grouped and not reads_grouped_heads(q, mask):
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def reads_grouped_heads(q: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel that PyTorch takes for q (B, H, T, D) reads grouped keys and values in place."""
    if q.device.type != "cuda":
        return True
    fits_flash = mask is None and q.dtype != torch.float32 and q.shape[-1] <= MAX_FLASH_WIDTH
    return fits_flash and torch.cuda.get_device_properties(q.device).major >= FLASH_CAPABILITY


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Returns (B, heads, S, D) of x (B, G, S, D): head h reads the keys or values of group h // (heads / G)."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)
