"""What the sandbox's tests share: the layers of this machine, and the way a harness without a sandbox grades."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from fledgling.config import UserError
from fledgling.sandbox import process


@pytest.fixture(scope="session")
def layers() -> dict[str, str]:
    """The layers that are on; without them the tests that need them are skipped."""
    try:
        return process.get_layers()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def plain() -> Callable[[str], subprocess.CompletedProcess]:
    """Run a program as a harness without a sandbox would: a process, its environment, a time limit."""

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
            output, errors = child.communicate(timeout=20)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(code, child.returncode, output, errors)

    return run
