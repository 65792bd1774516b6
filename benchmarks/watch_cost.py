"""What an open page of `fledgling watch` costs the run that it shows: the run's speed with the page and without.

A run trains in one process and `fledgling watch` serves it in another, both as a user starts them. Turns with a page
and without alternate, and speeds are compared within a round. "client" asks for what the page asks for, as often, and
draws nothing: a page on another computer. "chromium" is the page itself in a browser on the machine that trains.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.page import launch_chromium
from fledgling.config import UserError
from fledgling.record import read_jsonl

VIEWERS = ("client", "chromium")
SETTLE_SECONDS = 3.0  # after a change, which are not counted
ASK_SECONDS = 2.0  # between two requests of the page (watch/page/watch.js)
START_SECONDS = 600.0  # for the first step, whose kernels are compiled before
RECIPE = (
    "quickstart",
    "--set",
    "pretrain.steps=6000",
    "--set",
    "pretrain.eval_every=0",
    "--set",
    "pretrain.sample_every=0",
)
Page = Callable[[], AbstractContextManager[None]]  # opens the page of a run for the length of a block


def measure_watch_cost(viewers: Sequence[str], repeats: int, seconds: float) -> dict[str, Any]:
    """Returns a row for each viewer: steps a second without and with the page, and the ratios of the rounds.

    Args:
        viewers: of VIEWERS.
        repeats: rounds of a turn without and one with the page.
        seconds: of a turn.

    Raises:
        UserError: other viewers, a number too small, a run or page that did not start, or no browser.
    """
    if not viewers or set(viewers) - set(VIEWERS) or repeats < 1 or seconds <= 0:
        raise UserError(
            f"--viewer {' '.join(viewers)} --repeats {repeats} --seconds {seconds:g}: "
            f"expected some of {', '.join(VIEWERS)}, at least 1 and more than 0"
        )
    rows = []
    with tempfile.TemporaryDirectory() as folder, start_run(Path(folder) / "run") as run, start_page(run) as url:
        metrics = run / "pretrain" / "metrics.jsonl"
        for viewer in viewers:
            with make_viewer(viewer, url) as page:
                rounds = []
                for number in range(repeats):
                    print(f"\r{viewer}: round {number + 1} of {repeats} ", end="", file=sys.stderr, flush=True)
                    rounds.append(measure_round(metrics, seconds, page, page_first=number % 2 == 1))
            rows.append(summarize(viewer, rounds))
    print(file=sys.stderr)
    return {"seconds": seconds, "rows": rows}


def measure_round(metrics: Path, seconds: float, page: Page, page_first: bool) -> tuple[float, float]:
    """Returns the steps a second without and with the page; which comes first alternates, as speed may drift."""
    without = 0.0 if page_first else count_speed(metrics, seconds)
    with page():
        watched = count_speed(metrics, seconds)
    return without or count_speed(metrics, seconds), watched


def count_speed(metrics: Path, seconds: float) -> float:
    """Returns the steps a second that a run records in the next `seconds`, after SETTLE_SECONDS."""
    time.sleep(SETTLE_SECONDS)
    before, start = len(read_jsonl(metrics)), time.perf_counter()
    time.sleep(seconds)
    return (len(read_jsonl(metrics)) - before) / (time.perf_counter() - start)


def summarize(viewer: str, rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Returns the row of a viewer. rounds: steps a second without and with the page."""
    ratios = [watched / alone for alone, watched in rounds]
    return {
        "viewer": viewer,
        "alone": statistics.median(alone for alone, _ in rounds),
        "watched": statistics.median(watched for _, watched in rounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def format_watch_cost(values: dict[str, Any]) -> str:
    """Returns the result as a table with the spread of the rounds."""
    lines = [f"{'viewer':<10}{'steps/s alone':>15}{'watched':>10}{'ratio':>8}{'of the rounds':>18}"]
    for row in values["rows"]:
        spread = f"{min(row['ratios']):.3f} to {max(row['ratios']):.3f}"
        lines.append(f"{row['viewer']:<10}{row['alone']:>15.2f}{row['watched']:>10.2f}{row['ratio']:>8.3f}{spread:>18}")
    return "\n".join(lines)


@contextmanager
def start_run(out: Path) -> Iterator[Path]:
    """Trains during the block, in a process of its own, from the first step on; yields the run directory."""
    command = [sys.executable, "-m", "fledgling", "train", "pretrain", *RECIPE, "--set", f"run.out={out}"]
    with (out.parent / "train.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    with stop_at_end(process):
        deadline, metrics = time.monotonic() + START_SECONDS, out / "pretrain" / "metrics.jsonl"
        while not metrics.exists() or not read_jsonl(metrics):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (out.parent / "train.log").read_text(errors="replace")[-500:]
                raise UserError(f"the run took no step: {tail}")
            time.sleep(0.5)
        yield out


@contextmanager
def start_page(run: Path) -> Iterator[str]:
    """Serves the page of a run during the block, as `fledgling watch` does; yields its address."""
    command = [sys.executable, "-m", "fledgling", "watch", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with stop_at_end(process):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise UserError(f"fledgling watch ended with exit code {process.wait()}")
        yield url


@contextmanager
def stop_at_end(process: subprocess.Popen) -> Iterator[None]:
    """Ends a process with the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def make_viewer(viewer: str, url: str) -> Iterator[Page]:
    """Yields a function that opens the page at `url` for the length of a block."""
    if viewer == "client":
        yield lambda: ask_repeatedly(url)
        return
    with launch_chromium() as chromium:
        page = chromium.new_page()

        @contextmanager
        def show() -> Iterator[None]:
            page.goto(url)
            yield
            page.goto("about:blank")

        yield show


@contextmanager
def ask_repeatedly(url: str) -> Iterator[None]:
    """Asks for what is new of the runs every ASK_SECONDS during the block, as the page does."""
    ended = threading.Event()

    def ask() -> None:
        cursor = ""
        while not ended.is_set():
            with urllib.request.urlopen(f"{url.rstrip('/')}/api/runs?since={quote(cursor)}", timeout=30) as answer:
                cursor = json.load(answer)["cursor"]
            ended.wait(ASK_SECONDS)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
