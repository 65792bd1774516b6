"""Optimizer state in the formats of `optimizer.state`. The rules compute in fp32: `read` gives it, `write` stores it.

    float32   the tensor itself; nothing is copied
    8bit      a code of 8 bits for each value, and a scale for each block of 256 values of a row
    host      fp32 in pinned memory of the host; it travels to the device for the update, and back

Small tensors keep fp32 on the device (`partition.py`, whose counts the planner uses). On a CPU, and on an Apple GPU,
which shares its memory, "host" is float32.

A block's codes are fractions of its largest magnitude: a sign, and 127 magnitudes, most of them near 1. The running
mean of squares is stored as its root, with 255 magnitudes, and a value above 0 not as 0: AdamW divides by that root,
and a rounded 0 would make a step of any length. Storing what was read changes no bit, so a step that changes nothing
keeps the state, and a checkpoint, which has fp32, resumes exactly. Blocks do not cross rows, so they are the same on
any number of ranks.

Source: Dettmers et al. 2021, 8-bit optimizers via block-wise quantization, arXiv 2110.02861, section 2, which stores
the mean of squares itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import EllipsisType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from fledgling.optim.owned import UpdateGroup, owned_shape, state_shape
from fledgling.optim.partition import STATE_BLOCK, Partition, is_small_state, state_piece_values

# A block whose largest magnitude (True: root) is not above this is 0: its smallest fraction, or the square of that,
# would be too small a number for fp32 to read back. AdamW adds a larger epsilon to roots.
SMALLEST_SCALE = {False: 1e-30, True: 1e-14}
Rows = int | slice | EllipsisType


class State(Protocol):
    """A moment of one parameter, or of a stack of matrices: what this rank owns of it."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        ...

    def __getitem__(self, rows: Rows) -> State:
        """Returns a part of the first dimension, which shares its memory."""
        ...

    def pieces(self) -> Iterator[Rows]:
        """Yields the parts of the first dimension that are updated one after another."""
        ...

    def read(self) -> Tensor:
        """Returns the values in fp32, on the device; what is done to them must be written."""
        ...

    def write(self, values: Tensor) -> None:
        """Stores values of the state's shape."""
        ...


@dataclass(frozen=True)
class PlainState:
    """fp32 on the device."""

    tensor: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.tensor.nbytes

    def __getitem__(self, rows: Rows) -> PlainState:
        return PlainState(self.tensor[rows])

    def pieces(self) -> Iterator[Rows]:
        """Yields one piece, which is all."""
        yield ...

    def read(self) -> Tensor:
        """Returns the tensor itself."""
        return self.tensor

    def write(self, values: Tensor) -> None:
        """Copies values of the state's shape, unless they are what was read."""
        if values is not self.tensor:
            self.tensor.copy_(values)


@dataclass(frozen=True)
class HostState:
    """fp32 in the host's memory, of a device. Copies are queued on the device's stream, and so happen in order."""

    tensor: Tensor
    device: torch.device
    nbytes: int = 0

    def __getitem__(self, rows: Rows) -> HostState:
        return HostState(self.tensor[rows], self.device)

    def pieces(self) -> Iterator[Rows]:
        """Yields slices of the rows."""
        return split_state_rows(self.tensor.shape, self.device)

    def read(self) -> Tensor:
        """Returns a copy on the device."""
        return self.tensor.to(self.device, non_blocking=True, copy=True)

    def write(self, values: Tensor) -> None:
        """Copies values of the state's shape by way of the device, after what is queued there."""
        self.tensor.copy_(values.to(self.device), non_blocking=True)


