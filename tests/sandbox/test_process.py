"""Programs in a process: what they report, the limits, failing closed, and that no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.sandbox.process import REQUIRED_LAYERS, Limits, get_layers
from tests.sandbox.conftest import descendants, read_proc
from tests.sandbox.patient import run_program
from tests.waits import WAIT_SECONDS, wait_for

pytestmark = pytest.mark.usefixtures("layers")


def test_a_program_gives_value_output_and_error():
    result = run_program("print('hello')\n6 * 7")
    assert (result.value, result.output, result.error) == ("42", "hello\n", "")
    assert run_program("x = 1").value is None
    assert run_program("import sys\nprint(input(), file=sys.stderr)", stdin="line\nmore").output == "line\n"
    assert run_program("1 / 0").error == "ZeroDivisionError: division by zero"
    assert run_program("print(1").error.startswith("SyntaxError")


def test_the_standard_library_is_there():
    names = "argparse asyncio csv difflib email html json logging pprint sqlite3 tomllib unittest xml.etree.ElementTree"
    for name in names.split():
        result = run_program(f"import {name}")
        assert not result.error or name == "sqlite3", result.error


def test_programs_are_deterministic():
    code = "import random\nprint(random.random(), list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert run_program(code).output == run_program(code).output


def test_the_time_limit_holds_from_any_thread():
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(run_program("while True: pass", limits=Limits(timeout=0.3))))
        for _ in range(3)
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < WAIT_SECONDS
    assert [result.error for result in results] == ["timed out after 0.3 s"] * 3


def test_an_unknown_layer_is_rejected():
    with pytest.raises(UserError, match="unknown layer fence"):
        run_program("1", disabled_layers=frozenset({"fence"}))


def test_the_layers_are_listed():
    assert set(get_layers()) >= set(REQUIRED_LAYERS)
    assert get_layers(frozenset({"landlock"}))["landlock"] == "off"


WITHOUT_LAYER = """
import ctypes, errno, struct, sys
from fledgling.config import UserError
from fledgling.sandbox import restrictions
from fledgling.sandbox.process import Limits, run_program

number = int(sys.argv[1])
code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, int(sys.argv[2])),
        (0x06, 0, 0, 0x50000 | errno.EOPNOTSUPP), (0x06, 0, 0, 0x7FFF0000)]
restrictions.set_no_new_privileges()
restrictions.apply_seccomp(b"".join(struct.pack("=HBBI", *line) for line in code))
for disabled in (frozenset(), frozenset({sys.argv[3]})):
    try:
        print("ran", run_program("1 + 1", Limits(60.0), disabled_layers=disabled).value)
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="uses the system call numbers of x86-64")
@pytest.mark.parametrize("layer, number, first", [("landlock", 444, 0), ("seccomp", 157, 21), ("seccomp", 157, 22)])
def test_nothing_runs_where_the_kernel_lacks_a_layer(layer, number, first):
    """A filter makes a call of Landlock, or of seccomp (querying, applying), fail as on an old kernel."""
    script = [sys.executable, "-c", WITHOUT_LAYER, str(number), str(first), layer]
    result = subprocess.run(script, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True)
    error, ran = result.stdout.splitlines()
    assert error.startswith("sandbox: ") and len(error) < 200
    assert layer in error
    assert ran == "ran 2"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="uses the system call numbers of x86-64")
def test_programs_run_without_namespaces_where_a_machine_denies_them():
    script = WITHOUT_LAYER.replace("run_program(", "str(get_layers()), run_program(", 1)
    script = script.replace("import Limits", "import Limits, get_layers")
    result = subprocess.run(
        [sys.executable, "-c", script, "272", str(0x7C020000), "namespaces"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=True,
    )
    ran = result.stdout.splitlines()
    assert len(ran) == 2 and all(line.endswith(" 2") for line in ran)
    assert "'namespaces': 'unavailable'" in ran[0] and "'seccomp': 'on'" in ran[0]


HARNESS = """
import sys
from fledgling.sandbox.process import Limits, run_program

run_program("1")
print("started", flush=True)
sys.stdin.readline()
run_program("while True: pass", Limits(timeout=600))
"""


def test_no_process_outlives_a_killed_harness():
    command = [sys.executable, "-c", HARNESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as harness:
        try:
            assert harness.stdout.readline() == "started\n"
            servers = descendants(harness.pid)
            harness.stdin.write("\n")
            harness.stdin.flush()
            wait_for(lambda: descendants(harness.pid) > servers)  # the program runs
            processes = descendants(harness.pid)
        finally:
            harness.kill()
    assert servers and processes > servers
    wait_for(lambda: not any(is_running(pid) for pid in processes))


def is_running(pid: int) -> bool:
    """Returns whether the process runs; one that has ended and waits for its parent does not."""
    stat = read_proc(Path(f"/proc/{pid}/stat"))
    return stat != "" and stat.rpartition(")")[2].split()[0] != "Z"


def test_a_killed_fork_server_is_replaced():
    run_program("1")
    for pid in descendants(os.getpid()):
        if "fledgling.sandbox.fork_server" in read_proc(Path(f"/proc/{pid}/cmdline")):
            os.kill(pid, signal.SIGKILL)
    assert run_program("1 + 1").value == "2"


def test_a_forked_process_starts_its_own_servers():
    assert run_program("1 + 1").value == "2"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run_program("2 + 2").value == "4" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert run_program("3 + 3").value == "6"
