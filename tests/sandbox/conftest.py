"""Fixtures of the sandbox's tests: the layers of this machine, and running a program without a sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.sandbox import process
from tests.waits import WAIT_SECONDS


def read_proc(path: Path) -> str:
    """Returns the text of a file under /proc; "" where its process or thread has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> set[int]:
    """Returns all processes below `pid`."""
    pids = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in read_proc(children).split():
            pids |= {int(child)} | descendants(int(child))
    return pids


@pytest.fixture(scope="session")
def layers() -> dict[str, str]:
    """The layers that are on; tests that use this fixture are skipped where one is missing."""
    try:
        return process.get_layers()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def run_plain() -> Callable[[str], subprocess.CompletedProcess]:
    """Runs a program as a harness without a sandbox does: a process, the same environment, a time limit."""

    def run(code: str) -> subprocess.CompletedProcess:
        inherited = os.open(os.devnull, os.O_RDONLY)
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "FLEDGLING_ATTACK_SECRET": "secret"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[inherited],
            start_new_session=True,
        )
        os.close(inherited)
        try:
            output, errors = child.communicate(timeout=WAIT_SECONDS)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(code, child.returncode, output, errors)

    return run
