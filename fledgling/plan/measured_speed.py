"""Stores speeds measured on this machine, so that a plan for it needs no assumed utilization.

`fledgling bench train` writes one entry per device and dtype to a per-user file; `plan` uses it when it plans for that
device, and says so. The file is FLEDGLING_CACHE/speed.json, or ~/.cache/fledgling/speed.json.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """Returns the speed measured on this machine for a device name; None if there is none or the file is damaged."""
    try:
        return MeasuredSpeed(**json.loads(speed_file().read_text(encoding="utf-8"))[device])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_speed(speed: MeasuredSpeed) -> None:
    """Saves a speed, replacing the previous one of the same device."""
    try:
        saved = json.loads(speed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = {}
    write_json(speed_file(), (saved if isinstance(saved, dict) else {}) | {speed.device: asdict(speed)})


def device_name(kind: str, dtype: str, product: str = "") -> str | None:
    """Returns the table's name of this device, None if unknown; kind: "cpu" or "cuda", product: the card's name."""
    if kind == "cpu":
        return "cpu" if dtype == "float32" else "cpu-bf16"
    normalized = product.lower().replace(" ", "")
    return next((name for name in DEVICES if not name.startswith("cpu") and name in normalized), None)
