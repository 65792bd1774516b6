"""Matrices in 8 or 4 bits: groups of neighbouring values in a row share a scale.

The one idea: a value is scale x level, the scale of its group in bf16 and the level by rounding to the nearest. In 8
bits the levels are the integers -127 to 127. In 4 bits they are sixteen unevenly spaced ones, made for values that are
normally distributed within a group; a group's scale is the one of several tried that leaves the least error.

All levels are whole numbers that bf16 holds exactly, so a product may turn indices into bf16 and lose nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fledgling.config import UserError

DEFAULT_GROUP_SIZES = {8: 64, 4: 32}  # default group of each width
INTERLEAVED_COLUMNS = (
    64  # columns in 4 bits that lie together in 32 bytes: the first 32 in the low halves, the others in the high
)
# Lloyd's algorithm (1982) on groups of 32 normal values, each group divided by its value of largest magnitude and
# turned so that this one is -127. Relative error .077 on trained matrices; evenly spaced levels leave .085.
LEVELS_4BIT = (-127, -103, -83, -66, -51, -37, -24, -11, 2, 15, 28, 41, 56, 72, 90, 113)
SCALE_CANDIDATES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 1.03)  # of a group's first scale
GROUPS_PER_CHUNK = 1 << 14  # groups at a time: what stays in the processor's cache


def check_quantization(bits: int, group_size: int) -> None:
    """Raise UserError unless a matrix can be kept so."""
    if bits not in DEFAULT_GROUP_SIZES:
        raise UserError(f"--bits {bits}: expected 8 or 4")
    if group_size < 32 or group_size & (group_size - 1):
        raise UserError(
            f"--group-size {group_size}: expected a power of two from 32, such as {DEFAULT_GROUP_SIZES[bits]}"
        )


def check_columns(name: str, columns: int, bits: int, group_size: int) -> None:
    """Raise UserError unless rows of that many columns are whole groups."""
    unit = max(group_size, INTERLEAVED_COLUMNS) if bits == 4 else group_size
    if columns % unit:
        raise UserError(
            f"{name} has {columns} columns, expected a multiple of {unit} for {bits} bits in groups of {group_size}"
        )


def quantize_matrix(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """weight (N, K) -> values, int8 (N, K) or uint8 (N, K / 2), and scales, bf16 (N, K / group).

    Largest error of a value in 8 bits: half a scale, a 1/254 of its group's largest magnitude (up to bf16's rounding).
    """
    groups = weight.detach().float().reshape(-1, group_size)  # (N K / group, group)
    if bits == 8:
        scale = _round_scale(groups.abs().amax(1, keepdim=True) / 127)
        values = (groups / scale).nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8)
        return values.view(weight.shape), scale.to(torch.bfloat16).view(len(weight), -1)
    parts = [_nearest_levels(part) for part in groups.split(GROUPS_PER_CHUNK)]
    index, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    return _interleave(index.view(weight.shape)), scale.to(torch.bfloat16).view(len(weight), -1)


def _round_scale(scale: Tensor) -> Tensor:
    """As bf16 will hold it: values are rounded against the scale that is kept, so its own rounding costs nothing."""
    return scale.to(torch.bfloat16).float()


def _nearest_levels(groups: Tensor) -> tuple[Tensor, Tensor]:
    """groups (n, group) -> the indices of their levels, uint8, and the scales (n, 1) that leave the least error."""
    levels = torch.tensor(LEVELS_4BIT, dtype=torch.float32, device=groups.device)
    between = (levels[1:] + levels[:-1]) / 2
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    best = torch.full_like(extreme, float("inf"))
    scale, index = torch.zeros_like(extreme), torch.zeros(groups.shape, dtype=torch.uint8, device=groups.device)
    for share in SCALE_CANDIDATES:
        tried = _round_scale(extreme * share / LEVELS_4BIT[0])
        found = torch.bucketize((groups / tried).nan_to_num_(0.0), between, out_int32=True)
        error = (levels[found] * tried - groups).square().sum(1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        index = torch.where(better, found.to(torch.uint8), index)
    return index, scale


def _interleave(index: Tensor) -> Tensor:
    """Indices (N, K) of 4 bits -> (N, K / 2) bytes."""
    low, high = index.view(len(index), -1, 2, INTERLEAVED_COLUMNS // 2).unbind(2)
    return (low | high << 4).reshape(len(index), -1)


def dequantize_matrix(values: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantize` up to its rounding: (N, K) in dtype, rounded once."""
    if bits == 8:
        levels = values.float()
    else:
        table = torch.tensor(LEVELS_4BIT, dtype=torch.float32, device=values.device)
        halves = values.view(len(values), -1, 1, INTERLEAVED_COLUMNS // 2)
        index = torch.cat((halves & 15, halves >> 4), dim=2).reshape(len(values), -1)
        levels = table[index.int()]
    groups = levels.view(len(values), scales.shape[1], -1)
    return (groups * scales.float()[:, :, None]).view(levels.shape).to(dtype)
