"""Stores speeds measured on this machine, so that a plan for it needs no assumed utilization.

`fledgling bench train` writes one entry per device and shape to a per-user file; `plan` uses the entry that is nearest
to the planned step, if it is near (`MAX_SHAPE_RATIO`), and says so: the share that a small model reaches says little of
a large one. The file is FLEDGLING_CACHE/speed.json, or ~/.cache/fledgling/speed.json. An entry whose peak is too low is
deleted as soon as something exceeds it: its utilization would be too high.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fledgling.config import RunConfig
from fledgling.plan.hardware import DEVICES, find_product
from fledgling.record.user_cache import find_cache_folder, write_cache_file

NOT_COMPILED = ", not compiled"  # ends the description of such a model
MAX_SHAPE_RATIO = 2.0  # of FLOPs per token, and of tokens of a forward/backward, in either direction


@dataclass(frozen=True)
class MeasuredSpeed:
    """The result of one training benchmark: share `mfu` of `peak_flops`, a matrix product measured in the same run."""

    device: str
    mfu: float
    peak_flops: float
    tokens_per_second: float
    model: str  # a description of the model and its micro-batch
    date: str
    flops_per_token: float
    micro_batch_tokens: int
    compiled: bool = True

    def distance(self, flops_per_token: float, micro_batch_tokens: int) -> float:
        """Returns the larger of the two ratios to another shape, at least 1."""
        ratios = (self.flops_per_token / flops_per_token, self.micro_batch_tokens / micro_batch_tokens)
        return max(max(ratio, 1 / ratio) for ratio in ratios)


def speed_file() -> Path:
    """Returns the path of the file with the measured speeds."""
    return find_cache_folder() / "speed.json"


def list_speeds(device: str) -> list[MeasuredSpeed]:
    """Returns the speeds measured on this machine for a device name, without corrupt entries.

    An entry of more than its own peak, or without its shape, is of an earlier version and counts as corrupt.
    """
    found = []
    for entry in _read_saved().values():
        try:
            compiled = not str(entry.get("model")).endswith(NOT_COMPILED)  # of an earlier version's, which has no field
            speed = MeasuredSpeed(**{"compiled": compiled, **entry})
            lowest = min(speed.peak_flops, speed.flops_per_token, speed.micro_batch_tokens)
            plausible = 0 < speed.mfu <= 1 and lowest > 0
        except TypeError:
            continue
        if plausible and speed.device == device:
            found.append(speed)
    return found


def name_planned_device(run: RunConfig) -> str:
    """Returns `run.hardware`; of processors the kind that this machine is, where its speed was measured.

    A recipe says no more than that it trains on a processor. Where several kinds were measured, with `run.dtype`, it is
    the fastest, which training chooses.
    """
    kinds = {spec.name for spec in DEVICES.values() if spec.kind == "cpu"}
    reached = {speed.mfu * speed.peak_flops: kind for kind in kinds for speed in list_speeds(kind)}
    is_open = run.dtype == "auto" and run.hardware in kinds
    return reached[max(reached)] if reached and is_open else run.hardware


def load_speed(
    device: str, flops_per_token: float, micro_batch_tokens: int, compiled: bool = True
) -> MeasuredSpeed | None:
    """Returns the measured speed of the shape nearest to a planned step, compiled or not; None if none is near."""
    speeds = [speed for speed in list_speeds(device) if speed.compiled == compiled]
    distance = {speed: speed.distance(flops_per_token, micro_batch_tokens) for speed in speeds}
    nearest = min(distance, key=lambda speed: distance[speed], default=None)
    return nearest if nearest is not None and distance[nearest] <= MAX_SHAPE_RATIO else None


def save_speed(speed: MeasuredSpeed) -> str:
    """Saves a speed, replacing the previous one of the same device and shape; returns why it cannot be saved, or ""."""
    return write_cache_file(speed_file().name, _read_saved() | {f"{speed.device}: {speed.model}": asdict(speed)})


def discard_exceeded(device: str | None, reached: float) -> str:
    """Deletes the saved speeds of a device whose peak is below `reached` FLOP/s.

    Returns a line that says so, or that the file cannot be written; "" if there is no such speed.
    """
    low = [speed for speed in (list_speeds(device) if device else []) if speed.peak_flops < reached]
    if not low:
        return ""
    gone = [asdict(speed) for speed in low]
    kept = {name: entry for name, entry in _read_saved().items() if entry not in gone}
    failure = write_cache_file(speed_file().name, kept)
    lowest = min(low, key=lambda speed: speed.peak_flops)
    deleted = "it is deleted, and `fledgling bench train` measures it again"
    return (
        f"the speed of {lowest.date} for `fledgling plan --gpu {device}` was a share of {lowest.peak_flops / 1e9:,.1f} "
        f"GFLOP/s, which is too low: {f'it is kept, since {failure}' if failure else deleted}"
    )


def _read_saved() -> dict[str, Any]:
    try:
        saved = json.loads(speed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: entry for name, entry in saved.items() if isinstance(entry, dict)} if isinstance(saved, dict) else {}


def device_name(kind: str, dtype: str, product: str = "", memory: int = 0, answer_dtype: str = "") -> str | None:
    """Returns the name of a device in `plan.hardware.DEVICES`, None if it is unknown.

    Args:
        kind: the torch device type.
        dtype: of the products in training, for CPUs; answer_dtype: of the engine's, if that is another one.
        product: the driver's name of the GPU.
        memory: its bytes; 0: unknown.
    """
    if kind == "cpu":
        if dtype == "float32":
            return "cpu-mixed" if answer_dtype == "bfloat16" else "cpu"
        return "cpu-bf16"
    device = find_product(kind, product, memory)
    return device.name if device else None
