"""The progress line on stderr: a live bar on a terminal, one plain line every ten seconds elsewhere.

pretrain ━━━━━━━━━━━━━━━ 120/400 loss 2.311  18.2k tok/s  MFU 41.0 %  1:02, 2:24 left
"""

import math
import time
from typing import Any

from fledgling.record.jsonl import to_json_value

PLAIN_LINE_INTERVAL = 10.0  # seconds


def format_duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:09."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def format_count(count: float) -> str:
    """A count in three digits: 912, 18.2k, 3.71M, 120B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}" if abs(count) < 999.5 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def format_metric(name: str, value: Any) -> str:
    """One value of the progress line in words."""
    if value is None:
        return f"{name.replace('_', ' ')} -"
    if name == "tokens_per_second":
        return f"{format_count(value)} tok/s"
    if name == "mfu":
        return f"MFU {100 * value:.1f} %"
    return f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"


class ProgressBar:
    """Shows where a stage stands. The time left is judged from the steps of this session alone."""

    def __init__(self, stage: str):
        from rich.console import Console

        self.stage = stage
        self.console = Console(stderr=True, highlight=False)
        self._bar = self._task = None
        self._first: tuple[int, float] | None = None  # (step, time) of the first call: compiling does not count
        self._printed = -math.inf

    def update(self, step: int, total: int, metrics: dict, elapsed: float) -> None:
        now = time.monotonic()
        self._first = self._first or (step, now)
        made, spent = step - self._first[0], now - self._first[1]
        left = f", {format_duration(spent / made * (total - step))} left" if made > 0 and step < total else ""
        values = "  ".join(format_metric(name, value) for name, value in to_json_value(metrics).items())
        text = f"{values}  {format_duration(elapsed)}{left}"
        if self.console.is_terminal:
            self._move(step, total, text)
        elif now - self._printed >= PLAIN_LINE_INTERVAL or step >= total:
            self._printed = now
            self.print_line(f"{self.stage} {step}/{total}  {text}")

    def _move(self, step: int, total: int, text: str) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = [
                TextColumn("{task.description}", markup=False),
                BarColumn(18),
                TextColumn("{task.completed}/{task.total}", markup=False),
                TextColumn("{task.fields[shown]}", markup=False),
            ]
            self._bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self._task = self._bar.add_task(f"{self.stage:<8}", total=total, shown="")
            self._bar.start()
        self._bar.update(self._task, completed=step, total=total, shown=text)

    def print_line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
