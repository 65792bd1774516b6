"""The progress line on stderr: a live bar on a terminal, one plain line every ten seconds elsewhere.

pretrain ━━━━━━━━━━━━━━━ 120/400 smoothed loss 2.311  18.2k tok/s  MFU 41.0 %  1:02, 2:24 left
"""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any

from fledgling.record.jsonl import to_json_value

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_LINE_INTERVAL = 10.0  # seconds
RECENT_STEPS = 50  # whose median is the time of a step


def format_duration(seconds: float) -> str:
    """Formats seconds as 0:07, 12:30 or 3:05:09."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def format_count(count: float) -> str:
    """Formats a count with three digits: 912, 18.2k, 3.71M, 120B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}" if abs(count) < 999.5 * size else f"{count / size:.0f}{unit}"
    return f"{count:.0f}"


def format_metric(name: str, value: Any) -> str:
    """Formats one metric for the progress line."""
    if value is None:
        return f"{name.replace('_', ' ')} -"
    if name == "tokens_per_second":
        return f"{format_count(value)} tok/s"
    if name in ("mfu", "mfu_datasheet"):
        of = "" if name == "mfu" else " of the datasheet"
        return f"MFU {100 * value:.1f} %{of}"
    return f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"


def _format_place(step: int, total: int | None) -> str:
    return f"{step}" if total is None else f"{step}/{total}"


class ProgressBar:
    """Shows the step of a stage, and the time left: the steps that are left, each as long as the median of the last 50.

    The first step of a session, which compiles, is left out, and so is what was before it: a resumed stage shows the
    time of this machine as it is now. Evaluations and pauses are longer than the median, and change it little.
    """

    def __init__(self, stage: str):
        from rich.console import Console

        self.stage = stage
        self.console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last: tuple[int, float] | None = None  # (step, time) of the last call
        self._seconds: deque[float] = deque(maxlen=RECENT_STEPS)  # of a step, between two calls
        self._printed = -math.inf

    def update(self, step: int, total: int | None, metrics: dict, elapsed: float) -> None:
        """Shows `step` of `total` (None: not known) with the metrics and the `elapsed` seconds."""
        now = time.monotonic()
        if self._last is not None and step > self._last[0]:
            self._seconds.append((now - self._last[1]) / (step - self._last[0]))
        self._last = (step, now)
        rest = 0 if total is None else total - step
        left = f", {format_duration(median(self._seconds) * rest)} left" if self._seconds and rest > 0 else ""
        values = "  ".join(format_metric(name, value) for name, value in to_json_value(metrics).items())
        text = f"{values}  {format_duration(elapsed)}{left}"
        if self.console.is_terminal:
            self._update_bar(step, total, text)
        elif now - self._printed >= PLAIN_LINE_INTERVAL or (total is not None and step >= total):
            self._printed = now
            self.print_line(f"{self.stage} {_format_place(step, total)}  {text}")

    def _update_bar(self, step: int, total: int | None, text: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None or self._task is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(18),
                TextColumn("{task.fields[place]}", markup=False),
                TextColumn("{task.fields[text]}", markup=False),
                console=self.console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(f"{self.stage:<8}", total=total, place="", text="")
            self._bar.start()
        self._bar.update(self._task, completed=step, total=total, place=_format_place(step, total), text=text)

    def print_line(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stops the bar and leaves it on the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
