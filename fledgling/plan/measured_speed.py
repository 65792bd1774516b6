"""Speeds that were measured on this machine, so that a plan for it need not assume any.

The one idea: `fledgling bench train` leaves one line a device and dtype in a file of the user's; `plan` reckons with it
where it plans for that device, and says so. The file is FLEDGLING_CACHE/speed.json, or ~/.cache/fledgling/speed.json.
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
    """What one training step reached: share `mfu` of `peak_flops`, a matrix product measured beside it."""

    device: str
    mfu: float
    peak_flops: float
    tokens_per_second: float
    model: str  # the model, in words
    date: str


def speed_file() -> Path:
    """Where speeds are kept."""
    folder = os.environ.get("FLEDGLING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(folder) / "speed.json" if os.environ.get("FLEDGLING_CACHE") else Path(folder) / "fledgling/speed.json"


def load_speed(device: str) -> MeasuredSpeed | None:
    """Return what was measured here on the device of that name; None where nothing was, or the file is damaged."""
    try:
        return MeasuredSpeed(**json.loads(speed_file().read_text(encoding="utf-8"))[device])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_speed(found: MeasuredSpeed) -> None:
    """Remember a speed in place of what was known of its device."""
    try:
        known = json.loads(speed_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    write_json(speed_file(), (known if isinstance(known, dict) else {}) | {found.device: asdict(found)})


def device_name(kind: str, dtype: str, product: str = "") -> str | None:
    """Return the table's name for this machine's device: kind "cpu" or "cuda", the card's own name; None: not in it."""
    if kind == "cpu":
        return "cpu" if dtype == "float32" else "cpu-bf16"
    plain = product.lower().replace(" ", "")
    return next((name for name in DEVICES if not name.startswith("cpu") and name in plain), None)
