"""Runs a command and passes on the JSON objects of its standard output, one a line, as long as no line is too long.

    python -m fledgling.runtime.bounded_lines REPORT COMMAND [ARGUMENT ...]

A client of JSON lines reads into memory until a newline comes; through this process a server can send it no more than
MAX_LINE_BYTES at once. A longer line ends the command, and this process with exit code 1. A line that is no JSON
object, such as one that a server prints for debugging, is left out; the first is named on standard error. Where the
client has ended or this process is terminated, the command is killed, with the processes that it has started. The file
REPORT gets the last line of the command's standard error, which is passed on too, and the exit code: `describe_end`
reads them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

MAX_LINE_BYTES = 1_000_000
MAX_REPORTED_CHARACTERS = 200  # of a line of standard error
ORPHAN_SECONDS = 0.5  # between two looks whether the client is there


class EndReport:
    """The file in which a command's last line of standard error and its exit code are written."""

    def __init__(self, path: Path) -> None:
        self.path, self.line = path, ""

    def write(self, code: int | None = None) -> None:
        """Writes what is known; the code is None while the command runs."""
        self.path.write_text(json.dumps({"code": code, "line": self.line}))

    def follow(self, stream: BinaryIO) -> None:
        """Passes a standard error on until it ends, and notes its last line that is not empty."""
        while part := stream.readline(MAX_LINE_BYTES):
            sys.stderr.buffer.write(part)
            sys.stderr.buffer.flush()
            if text := part.decode("utf-8", "replace").strip():
                self.line = text[:MAX_REPORTED_CHARACTERS]
                self.write()


def pass_lines(command: Sequence[str], report: Path, limit: int = MAX_LINE_BYTES) -> int:
    """Runs `command` with this process's standard input until it ends; returns its exit code, 1 for a line too long."""
    end, parent, is_terminated = EndReport(report), os.getppid(), False
    process: subprocess.Popen | None = None

    def terminate(*_: object) -> None:
        nonlocal is_terminated
        is_terminated = True
        if process is not None:
            end_with_group(process, 128 + signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # before the command starts: a signal may come meanwhile
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        end.line = f"{command[0]}: {error.strerror}"
        end.write(127)
        print(end.line, file=sys.stderr)
        return 127
    if is_terminated:
        terminate()
    with process:
        assert process.stdout is not None and process.stderr is not None
        follower = threading.Thread(target=end.follow, args=(process.stderr,), daemon=True)
        follower.start()
        threading.Thread(target=kill_orphan, args=(process, parent), daemon=True).start()
        names_other = False
        while line := process.stdout.readline(limit):
            if len(line) == limit and not line.endswith(b"\n"):
                kill_group(process)
                follower.join(1)
                end.line = f"{command[0]}: a line has more than {limit:,} bytes; ended"
                end.write(1)
                print(end.line, file=sys.stderr)
                return 1
            if is_json_object(line):
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            elif line.strip() and not names_other:
                names_other = True
                shown = line.decode("utf-8", "replace").strip()[:MAX_REPORTED_CHARACTERS]
                end.line = f"{command[0]}: lines of its output that are no JSON objects are left out, first {shown!r}"
                end.write()
                print(end.line, file=sys.stderr)
        code = process.wait()
        follower.join(1)  # a child of the command may keep the stream
        end.write(code)
        return code


def kill_orphan(process: subprocess.Popen, parent: int) -> None:
    """Kills a command, which may be busy for hours, and ends this process once the one that reads it has ended."""
    while process.poll() is None:
        if os.getppid() != parent:
            end_with_group(process, 1)
        time.sleep(ORPHAN_SECONDS)


def end_with_group(process: subprocess.Popen, code: int) -> None:
    """Kills a command with its processes and exits, also where a line of one that has left the group is waited for."""
    kill_group(process)
    os._exit(code)


def kill_group(process: subprocess.Popen) -> None:
    """Kills a command and the processes that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def is_json_object(line: bytes) -> bool:
    """Returns whether a line is a JSON object, as every message of the protocol is."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def has_ended(report: Path) -> bool:
    """Returns whether a command's report has its exit code."""
    try:
        return json.loads(report.read_text())["code"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def describe_end(report: Path) -> str:
    """Returns how a command ended and its last line of standard error; "" where nothing is known."""
    try:
        known = json.loads(report.read_text())
        code, line = known["code"], str(known["line"])
    except (OSError, ValueError, KeyError):
        return ""
    parts = [] if code is None else [f"exit code {code}"]
    if code is not None and -code in set(signal.Signals):
        parts = [f"ended by {signal.Signals(-code).name}"]
    return "; ".join([*parts, *([f"its last line on stderr: {line}"] if line else [])])


if __name__ == "__main__":
    sys.exit(pass_lines(sys.argv[2:], Path(sys.argv[1])))
