"""The check of one GPU: measures every figure about CUDA with one command, in a few minutes.

Start reading at `PARTS`. Each part runs in a separate process with its own time limit, so that a crash or a lack of
memory in one part loses no result of another. A part prints each result as one line of JSON, and `run_gpu_check` adds
it to OUT/results.json at once. The parts are in `gpu_parts.py`, `gpu_kernels.py` and `gpu_runs.py`; docs/gpu.md has the
measured figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.config import UserError, require_number
from fledgling.record import write_json

if TYPE_CHECKING:
    import torch

RESULT_MARK = "@@"  # starts a line of output that is a result; all other lines are logged
# part -> time limit in seconds, in the default order: short parts and those that show most come first
PARTS = {
    "peaks": 60,
    "tests": 60,
    "attention": 60,
    "head": 60,
    "muon": 60,
    "train_d12": 60,
    "train_d20": 80,
    "decode": 90,
    "quickstart": 80,
    "ab": 120,
    "memory": 60,
    "rollouts": 120,
    "memory_compiled": 300,
}
DEFAULT_PARTS = tuple(name for name in PARTS if name != "memory_compiled")
ERROR_LINES = 30  # last lines of output of a failed part that are kept in the results
MIN_PART_SECONDS = 5  # a part is skipped if less time is left


def run_gpu_check(
    out: Path,
    minutes: float,
    parts: Sequence[str] = DEFAULT_PARTS,
    tiny: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Runs the parts in order until `minutes` have passed, and writes OUT/results.json and OUT/log.txt.

    Args:
        out: directory of the results; created if it does not exist.
        minutes: time limit of all parts together.
        parts: names from `PARTS`.
        tiny: use small shapes, which a CPU computes in seconds.
        log: is called with each result as a line of text.

    Returns:
        For each part its state ("ok", "failed (CODE)", "out of time" or "skipped"), seconds, and results as "rows".

    Raises:
        UserError: a part does not exist, minutes is not above 0, or a CPU would run more than tiny shapes.
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown or not parts:
        raise UserError(f"--parts {','.join(unknown) or 'nothing'}: expected some of {', '.join(PARTS)}")
    require_number("--minutes", minutes, 1e7)
    if not tiny:
        _require_accelerator()
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    end = time.monotonic() + 60 * minutes
    with open(out / "log.txt", "w", encoding="utf-8") as log_file:
        for name in parts:
            limit = min(PARTS[name], end - time.monotonic())
            if limit < MIN_PART_SECONDS:
                results[name] = {"state": "skipped", "rows": [], "error": "no time left"}
            else:
                results[name] = {"state": "running", "rows": []}
                run_part(name, out, limit, tiny, results, log_file, log)
            write_json(out / "results.json", results)
            log(f"{name}: {results[name]['state']} {results[name].get('seconds', '')}")
    return results


def _require_accelerator() -> None:
    """Raises UserError where only a CPU would run the parts, which takes longer than their limits."""
    from fledgling.runtime.accelerator import is_available

    if not is_available("cuda"):
        raise UserError(
            "bench gpu: found no CUDA device (NVIDIA or AMD); expected one, or --tiny, with which a CPU runs it"
        )


def run_part(
    name: str,
    out: Path,
    limit: float,
    tiny: bool,
    results: dict[str, Any],
    log_file: Any,
    log: Callable[[str], None],
) -> None:
    """Runs one part in a separate process, and adds each of its results to `results[name]` as soon as it is printed.

    Args:
        name: of PARTS.
        out: the folder of results.json, which is written after each result.
        limit: seconds until the part is stopped.
        tiny: small shapes, for tests.
        results: by part; this part's entry receives its rows, its state and its seconds.
        log_file: receives everything that the part prints.
        log: receives each result as a line, and the reason of a failure.
    """
    start_time, entry = time.monotonic(), results[name]
    command = [sys.executable, "-m", "fledgling.bench.gpu_parts", name, str(out), *(["tiny"] if tiny else [])]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    last: list[str] = []

    def read() -> None:
        for line in process.stdout or ():
            text, mark, value = line.partition(RESULT_MARK)
            if mark:
                row = json.loads(value)
                entry["rows"].append(row)
                write_json(out / "results.json", results)
                log(f"  {name}: {format_row(row)}")
            if text.strip():
                log_file.write(f"[{name}] {text.rstrip()}\n")
                log_file.flush()
                last.append(text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    kill_process_group(process)  # ends processes that the part left running too, such as the compiler's workers
    reader.join(5)  # with a limit: a process that left the group may hold the pipe open
    entry["seconds"] = round(time.monotonic() - start_time, 1)
    entry["state"] = "ok" if code == 0 else "out of time" if code is None else f"failed ({code})"
    if code:
        entry["error"] = "".join(last[-ERROR_LINES:])
        log(f"  {name}: {last[-1].strip() if last else 'no output'}")


def report_result(**values: Any) -> None:
    """Prints one result of the part that runs in this process, for `run_part` to read."""
    print(RESULT_MARK + json.dumps(values, default=str), flush=True)


def report_attempt(name: str, measure: Callable[[], dict[str, Any]]) -> bool:
    """Reports what `measure` returns, or the exception that it raises. Returns whether it succeeded."""
    try:
        values, succeeded = measure(), True
    except Exception as error:  # a shape that does not fit, or a candidate that cannot run here, is a result
        traceback.print_exc(file=sys.stdout)  # goes to log.txt
        values, succeeded = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"}, False
    report_result(what=name, **values)
    return succeeded


def get_device() -> torch.device:
    """Returns the measured device: the first CUDA device, or the CPU if there is none."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def kill_process_group(process: subprocess.Popen) -> None:
    """Kills a part and all processes of its group."""
    import signal

    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def format_row(row: dict[str, Any]) -> str:
    """Returns one result as text: "name value, name value"."""
    return ", ".join(f"{name} {format_result(value)}" for name, value in row.items())


def format_result(value: Any) -> str:
    """Returns a value as text: floats with four digits, texts cut at 160 characters."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)[:160]


def format_check_table(results: dict[str, Any]) -> str:
    """Returns all results as lines of text."""
    lines = []
    for name, entry in results.items():
        lines.append(f"{name}: {entry['state']}, {entry.get('seconds', 0)} s")
        lines += [f"    {format_row(row)}" for row in entry["rows"]]
        if "error" in entry:
            lines.append(f"    {entry['error'].strip().splitlines()[-1]}")
    return "\n".join(lines)
