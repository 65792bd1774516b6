"""Namespaces: a process inside sees only the paths it was given, and its supervisor ends with it."""

import subprocess
import sys

import pytest

from tests.waits import WAIT_SECONDS

PROGRAM = """
import os, sys
from fledgling.sandbox.namespaces import enter_namespaces, supervise_init
try:
    enter_namespaces([sys.argv[1]])
except OSError as error:
    print("denied", error)
    raise SystemExit
child = os.fork()
if child == 0:
    print(os.getpid(), os.path.exists(sys.argv[1]), os.path.exists("/etc/passwd"), flush=True)
    os._exit(0)
supervise_init(child, os.getppid(), 1.0)
print("ended")
"""


def test_a_process_sees_what_it_was_given_and_nothing_else(tmp_path):
    given = tmp_path / "given.txt"
    given.write_text("x")
    words = [sys.executable, "-c", PROGRAM, str(given)]
    output = subprocess.run(words, capture_output=True, text=True, check=True, timeout=WAIT_SECONDS).stdout
    if output.startswith("denied"):
        pytest.skip(f"this machine makes no namespaces: {output}")
    assert output.splitlines() == ["1 True False", "ended"]
