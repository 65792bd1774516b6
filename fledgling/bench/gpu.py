"""The check of one GPU: every claim about CUDA as a number, in one command and a few minutes.

Start reading at `PARTS`. Each part runs in a process of its own under a time limit of its own, so that a crash or a
lack of memory in one part loses nothing of the others. A part prints one JSON object a line as soon as it knows it;
`run_check` adds each to DIR/results.json at once. The parts themselves are in `gpu_parts.py` and `gpu_kernels.py`;
docs/gpu.md says what is expected of each number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.config import UserError
from fledgling.record import write_json

if TYPE_CHECKING:
    import torch

MARK = "@@"  # begins a line of a part that is a result; every other line goes into the log
# part: its time limit in seconds. The order is the default order: the cheapest and most telling first.
PARTS = {
    "card": 60,
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
    "rollouts": 90,
    "memory_compiled": 300,
}
DEFAULT = tuple(name for name in PARTS if name != "memory_compiled")
LAST_LINES = 30  # of a part that failed, kept in the results
LEAST = 5  # seconds: with less left a part is not begun


def run_check(
    out: Path,
    minutes: float,
    parts: Sequence[str] = DEFAULT,
    tiny: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run the parts in order until `minutes` have passed; returns, by part, what DIR/results.json holds.

    Args: tiny: small shapes, which a CPU computes in seconds. Raises UserError for a part that does not exist, or for
    no time at all.
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown or not parts:
        raise UserError(f"--parts {','.join(unknown) or 'nothing'}: expected some of {', '.join(PARTS)}")
    if minutes <= 0:
        raise UserError(f"--minutes {minutes}: expected more than 0")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    end = time.monotonic() + 60 * minutes
    with open(out / "log.txt", "w", encoding="utf-8") as log:
        for name in parts:
            limit = min(PARTS[name], end - time.monotonic())
            if limit < LEAST:
                results[name] = {"state": "skipped", "rows": [], "error": "no time left"}
            else:
                results[name] = {"state": "running", "rows": []}
                run_part(name, out, limit, tiny, results, log, say)
            write_json(out / "results.json", results)
            say(f"{name}: {results[name]['state']} {results[name].get('seconds', '')}")
    return results


def run_part(
    name: str,
    out: Path,
    limit: float,
    tiny: bool,
    results: dict[str, Any],
    log: Any,
    say: Callable[[str], None],
) -> None:
    """Run one part in a process of its own and add what it says to `results`, line by line."""
    began, entry = time.monotonic(), results[name]
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
            text, mark, found = line.partition(MARK)
            if mark:
                row = json.loads(found)
                entry["rows"].append(row)
                write_json(out / "results.json", results)
                say(f"  {name}: {describe_row(row)}")
            if text.strip():
                log.write(f"[{name}] {text.rstrip()}\n")
                log.flush()
                last.append(text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    stop_group(process)  # also what it has left behind, such as the compiler's workers
    reader.join(5)  # not for ever: a process that left the group may hold the pipe open
    entry["seconds"] = round(time.monotonic() - began, 1)
    entry["state"] = "ok" if code == 0 else "out of time" if code is None else f"failed ({code})"
    if code:
        entry["error"] = "".join(last[-LAST_LINES:])
        say(f"  {name}: {last[-1].strip() if last else 'no output'}")


def note(**values: Any) -> None:
    """Report one result of the part that runs in this process."""
    print(MARK + json.dumps(values, default=str), flush=True)


def place() -> torch.device:
    """Returns the device that is measured: the first CUDA device, or the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def stop_group(process: subprocess.Popen) -> None:
    """Kill a part and every process it started."""
    import signal

    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def describe_row(row: dict[str, Any]) -> str:
    """Returns one result as `name value, name value`; numbers to four digits."""
    return ", ".join(f"{name} {shown(value)}" for name, value in row.items())


def shown(value: Any) -> str:
    """Returns a value as people read it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)[:160]


def table(results: dict[str, Any]) -> str:
    """Returns all results as lines for people."""
    lines = []
    for name, entry in results.items():
        lines.append(f"{name}: {entry['state']}, {entry.get('seconds', 0)} s")
        lines += [f"    {describe_row(row)}" for row in entry["rows"]]
        if "error" in entry:
            lines.append(f"    {entry['error'].strip().splitlines()[-1]}")
    return "\n".join(lines)
