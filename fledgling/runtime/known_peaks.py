"""The highest peak that was measured on this machine: one measured while other processes compute is lower.

A peak is a maximum, so what was reached once can be reached. It is in peaks.json, in FLEDGLING_CACHE or
~/.cache/fledgling, by machine, processor, threads and dtype. Start with `compare_with_known_peak`. Imports no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fledgling.record.user_cache import find_cache_folder, write_cache_file

NOISE = 0.1  # between two peaks that are measured on an idle machine, as a share
NEWS = 0.01  # a peak that is higher by less is not saved
MOST_FLOPS = 1e18  # of a processor


def find_peak_file() -> Path:
    """Returns the path of the file with the peaks."""
    return find_cache_folder() / "peaks.json"


def compare_with_known_peak(key: str, peak: float, measure_again: Callable[[], float]) -> tuple[float, str]:
    """Returns the peak to count with, and a line about it: "" where the one just measured is as expected.

    One that is more than `NOISE` below the known one is measured again; where it stays below, the known one counts. A
    higher one is saved.

    Args:
        key: of machine, processor, threads and dtype.
        peak: FLOP/s, as just measured.
        measure_again: returns that of a further measurement.
    """
    entry = _read_peaks().get(key, {})
    known, date = entry.get("peak_flops", 0.0), entry.get("date", "")
    text = ""
    if peak * (1 + NOISE) < known:
        text = f"{peak / 1e9:,.0f} GFLOP/s at first, {known / 1e9:,.0f} on {date}"
        peak = max(peak, measure_again())
        if peak * (1 + NOISE) < known:
            still = "other processes compute now, or the machine has become slower"
            return known, f"{text}, {peak / 1e9:,.0f} when measured again: {still} ({find_peak_file()})"
        text += ": measured again"
    if peak > known * (1 + NEWS):
        entry = {"peak_flops": peak, "date": time.strftime("%Y-%m-%d")}
        write_cache_file(find_peak_file().name, _read_peaks() | {key: entry})
    return peak, text


def _read_peaks() -> dict[str, dict[str, Any]]:
    """Returns the entries of the file that can be peaks; none of a file that is corrupt or gone."""
    try:
        saved = json.loads(find_peak_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: entry for key, entry in saved.items() if _is_peak(entry)} if isinstance(saved, dict) else {}


def _is_peak(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("date"), str):
        return False
    flops = entry.get("peak_flops")
    return isinstance(flops, int | float) and 0 < flops <= MOST_FLOPS
