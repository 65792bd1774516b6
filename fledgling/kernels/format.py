"""The format of quantized matrices: 8 or 4 bits a value, and one scale for each group of adjacent values of a row.

A value is scale x level. The scale of its group is bf16; the level is the nearest one. In 8 bits the levels are the
integers -127 to 127. In 4 bits they are sixteen unevenly spaced ones, made for values that are normally distributed
within a group; a group's scale is the one of several candidates with the least error.

All levels are whole numbers that bf16 holds exactly, so a product may convert them to bf16 without an error.

N rows, K columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fledgling.config import UserError

DEFAULT_GROUP_SIZES = {8: 64, 4: 32}  # by bits
INTERLEAVED_COLUMNS = (
    64  # columns stored in 32 bytes: the first 32 in the low halves of the bytes, the rest in the high
)
# Lloyd's algorithm (1982) on groups of 32 normal values, each group scaled so that its value of largest magnitude is
# -127. Relative error .077 on trained matrices; evenly spaced levels leave .085.
LEVELS_4BIT = (-127, -103, -83, -66, -51, -37, -24, -11, 2, 15, 28, 41, 56, 72, 90, 113)
SCALE_CANDIDATES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 1.03)  # times a group's first scale
DEQUANTIZED_VALUES = {"cpu": 1 << 16}  # at once
GROUPS_PER_CHUNK = 1 << 14  # as many as stay in the processor's cache


def check_quantization(bits: int, group_size: int) -> None:
    """Raises UserError unless the bits and the group size are supported."""
    if bits not in DEFAULT_GROUP_SIZES:
        raise UserError(f"--bits {bits}: expected 8 or 4")
    if not _is_group_size(group_size):
        default = DEFAULT_GROUP_SIZES[bits]
        raise UserError(f"--group-size {group_size}: expected a power of two, at least 32, such as {default}")


def _is_group_size(group_size: int) -> bool:
    return group_size >= 32 and not group_size & (group_size - 1)


def _column_unit(bits: int, group_size: int) -> int:
    """Returns the number of columns that the width of a matrix must be a multiple of."""
    return max(group_size, INTERLEAVED_COLUMNS) if bits == 4 else group_size


def fits_format(columns: int, groups: int, bits: int) -> bool:
    """Returns whether rows of `columns` columns with `groups` scales have the format; code that reads it relies on it.

    The groups have one size, a power of two of at least 32, and in 4 bits the interleaved columns are whole.
    """
    group_size = columns // groups if groups else 0
    is_whole = group_size * groups == columns and _is_group_size(group_size)
    return is_whole and not columns % _column_unit(bits, group_size)


def check_columns(name: str, columns: int, bits: int, group_size: int) -> None:
    """Raises UserError unless rows of `columns` columns are whole groups."""
    unit = _column_unit(bits, group_size)
    if columns % unit:
        raise UserError(
            f"{name} has {columns} columns, expected a multiple of {unit} for {bits} bits in groups of {group_size}"
        )


def quantize_matrix(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantizes a matrix.

    The largest error of a value in 8 bits is half a scale, 1/254 of its group's largest magnitude (up to bf16's
    rounding).

    Args:
        weight: (N, K).
        bits: 8 or 4.

    Returns:
        values: int8 (N, K) or uint8 (N, K / 2).
        scales: bf16 (N, K / group_size).
    """
    groups = weight.detach().float().reshape(-1, group_size)  # (N K / group_size, group_size)
    if bits == 8:
        scale = _round_scale(groups.abs().amax(1, keepdim=True) / 127)
        values = (groups / scale).nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8)
        return values.view(weight.shape), scale.to(torch.bfloat16).view(len(weight), -1)
    parts = [_nearest_levels(part) for part in groups.split(GROUPS_PER_CHUNK)]
    index, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    return interleave(index.view(weight.shape)), scale.to(torch.bfloat16).view(len(weight), -1)


def _round_scale(scale: Tensor) -> Tensor:
    """Rounds a scale to bf16. Values are rounded against the stored scale, so its own rounding adds no error."""
    return scale.to(torch.bfloat16).float()


def _nearest_levels(groups: Tensor) -> tuple[Tensor, Tensor]:
    """groups (n, group_size) -> the indices of their levels, uint8, and the scales (n, 1) with the least error."""
    levels = torch.tensor(LEVELS_4BIT, dtype=torch.float32, device=groups.device)
    midpoints = (levels[1:] + levels[:-1]) / 2
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    best = torch.full_like(extreme, float("inf"))
    scale, index = torch.zeros_like(extreme), torch.zeros(groups.shape, dtype=torch.uint8, device=groups.device)
    for factor in SCALE_CANDIDATES:
        candidate = _round_scale(extreme * factor / LEVELS_4BIT[0])
        nearest = torch.bucketize((groups / candidate).nan_to_num_(0.0), midpoints, out_int32=True)
        error = (levels[nearest] * candidate - groups).square().sum(1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, candidate, scale)
        index = torch.where(better, nearest.to(torch.uint8), index)
    return index, scale


def interleave(index: Tensor) -> Tensor:
    """Packs indices (N, K) of 4 bits into (N, K / 2) bytes."""
    low, high = index.view(len(index), -1, 2, INTERLEAVED_COLUMNS // 2).unbind(2)
    return (low | high << 4).reshape(len(index), -1)


def dequantize_matrix(
    values: Tensor, scales: Tensor, bits: int, dtype: torch.dtype, levels_4bit: Sequence[float] = LEVELS_4BIT
) -> Tensor:
    """Inverts `quantize_matrix` up to its rounding: returns (N, K) in dtype, rounded once.

    Some rows at a time: the temporaries of 4 bits are eight times as large as the result.

    Args:
        values: (N, K) int8, or (N, K / 2) uint8 with two values of 4 bits each.
        scales: (N, K / group).
        bits: 8 or 4.
        dtype: of the result.
        levels_4bit: the 16 values that the codes of 4 bits mean.
    """
    columns = values.shape[1] * (2 if bits == 4 else 1)
    matrix = torch.empty(len(values), columns, dtype=dtype, device=values.device)
    rows = max(1, DEQUANTIZED_VALUES.get(values.device.type, 1 << 22) // columns)
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        matrix[part] = _dequantize_rows(values[part], scales[part], bits, levels_4bit)
    return matrix


def _dequantize_rows(values: Tensor, scales: Tensor, bits: int, levels_4bit: Sequence[float]) -> Tensor:
    if bits == 8:
        levels = values.float()
    else:
        table = torch.tensor(levels_4bit, dtype=torch.float32, device=values.device)
        halves = values.view(len(values), -1, 1, INTERLEAVED_COLUMNS // 2)
        index = torch.cat((halves & 15, halves >> 4), dim=2).reshape(len(values), -1)
        levels = table[index.int()]
    groups = levels.view(len(values), scales.shape[1], -1)
    return (groups * scales.float()[:, :, None]).view(levels.shape)
