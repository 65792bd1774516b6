"""The recorder: writes what the training loop reports to files, the progress line and optional dashboards."""

import time
from pathlib import Path
from typing import Any

from fledgling.record.evaluation_log import EvaluationLog
from fledgling.record.jsonl import JsonlWriter, read_jsonl, to_json_value, write_json
from fledgling.record.loggers import open_logger
from fledgling.record.progress_bar import ProgressBar

JSONL_NAMES = ("metrics", "evals", "samples", "notices")
REWOUND = ("metrics", "evals", "samples")  # a notice tells what happened, also where the work is repeated


class Recorder:
    """Writes the JSONL files of one stage and shows its progress on stderr.

    Args:
        stage_dir: RUN/<stage>.
        total_steps: optimizer steps of the whole stage.
        quiet: print nothing on stderr.
        loggers: names out of LOGGERS, which also receive every metric and evaluation.
        enabled: False on all ranks but the first, whose recorder then does nothing.

    Raises: UserError when the disk is full or a logger's package is missing.
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
        self._evaluations = EvaluationLog(self._files["evals"], stage)
        self._loggers = [open_logger(name, self.stage_dir, stage) for name in loggers] if enabled else []
        self._progress_bar = ProgressBar(stage) if enabled and not quiet else None
        self._step = 0
        self._has_steps = False  # that this session has recorded
        self._seconds_before, self._opened = self._read_seconds(), time.monotonic()

    def _rewind_clock(self) -> None:
        """Continues from the last metrics line; a pause since then is not counted.

        What a session does before its first step is work: data that are prepared, weights that are loaded.
        """
        self._seconds_before = self._read_seconds()
        if self._has_steps:
            self._opened = time.monotonic()

    def _read_seconds(self) -> float:
        """Returns the seconds of work up to the last metrics line."""
        last = read_jsonl(self._files["metrics"].path)[-1:]
        seconds = last[0].get("elapsed") if last else 0.0
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of the work that is recorded, over all sessions: no pauses, and nothing that a kill has lost."""
        return self._seconds_before + time.monotonic() - self._opened

    def log_metrics(self, step: int, **values: Any) -> None:
        """Appends a line to metrics.jsonl. `tokens` counts from the start of the stage; `mfu` is in [0, 1]."""
        self._step, self._has_steps = step, True
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
        **facts: Any,
    ) -> None:
        """Appends a line to evals.jsonl: value, 95 % interval, number of cases, score of the best constant answer.

        `EvaluationLog` leaves some out. Lines of one name and different `n` are different series, which no chart joins.
        facts: the other values of a line, such as the clusters that the cases share, and the tools of the answers.
        """
        scores = {"value": value, "low": low, "high": high, "n": n, "baseline": baseline, **facts}
        if not self.enabled or not self._evaluations.append(step, {"name": name, **scores}):
            return
        series = f"eval/{name}" if n is None else f"eval/{name}/{n}"  # one line of a chart has one number of cases
        self._send_to_loggers(step, {series: value})

    def log_sample(self, step: int, prompt: str, text: str) -> None:
        """Appends a line to samples.jsonl: what the model generates for `prompt` after `step` steps."""
        self._append("samples", {"stage": self.stage, "step": step, "prompt": prompt, "text": text})

    def log_notice(self, text: str, is_printed: bool = True, **values: Any) -> None:
        """Prints a line on stderr above the progress line; appends it, with values for programs, to notices.jsonl.

        is_printed: False: the file alone has the line.
        """
        self._append("notices", {"step": self._step, "text": text, **values})
        if self._progress_bar and is_printed:
            self._progress_bar.print_line(text)

    def show_progress(self, step: int, **metrics: Any) -> None:
        """Moves the progress line to `step` and shows the metrics: loss, bits, reward, mfu, ..."""
        self._step = step
        if self._progress_bar:
            self._progress_bar.update(step, self.total_steps, metrics, self.elapsed)

    def rewind(self, step: int) -> None:
        """On resume: drops every line after `step` but notices, so that repeated work is not recorded twice."""
        if self.enabled:
            recorded = self._read_seconds()
            for name in REWOUND:
                self._files[name].rewind(step)
            self._evaluations.forget()
            self._step = step
            self._rewind_clock()
            if (lost := recorded - self._seconds_before) >= 1:
                self.log_notice(
                    f"{lost:,.0f} s of work after step {max(0, step)} were lost; the seconds leave them out"
                )

    def flush(self) -> None:
        """Waits until all that was recorded is on the disk; a checkpoint calls it before it appears. Any thread may."""
        if self.enabled:
            for file in self._files.values():
                file.flush()

    def mark_done(self, **values: Any) -> None:
        """Marks the stage as finished: writes done.json with the step, the seconds of work and `values`."""
        if self.enabled:
            self.flush()
            times = {"seconds": round(self.elapsed, 3), "time": round(time.time(), 3)}
            write_json(self.stage_dir / "done.json", {"stage": self.stage, "step": self._step, **times, **values})

    def close(self) -> None:
        """Closes files and loggers and leaves the progress line on the terminal. May be called twice."""
        if self._progress_bar:
            self._progress_bar.close()
        for file in self._files.values():
            file.close()
        for logger in self._loggers:
            logger.close()
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
            for logger in self._loggers:
                logger.write(numbers, step)
