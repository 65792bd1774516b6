"""The recorder: what the training loop hands its numbers to.

The one idea: the loop says what happened, once; the recorder alone decides where it goes (files, the
progress line, an optional dashboard). It computes nothing but the time.
"""

import time
from pathlib import Path
from typing import Any

from fledgling.record.jsonl import JsonlWriter, read_jsonl, to_json_value, write_json
from fledgling.record.loggers import open_logger
from fledgling.record.progress_bar import ProgressBar

JSONL_NAMES = ("metrics", "evals", "samples", "notices")


class Recorder:
    """Writes one stage's lines and shows its progress on stderr.

    stage_dir: RUN/<stage>; total_steps: updates of the whole stage; quiet: nothing on stderr; sinks: names
    out of SINKS that receive every metric and evaluation too; active: False on all ranks but the first,
    whose recorder then does nothing, so that the loop needs no branch. Raises UserError when the disk is
    full or a sink's package is missing.
    """

    def __init__(
        self,
        stage_dir: Path | str,
        stage: str,
        total_steps: int,
        quiet: bool = False,
        loggers: tuple[str, ...] = (),
        enabled: bool = True,
    ):
        self.stage_dir = Path(stage_dir)
        self.stage = stage
        self.total_steps = total_steps
        self.enabled = enabled
        self._files = {name: JsonlWriter(self.stage_dir / f"{name}.jsonl") for name in JSONL_NAMES}
        self._loggers = [open_logger(name, self.stage_dir, stage) for name in loggers] if enabled else []
        self._progress_bar = ProgressBar(stage) if enabled and not quiet else None
        self._step = 0
        self._resume_clock()

    def _resume_clock(self) -> None:
        """Go on from the last metrics line; the pause since then is not counted."""
        last = read_jsonl(self._files["metrics"].path)[-1:]
        spent = last[0].get("elapsed") if last else 0.0
        self._spent = float(spent) if isinstance(spent, int | float) else 0.0
        self._opened = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds this stage has worked, over all its sessions; the pauses between them are not counted."""
        return self._spent + time.monotonic() - self._opened

    def log_metrics(self, step: int, **values: Any) -> None:
        """Append a line to metrics.jsonl. `tokens` counts from the stage's beginning; `mfu` is in [0, 1]."""
        self._step = step
        times = {"time": round(time.time(), 3), "elapsed": round(self.elapsed, 3)}
        self._append("metrics", {"step": step, **times, **values})
        self._send_to_loggers(step, values)

    def log_evaluation(
        self,
        step: int,
        name: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        baseline: float | None = None,
    ) -> None:
        """Append a measurement: 95 % interval, number of cases, score of the best constant answer."""
        figures = {"value": value, "low": low, "high": high, "n": n, "baseline": baseline}
        self._append("evals", {"stage": self.stage, "step": step, "name": name, **figures})
        self._send_to_loggers(step, {f"eval/{name}": value})

    def log_sample(self, step: int, prompt: str, text: str) -> None:
        """Append what the model says to `prompt` after `step` updates."""
        self._append("samples", {"stage": self.stage, "step": step, "prompt": prompt, "text": text})

    def log_notice(self, text: str) -> None:
        """Say one thing: on stderr above the progress line, and in notices.jsonl."""
        self._append("notices", {"step": self._step, "text": text})
        if self._progress_bar:
            self._progress_bar.print_line(text)

    def show_progress(self, step: int, **metrics: Any) -> None:
        """Move the progress line to `step` with the values shown: loss, bits, reward, mfu, ..."""
        self._step = step
        if self._progress_bar:
            self._progress_bar.update(step, self.total_steps, metrics, self.elapsed)

    def rewind(self, step: int) -> None:
        """On resume: drop every line after `step`, so that the work done again is not counted twice."""
        if self.enabled:
            for lines in self._files.values():
                lines.rewind(step)
            self._step = step
            self._resume_clock()

    def mark_done(self, **values: Any) -> None:
        """Mark the stage as finished: done.json with the step, the seconds worked and `values`."""
        if self.enabled:
            spent = {"seconds": round(self.elapsed, 3), "time": round(time.time(), 3)}
            write_json(self.stage_dir / "done.json", {"stage": self.stage, "step": self._step, **spent, **values})

    def close(self) -> None:
        """Leave the progress line standing and close files and sinks. May be called twice."""
        if self._progress_bar:
            self._progress_bar.close()
        for lines in self._files.values():
            lines.close()
        for sink in self._loggers:
            sink.close()
        self._loggers = []

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, name: str, value: dict) -> None:
        if self.enabled:
            self._files[name].append(value)

    def _send_to_loggers(self, step: int, values: dict) -> None:
        if self._loggers:
            numbers = {key: v for key, v in to_json_value(values).items() if isinstance(v, int | float)}
            for sink in self._loggers:
                sink.write(numbers, step)
