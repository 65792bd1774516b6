"""The process way: what it reports, that it bounds, that it fails closed, that it leaves nothing behind."""

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
from fledgling.sandbox.process import REQUIRED_LAYERS, Limits, get_layers, run_program

pytestmark = pytest.mark.usefixtures("layers")


def test_a_program_s_value_output_and_error():
    end = run_program("print('hello')\n6 * 7")
    assert (end.value, end.output, end.error) == ("42", "hello\n", "")
    assert run_program("x = 1").value is None
    assert run_program("import sys\nprint(input(), file=sys.stderr)", stdin="line\nmore").output == "line\n"
    assert run_program("1 / 0").error == "ZeroDivisionError: division by zero"
    assert run_program("print(1").error.startswith("SyntaxError")


def test_the_standard_library_is_there():
    names = "argparse asyncio csv difflib email html json logging pprint sqlite3 tomllib unittest xml.etree.ElementTree"
    for name in names.split():
        end = run_program(f"import {name}")
        assert not end.error or name == "sqlite3", end.error


def test_programs_do_the_same_every_time():
    code = "import random\nprint(random.random(), list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert run_program(code).output == run_program(code).output


def test_the_time_limit_holds_from_any_thread():
    ends = []
    threads = [
        threading.Thread(target=lambda: ends.append(run_program("while True: pass", Limits(timeout=0.3))))
        for _ in range(3)
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 3
    assert [end.error for end in ends] == ["timed out after 0.3 s"] * 3


def test_a_layer_s_name_is_checked():
    with pytest.raises(UserError, match="unknown layer fence"):
        run_program("1", disabled_layers=frozenset({"fence"}))


def test_layers_are_told():
    assert set(get_layers()) >= set(REQUIRED_LAYERS)
    assert get_layers(frozenset({"landlock"}))["landlock"] == "off"


LACKING = """
import ctypes, errno, struct, sys
from fledgling.config import UserError
from fledgling.sandbox import kernel
from fledgling.sandbox.process import run_program

number = int(sys.argv[1])
code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, int(sys.argv[2])),
        (0x06, 0, 0, 0x50000 | errno.EOPNOTSUPP), (0x06, 0, 0, 0x7FFF0000)]
kernel.no_new_privileges()
kernel.filter_calls(b"".join(struct.pack("=HBBI", *line) for line in code))
for without in (frozenset(), frozenset({sys.argv[3]})):
    try:
        print("ran", run_program("1 + 1", without=without).value)
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("layer, number, first", [("landlock", 444, 0), ("seccomp", 157, 21), ("seccomp", 157, 22)])
def test_it_refuses_where_the_kernel_lacks_a_layer(layer, number, first):
    """A filter makes this kernel one without Landlock (its first call), or seccomp (asking for it, putting it on)."""
    script = [sys.executable, "-c", LACKING, str(number), str(first), layer]
    end = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)
    refused, ran = end.stdout.splitlines()
    assert refused.startswith("sandbox: ") and len(refused) < 200
    assert layer in refused
    assert ran == "ran 2"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_it_does_without_namespaces_where_a_machine_gives_none():
    script = LACKING.replace("run_program(", "str(get_layers()), run_program(").replace(
        "import run_program", "import get_layers, run_program"
    )
    end = subprocess.run(
        [sys.executable, "-c", script, "272", str(0x7C020000), "namespaces"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ran = end.stdout.splitlines()
    assert len(ran) == 2 and all(line.endswith(" 2") for line in ran)
    assert "'namespaces': 'not here'" in ran[0] and "'seccomp': 'on'" in ran[0]


HARNESS = """
import os, threading, time
from fledgling.sandbox.process import Limits, run_program, _get_pool

thread = threading.Thread(target=run_program, args=("while True: pass", Limits(seconds=60)), daemon=True)
run_program("1")
thread.start()
time.sleep(0.3)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def below(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [other for child in children for other in below(int(child))]


def test_nothing_outlives_a_harness_that_is_killed():
    harness = subprocess.Popen([sys.executable, "-c", HARNESS], stdout=subprocess.PIPE, text=True)
    assert int(harness.stdout.readline()) == harness.pid
    family = below(harness.pid)
    assert len(family) >= 2  # a fork server and its child
    harness.send_signal(signal.SIGKILL)
    harness.wait()
    harness.stdout.close()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in family if alive(pid)] == []


def alive(pid: int) -> bool:
    """Whether the process runs: one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_fork_server_is_replaced():
    run_program("1")
    for pid in below(os.getpid()):
        if b"fledgling.sandbox.fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert run_program("1 + 1").value == "2"


def test_a_forked_process_has_servers_of_its_own():
    assert run_program("1 + 1").value == "2"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run_program("2 + 2").value == "4" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert run_program("3 + 3").value == "6"
