"""A few devices by name: what they can at most compute and hold.

Peaks are the makers' dense (not sparse) figures in the training dtype: bfloat16 with float32 accumulation,
float16 on the T4. The processors' are measured: a matrix product on two cores (`fledgling doctor` measures
yours). A price is given only where it is the published run's own; prices move, so pass `--price`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fledgling.config import UserError, did_you_mean


@dataclass(frozen=True)
class Device:
    """A device: peak FLOP/s in the training dtype, memory in bytes, US dollars an hour (None: not known)."""

    name: str
    peak_flops: float
    memory: int
    usd_per_hour: float | None = None


_GIB = 2**30

DEVICES = {
    device.name: device
    for device in (
        Device("cpu", 195e9, 8 * _GIB),  # two cores with AVX-512, float32
        Device("cpu-bf16", 873e9, 8 * _GIB),  # the same two with AVX-512 BF16
        Device("t4", 65e12, 15 * _GIB),
        Device("l4", 121e12, 22 * _GIB),
        Device("rtx3090", 71e12, 24 * _GIB),
        Device("rtx4090", 165e12, 24 * _GIB),
        Device("rtx5090", 209e12, 32 * _GIB),
        Device("a100", 312e12, 80 * _GIB),
        Device("h100", 989e12, 80 * _GIB, 3.0),  # the published speed run paid $24 an hour for eight
        Device("h200", 989e12, 141 * _GIB),
        Device("b200", 2250e12, 180 * _GIB),
    )
}


def device(name: str) -> Device:
    """Return the device of that name; raises UserError for one that is not in the table."""
    if name.lower() not in DEVICES:
        hint = did_you_mean(name.lower(), DEVICES) or f": there are {', '.join(DEVICES)}"
        raise UserError(f'unknown GPU "{name}"{hint}')
    return DEVICES[name.lower()]
