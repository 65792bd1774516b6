"""Quantized matrices on CUDA, multiplied by PyTorch's own kernel for weights in 4 bits.

`torch.ops.aten._weight_int4pack_mm` multiplies bf16 by values q of 4 bits, w = (q - 8) scale + zero, with one scale and
zero for each group of columns. A level v of our format (format.py) is a whole number of 8 bits, v = 16 h + l with h in
[-8, 7] and l in [0, 15]; so a matrix is the sum of two such matrices,

    high: scale 16 s, zero 0, q = h + 8         low: scale s, zero 8 s, q = l

and both products together read 8 bits a value instead of 16. Levels are kept exactly; the kernel rounds each half to
bf16, as a dequantized matrix is rounded. The unevenly spaced levels of the 4-bit format are no numbers of 4 bits, so on
CUDA they take 8 as well.

On a CPU the same operation has another name and layout; it is used for tests alone (native.py is faster).

N rows, K columns, M rows of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fledgling.kernels.format import dequantize_matrix

KERNEL_GROUP_SIZES = (32, 64, 128, 256)
INNER_TILES = (8, 4, 2)  # of 16 columns: the most that divide K
ROW_TILE = 8
MIN_CAPABILITY = (8, 0)
MAX_DEVICE_ROWS = 128  # of x; with more a dequantized matrix is about as fast


@dataclass(frozen=True)
class DeviceMatrix:
    """Two packed matrices of 4 bits whose sum is a quantized matrix (N, K).

    high, low: as `_convert_weight_to_int4pack` packs them.
    high_scales, low_scales: (K / group_size, N, 2) bf16, scales and zeros.
    """

    high: Tensor
    low: Tensor
    high_scales: Tensor
    low_scales: Tensor
    group_size: int

    def multiply(self, x: Tensor) -> Tensor:
        """Computes x (..., K) -> (..., N), both bf16."""
        aten = torch.ops.aten
        product = aten._weight_int4pack_mm if x.device.type == "cuda" else aten._weight_int4pack_mm_for_cpu
        flat = x.reshape(-1, x.shape[-1])  # (M, K)
        high, low = (
            product(flat, packed, self.group_size, scales)
            for packed, scales in ((self.high, self.high_scales), (self.low, self.low_scales))
        )
        return (high + low).view(*x.shape[:-1], -1)

    def copy_(self, other: DeviceMatrix) -> None:
        """Takes over another matrix of the same sizes, in place."""
        for name in ("high", "low", "high_scales", "low_scales"):
            getattr(self, name).copy_(getattr(other, name))


def can_pack(values: Tensor, scales: Tensor, bits: int) -> bool:
    """Returns whether a matrix can be multiplied on its device: CUDA of capability 8.0, and sizes of the kernel.

    Args:
        values: (N, K) int8, or (N, K / 2) uint8 of 4 bits.
        scales: (N, K / group).
        bits: 8 or 4.
    """
    rows, columns = values.shape[0], values.shape[1] * (2 if bits == 4 else 1)
    fits = columns // scales.shape[1] in KERNEL_GROUP_SIZES and not rows % ROW_TILE and not columns % 32
    is_cuda = values.device.type == "cuda" and torch.version.hip is None  # AMD's kernel has other tiles and fewer cards
    return fits and is_cuda and torch.cuda.get_device_capability(values.device) >= MIN_CAPABILITY


def pack_device_matrix(values: Tensor, scales: Tensor, bits: int) -> DeviceMatrix:
    """Packs a quantized matrix of `format.quantize_matrix`: values (N, K) or (N, K / 2), scales (N, K / group_size)."""
    ones = torch.ones_like(scales)
    levels = dequantize_matrix(values, ones, bits, torch.float32).to(torch.int32)  # (N, K), -127 to 127
    high, low = (levels >> 4) + 8, levels & 15
    by_group = scales.t().to(torch.bfloat16)  # (K / group_size, N)
    zeros = torch.zeros_like(by_group)
    return DeviceMatrix(
        _pack_nibbles(high),
        _pack_nibbles(low),
        torch.stack((16 * by_group, zeros), dim=-1).contiguous(),
        torch.stack((by_group, 8 * by_group), dim=-1).contiguous(),
        levels.shape[1] // scales.shape[1],
    )


def _pack_nibbles(values: Tensor) -> Tensor:
    """Packs values (N, K) from 0 to 15, int32, as the kernel of their device reads them."""
    tiles = next(tiles for tiles in INNER_TILES if not values.shape[1] % (16 * tiles))
    if values.device.type == "cuda":
        pairs = (values[:, ::2] << 4 | values[:, 1::2]).to(torch.uint8)  # (N, K / 2)
        return torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, tiles)
