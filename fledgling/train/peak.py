"""What happens when a training step is about as fast as the measured peak of the machine, or faster."""

from __future__ import annotations

import subprocess
from contextlib import suppress

import torch

from fledgling.plan import measured_speed
from fledgling.plan.hardware import DEVICES, OWN, DeviceSpec
from fledgling.runtime import device as runtime_device
from fledgling.runtime.device import DeviceSetup, name_dtype
from fledgling.runtime.known_peaks import NOISE


def name_device(setup: DeviceSetup, device: torch.device) -> str | None:
    """Returns the planner's name of a device with the dtype of `setup`; None if its table has no such device."""
    name, memory = describe_gpu(device)
    return measured_speed.device_name(device.type, setup.dtype_name, name, memory, name_dtype(setup.engine_dtype))


def find_spec(setup: DeviceSetup, device: torch.device) -> DeviceSpec:
    """Returns the planner's description of a device; of a GPU that its table lacks, by the figures measured here.

    Such a GPU keeps its kind: as a processor it would be planned with other micro-batches, and without the memory that
    its allocator holds besides.
    """
    if name := name_device(setup, device):
        return DEVICES[name]
    peaks = {setup.dtype_name: setup.peak_flops}
    return DeviceSpec(OWN, setup.peak_flops, setup.memory_limit, 0.0, peaks=peaks, kind=device.type)


def describe_gpu(device: torch.device) -> tuple[str, int]:
    """Returns the product name of a device and its bytes of memory (0: unknown); ("", 0) for a CPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, properties.total_memory
    if device.type == "mps":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip(), 0
    return "", 0


def find_datasheet_peak(setup: DeviceSetup, device: torch.device) -> float:
    """Returns the vendor's dense FLOP/s of a device in the dtype of `setup`; 0.0 if the planner's table lacks it."""
    name = name_device(setup, device)
    spec = DEVICES[name] if name else None
    return 0.0 if spec is None or spec.is_measured else spec.peaks.get(setup.dtype_name, 0.0)


def discard_outdated_peak(setup: DeviceSetup, device: torch.device) -> str:
    """Deletes a stored speed whose peak is more than `NOISE` below the one just measured; returns a line about it.

    Such a peak was measured on a busy machine, and the utilization stored with it is too high.
    """
    return measured_speed.discard_exceeded(name_device(setup, device), setup.peak_flops / (1 + NOISE))


def replace_exceeded_peak(setup: DeviceSetup, device: torch.device, peak: float, reached: float) -> tuple[float, str]:
    """Measures a peak again that a step has exceeded or come too near to, and deletes a stored one that is too low.

    Args:
        setup: of this process.
        device: that computes.
        peak: FLOP/s of one rank, as measured before.
        reached: FLOP/s of a rank in a step, more than `SUSPICIOUS_SHARE` of `peak`.

    Returns:
        The new peak, or 0.0 if the step exceeds that too; and one line that says what was done.
    """
    again, text = runtime_device.remeasure_peak_flops(device, setup.dtype, peak, reached)
    discarded = measured_speed.discard_exceeded(name_device(setup, device), max(again / (1 + NOISE), reached))
    return again, f"{text}; {discarded}" if discarded else text
