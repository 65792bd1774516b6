"""A table of devices: peak compute, memory and power.

Peaks are the vendors' dense (not sparse) numbers in the training dtype: bfloat16 with float32 accumulation, float16 on
the T4. Those of CPUs are measured: a matrix product on two cores (`fledgling doctor` measures yours). Watts are the
vendor's limit of the whole card, which training approaches; for a CPU an assumed share of a server. The rest of the
machine and cooling are not included. A price is given only where it is the published run's own; prices change, so pass
`--price`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fledgling.config import UserError, did_you_mean


@dataclass(frozen=True)
class DeviceSpec:
    """A device: peak FLOP/s in the training dtype, memory in bytes, watts, US dollars per hour (None: unknown)."""

    name: str
    peak_flops: float
    memory: int
    watts: float
    usd_per_hour: float | None = None

    @property
    def kind(self) -> str:
        """The torch device type: "cpu" or "cuda"."""
        return "cpu" if self.name.startswith("cpu") else "cuda"


_GIB = 2**30

DEVICES = {
    device.name: device
    for device in (
        DeviceSpec("cpu", 195e9, 8 * _GIB, 30),  # two cores with AVX-512, float32
        DeviceSpec("cpu-bf16", 873e9, 8 * _GIB, 30),  # the same two with AVX-512 BF16
        DeviceSpec("t4", 65e12, 15 * _GIB, 70),
        DeviceSpec("l4", 121e12, 22 * _GIB, 72),
        DeviceSpec("rtx3090", 71e12, 24 * _GIB, 350),
        DeviceSpec("rtx4090", 165e12, 24 * _GIB, 450),
        DeviceSpec("rtx5090", 209e12, 32 * _GIB, 575),
        DeviceSpec("a100", 312e12, 80 * _GIB, 400),
        DeviceSpec("h100", 989e12, 80 * _GIB, 700, 3.0),  # the published speed run paid $24 an hour for eight
        DeviceSpec("h200", 989e12, 141 * _GIB, 700),
        DeviceSpec("b200", 2250e12, 180 * _GIB, 1000),
    )
}


def find_device(name: str) -> DeviceSpec:
    """Returns the device with this name; raises UserError for an unknown name."""
    if name.lower() not in DEVICES:
        hint = did_you_mean(name.lower(), DEVICES) or f": there are {', '.join(DEVICES)}"
        raise UserError(f'unknown GPU "{name}"{hint}')
    return DEVICES[name.lower()]
