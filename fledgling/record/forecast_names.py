"""What the quantities of a forecast are called, and their values as text: in the plan, after the run, in its report."""

from __future__ import annotations

from fledgling.record.evaluation_names import evaluation_label
from fledgling.record.jsonl import format_bytes
from fledgling.record.progress_bar import format_duration

SECONDS, MEMORY, BITS = "seconds", "memory", "bits_per_byte"
_LABELS = {SECONDS: "time in all", MEMORY: "peak memory", BITS: "bits per byte"}


def forecast_label(name: str) -> str:
    """Returns what a forecast's numbers are of, such as "bits per byte, after pretrain"."""
    stage, _, quantity = name.rpartition(" ")
    label = _LABELS.get(quantity) or evaluation_label(quantity)
    return f"{label}, after {stage}" if stage else label


def format_forecast(name: str, value: float) -> str:
    """Returns a value of the quantity `name` as text, with its unit."""
    if name == SECONDS:
        return format_duration(value)
    if name == MEMORY:
        return format_bytes(round(value), binary=True)
    return f"{value:.3f}" if name.endswith(BITS) else f"{100 * value:.0f} %"


def format_forecast_interval(name: str, low: float, high: float) -> str:
    """Returns "LOW to HIGH"; a unit that both have is printed once."""
    first, last = format_forecast(name, low), format_forecast(name, high)
    number, _, unit = first.partition(" ")
    return f"{number if unit and last.endswith(f' {unit}') else first} to {last}"
