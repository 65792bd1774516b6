"""Stores speeds measured on this machine, so that a plan for it needs no assumed utilization.

`fledgling bench train` writes one entry per device and dtype to a per-user file; `plan` uses it when it plans for that
device, and says so. The file is FLEDGLING_CACHE/speed.json, or ~/.cache/fledgling/speed.json. An entry whose peak is
too low is deleted as soon as something exceeds it: its utilization would be too high.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fledgling.plan.hardware import DEVICES
from fledgling.record import write_json


@dataclass(frozen=True)
class MeasuredSpeed:
    """The result of one training benchmark: share `mfu` of `peak_flops`, a matrix product measured in the same run."""

    device: str
    mfu: float
    peak_flops: float
    tokens_per_second: float
    model: str  # a description of the model
    date: str


def speed_file() -> Path:
    """Returns the path of the file with the measured speeds."""
    folder = os.environ.get("FLEDGLING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(folder) / "speed.json" if os.environ.get("FLEDGLING_CACHE") else Path(folder) / "fledgling/speed.json"


def load_speed(device: str) -> MeasuredSpeed | None:
    """Returns the speed measured on this machine for a device name; None if there is none or the file is damaged.

    An entry of more than its own peak, which earlier versions wrote for a peak measured too low, counts as damaged.
    """
    try:
        speed = MeasuredSpeed(**json.loads(speed_file().read_text(encoding="utf-8"))[device])
        return speed if 0 < speed.mfu <= 1 and speed.peak_flops > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_speed(speed: MeasuredSpeed) -> None:
    """Saves a speed, replacing the previous one of the same device."""
    write_json(speed_file(), _read_saved() | {speed.device: asdict(speed)})


def discard_exceeded(device: str | None, reached: float) -> str:
    """Deletes the saved speed of a device whose peak is below `reached` FLOP/s.

    Returns a line that says so, or "" if nothing was deleted.
    """
    saved = load_speed(device) if device else None
    if saved is None or saved.peak_flops >= reached:
        return ""
    write_json(speed_file(), {name: entry for name, entry in _read_saved().items() if name != device})
    return (
        f"the speed of {saved.date} for `fledgling plan --gpu {device}` was a share of {saved.peak_flops / 1e9:,.1f} "
        "GFLOP/s, which is too low: it is deleted, and `fledgling bench train` measures it again"
    )


def _read_saved() -> dict[str, Any]:
    try:
        saved = json.loads(speed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def device_name(kind: str, dtype: str, product: str = "") -> str | None:
    """Returns the name of a device in `plan.hardware.DEVICES`, None if it is unknown.

    Args: kind: "cpu" or "cuda"; dtype: "float32" or "bfloat16", used for CPUs only; product: name of the GPU.
    """
    if kind == "cpu":
        return "cpu" if dtype == "float32" else "cpu-bf16"
    normalized = product.lower().replace(" ", "")
    return next((name for name in DEVICES if not name.startswith("cpu") and name in normalized), None)