@dataclass(frozen=True)
class BlockwiseState:
    """Codes (..., columns), uint8, and scales (..., blocks), fp32; of the values' roots, if `is_root`."""

    codes: Tensor
    scales: Tensor
    codebook: Tensor
    is_root: bool

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.codes.nbytes + self.scales.nbytes

    def __getitem__(self, rows: Rows) -> BlockwiseState:
        return BlockwiseState(self.codes[rows], self.scales[rows], self.codebook, self.is_root)

    def pieces(self) -> Iterator[Rows]:
        """Yields slices of the rows."""
        return split_state_rows(self.codes.shape, self.codes.device)

    def read(self) -> Tensor:
        """Returns the values that the codes stand for."""
        values = torch.empty(self.codes.shape, device=self.codes.device)
        columns = self.codes.shape[-1]
        codes, scales, out = (t.reshape(-1, t.shape[-1]) for t in (self.codes, self.scales, values))
        for rows in split_state_rows(codes.shape, codes.device):
            fractions = self.codebook[codes[rows].int()]
            fractions *= scales[rows].repeat_interleave(STATE_BLOCK, dim=-1)[:, :columns]
            out[rows] = fractions.square_() if self.is_root else fractions
        return values

    def write(self, values: Tensor) -> None:
        """Rounds values to the nearest codes; roots above 0 to no less than the smallest."""
        limits, smallest = (self.codebook[1:] + self.codebook[:-1]) / 2, SMALLEST_SCALE[self.is_root]
        columns, blocks = self.codes.shape[-1], self.scales.shape[-1]
        codes, scales = self.codes.view(-1, columns), self.scales.view(-1, blocks)
        values = values.to(self.codes.device).reshape(-1, columns)
        for rows in split_state_rows(values.shape, values.device):
            x = values[rows].sqrt() if self.is_root else values[rows]
            x = pad(x, (0, blocks * STATE_BLOCK - columns)).unflatten(-1, (blocks, STATE_BLOCK))
            largest = x.abs().amax(-1)
            scales[rows] = largest * (largest > smallest)
            x = x / largest.clamp(min=smallest)[..., None]
            nearest = torch.bucketize(x, limits, out_int32=True)
            if self.is_root:
                nearest = torch.maximum(nearest, (x > 0).int())
            codes[rows] = nearest.flatten(1)[:, :columns].to(torch.uint8)


def make_codebook(is_root: bool, device: torch.device) -> Tensor:
    """Returns the fractions that codes represent, ascending: (256,) without a sign for roots, else (255,).

    Half of the magnitudes are in (.1, 1], a quarter in (.01, .1], and so on, evenly spaced in each. 1 is among them,
    with either sign, so that a block's largest value keeps its bits.
    """
    bits = 8 if is_root else 7
    decades = [
        torch.arange(1, 2 ** (bits - 1 - n) + 1, device=device) * (0.9 / 2 ** (bits - 1 - n)) + 0.1 for n in range(bits)
    ]
    magnitudes = torch.cat([decade.clamp(max=1.0) * 10.0**-n for n, decade in reversed([*enumerate(decades)])])
    magnitudes[-1].fill_(1.0)
    zero = torch.zeros(1, device=device)
    return torch.cat([zero, magnitudes] if is_root else [-magnitudes.flip(0), zero, magnitudes])


def split_state_rows(shape: torch.Size, device: torch.device) -> Iterator[slice]:
    """Yields slices of the first dimension, of at most `state_piece_values` values where a row has no more."""
    step = max(1, state_piece_values(device.type) // max(1, prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def make_state(shape: tuple[int, ...], name: str, whole: tuple[int, ...], form: str, device: torch.device) -> State:
    """Returns state of zeros.

    Args:
        shape: of what this rank owns; of a stack, with its matrices first.
        name: of the state, as in `optimizer.STATE_NAMES`.
        whole: shape of the parameter.
        form: of `optimizer.state`.
    """
    on_host = form == "host" and device.type in ("cuda", "xpu")  # as the planner's `resolve_state` says
    if is_small_state(name, whole) or not (on_host or form == "8bit"):
        return PlainState(torch.zeros(shape, device=device))
    if on_host:
        return HostState(torch.zeros(shape, device="cpu", pin_memory=device.type == "cuda"), device)
    codes = torch.zeros(shape, dtype=torch.uint8, device=device)
    scales = torch.zeros(*shape[:-1], -(-shape[-1] // STATE_BLOCK), device=device)
    is_root = name == "exp_avg_sq"
    return BlockwiseState(codes, scales, make_codebook(is_root, device), is_root)


def make_group_state(
    group: UpdateGroup,
    names: tuple[str, ...],
    is_stacked: bool,
    partition: Partition,
    owned_rows: Mapping[str, range],
    form: str,
    device: torch.device,
) -> tuple[dict[str, State], dict[str, State]]:
    """Returns a group's state, "<parameter>.<name>", and of a group that is updated as one stack the stacks by name.

    Args:
        names: of the state of each parameter.
        owned_rows: by parameter, what this rank updates.
        form, device: as in `make_state`.
    """
    state: dict[str, State] = {}
    stacks: dict[str, State] = {}
    for name in names:
        if is_stacked and group.owned_names:
            shape = partition.parameters[group.owned_names[0]]
            stacked = (len(group.owned_names), *state_shape(name, shape))
            stacks[name] = make_state(stacked, name, shape, form, device)
            state |= {f"{each}.{name}": stacks[name][i] for i, each in enumerate(group.owned_names)}
            continue
        for each in group.owned_names:
            shape = partition.parameters[each]
            state[f"{each}.{name}"] = make_state(owned_shape(shape, owned_rows[each]), name, shape, form, device)
    return state, stacks
