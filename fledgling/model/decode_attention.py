"""Attention of one new token of each row, with the cache's tables on the device: no host read, and static shapes.

So a step can be captured as a CUDA graph. Two kernels:

    varlen   PyTorch's `varlen_attn` reads the blocks of a row in place (FlashAttention 3 or 4, where they are active)
    gather   compiled: two reductions, into which the compiler fuses the look-up of keys and values: each is read once,
             in place. Else blocks are copied side by side, then scaled_dot_product_attention: three times the bytes

`choose_decode_kernel` selects one for a model. FlashAttention 2, which PyTorch brings, rejects block tables.

B rows, N blocks of S tokens, P blocks in the longest table, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DecodeKernel = Literal["varlen", "gather"]
VARLEN_BLOCK_SIZE = 256  # tokens
PAGED_IMPLS = ("FA3", "FA4")
MAX_VARLEN_HEAD_WIDTH = 256


@dataclass(frozen=True)
class DecodeLayer:
    """Keys and values of one layer, and where a step of B rows reads and writes them.

    keys, values: (N S, G, D), all blocks one after another.
    slots: (B,) int64, where the new keys and values are stored.
    block_tables: (B, P) int32.
    lengths: (B,) int32, tokens of each row, the new one included.
    row_starts: (B + 1,) int32, 0, 1, ..., B: `varlen` packs rows, and here each has one query.
    mask: (B, 1, 1, P S), true for keys that are seen; `gather` needs it.
    """

    kernel: DecodeKernel
    block_size: int
    keys: Tensor
    values: Tensor
    slots: Tensor
    block_tables: Tensor
    lengths: Tensor
    row_starts: Tensor
    mask: Tensor | None
    window_size: int | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Stores the new keys and values (B, G, 1, D), and returns attention (B, H, 1, D) of q (B, H, 1, D)."""
        rows, heads, _, width = q.shape
        groups = k.shape[1]
        self.keys.index_put_((self.slots,), k.reshape(rows, groups, width).to(self.keys.dtype))
        self.values.index_put_((self.slots,), v.reshape(rows, groups, width).to(self.values.dtype))
        if self.kernel == "varlen":
            return self._attend_varlen(q.reshape(rows, heads, width)).view(rows, heads, 1, width)
        if torch.compiler.is_compiling():
            return self._attend_fused(q)
        tables = self.block_tables.flatten()
        keys, values = (
            part.view(-1, self.block_size, groups, width)
            .index_select(0, tables)
            .view(rows, -1, groups, width)
            .transpose(1, 2)
            for part in (self.keys, self.values)
        )  # (B, G, P S, D)
        queries = q.reshape(rows, groups, -1, width)  # (B, G, H / G, D): heads that share keys are queries of one group
        y = F.scaled_dot_product_attention(queries, keys.to(q.dtype), values.to(q.dtype), attn_mask=self.mask)
        return y.reshape(rows, heads, 1, width)

    def _attend_fused(self, q: Tensor) -> Tensor:
        """Returns attention (B, H, 1, D) of q (B, H, 1, D): products and sums that the compiler fuses with look-ups.

        Uncompiled it would make tensors of (B, P S, H, D) in fp32. Entries of a table after a row's last block are
        block 0, which all rows share, so that they are read from the processor's cache.
        """
        assert self.mask is not None
        rows, heads, _, width = q.shape
        groups = self.keys.shape[1]
        offsets = torch.arange(self.block_size, device=q.device, dtype=torch.int32)
        tokens = (self.block_tables[:, :, None] * self.block_size + offsets).flatten(1)  # (B, P S)
        keys, values = (part[tokens][:, :, :, None].float() for part in (self.keys, self.values))  # (B, P S, G, 1, D)
        queries = q.reshape(rows, 1, groups, -1, width).float() * width**-0.5
        scores = (queries * keys).sum(-1)  # (B, P S, G, H / G)
        weights = scores.masked_fill(~self.mask.view(rows, -1, 1, 1), float("-inf")).softmax(1)
        return (weights[..., None] * values).sum(1).reshape(rows, heads, 1, width).to(q.dtype)

    def _attend_varlen(self, q: Tensor) -> Tensor:
        """Returns attention (B, H, D) of q (B, H, D), each row over the blocks of its table."""
        from torch.nn.attention.varlen import varlen_attn

        groups, width = self.keys.shape[1:]
        keys, values = (part.view(-1, self.block_size, groups, width) for part in (self.keys, self.values))
        attended = varlen_attn(
            q,
            keys,
            values,
            self.row_starts,
            None,
            1,
            self.block_size * self.block_tables.shape[1],
            window_size=(-1, -1) if self.window_size is None else (self.window_size - 1, 0),
            enable_gqa=q.shape[1] != groups,
            seqused_k=self.lengths,
            block_table=self.block_tables,
        )
        assert isinstance(attended, Tensor)
        return attended


def make_decode_mask(lengths: Tensor, keys: int, window_size: int | None) -> Tensor:
    """Returns (B, 1, 1, keys): whether the newest token of each row, of `lengths` (B,) tokens, sees a key."""
    positions = torch.arange(keys, device=lengths.device, dtype=lengths.dtype)
    ends = lengths.view(-1, 1, 1, 1)
    visible = positions < ends
    return visible if window_size is None else visible & (positions >= ends - window_size)


def choose_decode_kernel(device: torch.device, dtype: torch.dtype, head_width: int) -> DecodeKernel:
    """Returns "varlen" where device, dtype, head width and the active flash attention support it, else "gather"."""
    if device.type != "cuda" or torch.version.hip or dtype not in (torch.bfloat16, torch.float16):
        return "gather"
    if head_width % 8 or head_width > MAX_VARLEN_HEAD_WIDTH or not has_paged_varlen():
        return "gather"
    return "varlen"


def has_paged_varlen() -> bool:
    """Whether `varlen_attn` reads blocks through a table: torch 2.12 or newer, with FlashAttention 3 or 4 active.

    A program activates it by `torch.nn.attention.activate_flash_attention_impl("FA3")`, for the whole process.
    """
    try:
        from torch.nn.attention import current_flash_attention_impl
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "block_table" in inspect.signature(varlen_attn).parameters and current_flash_attention_impl() in PAGED_IMPLS
