"""A relay of lines passes on what is short, whole and at once, and ends a command whose line is too long."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fledgling.runtime.bounded_lines import MAX_REPORTED_CHARACTERS, describe_end, pass_lines
from tests.waits import wait_for

RELAY = [sys.executable, "-m", "fledgling.runtime.bounded_lines"]


def test_lines_and_the_exit_code_are_passed_on(tmp_path):
    code = "import sys; [print(line.strip(), flush=True) for line in sys.stdin]; sys.exit(4)"
    command = [*RELAY, str(tmp_path / "end"), sys.executable, "-c", code]
    done = subprocess.run(command, input=b'{"a": 1}\n{}\n', capture_output=True, timeout=60)
    assert done.stdout == b'{"a": 1}\n{}\n' and done.returncode == 4


def test_lines_that_are_no_json_objects_are_left_out_and_the_first_is_named(tmp_path, capfdbinary):
    code = "print('debugging\\n'); print('[1]'); print('{\"id\": 1}'); print('{')"
    assert pass_lines([sys.executable, "-c", code], tmp_path / "end") == 0
    out, err = capfdbinary.readouterr()
    assert out == b'{"id": 1}\n' and err.count(b"\n") == 1 and b"'debugging'" in err
    assert "no JSON objects are left out, first 'debugging'" in describe_end(tmp_path / "end")


def test_a_line_that_is_too_long_ends_the_command(capfdbinary, tmp_path):
    code = "import sys, time; print('ok'); sys.stdout.write('x' * 100); sys.stdout.flush(); time.sleep(60)"
    assert pass_lines([sys.executable, "-c", code], tmp_path / "end", limit=50) == 1
    assert "more than 50 bytes" in capfdbinary.readouterr().err.decode()
    assert describe_end(tmp_path / "end").endswith("a line has more than 50 bytes; ended")


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import sys; print('a\\nb\\n', file=sys.stderr); sys.exit(3)", "exit code 3; its last line on stderr: b"),
        ("pass", "exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
    ],
)
def test_the_end_of_a_command_is_reported_and_its_stderr_passed_on(code, end, tmp_path, capfdbinary):
    pass_lines([sys.executable, "-c", code], tmp_path / "end")
    assert describe_end(tmp_path / "end") == end
    assert (b"a\nb\n" in capfdbinary.readouterr().err) == ("stderr" in end)


def test_a_command_that_cannot_be_started_and_a_long_line_are_reported(tmp_path, capfdbinary):
    assert pass_lines(["/nowhere/server"], tmp_path / "end") == 127
    assert describe_end(tmp_path / "end").endswith("/nowhere/server: No such file or directory")
    pass_lines([sys.executable, "-c", "import sys; print('x' * 999, file=sys.stderr)"], tmp_path / "end")
    assert len(json.loads((tmp_path / "end").read_text())["line"]) == MAX_REPORTED_CHARACTERS
    assert describe_end(tmp_path / "none") == ""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to look into")
@pytest.mark.parametrize("is_terminated", [False, True])
def test_a_command_whose_client_has_ended_is_killed_with_its_children(tmp_path, is_terminated):
    sleeps = (
        "import os, subprocess, time; child = subprocess.Popen(['sleep', '300']); "
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} .'); time.sleep(300)"
    )
    relay = [*RELAY, str(tmp_path / "end"), sys.executable, "-c", sleeps]
    client = f"import subprocess, time; subprocess.Popen({relay!r}, stdin=subprocess.PIPE); time.sleep(300)"
    process = subprocess.Popen(relay if is_terminated else [sys.executable, "-c", client], stdin=subprocess.PIPE)
    pids = tmp_path / "pids"
    wait_for(lambda: pids.exists() and pids.read_text().endswith("."))
    process.terminate() if is_terminated else process.kill()
    process.wait()
    wait_for(lambda: not any(Path("/proc", pid).exists() for pid in pids.read_text().split()[:2]))


SIGNALLED_AT_ONCE = """
import os, signal, subprocess, sys
from pathlib import Path
from fledgling.runtime.bounded_lines import pass_lines
class Signalled(subprocess.Popen):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        Path(sys.argv[1]).write_text(str(self.pid))
        os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Signalled
pass_lines(["sleep", "300"], Path(sys.argv[2]))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to look into")
def test_a_relay_that_is_terminated_while_its_command_starts_kills_it(tmp_path):
    pid = tmp_path / "pid"
    relay = [sys.executable, "-c", SIGNALLED_AT_ONCE, str(pid), str(tmp_path / "end")]
    assert subprocess.run(relay, timeout=60).returncode == 128 + signal.SIGTERM
    wait_for(lambda: not Path("/proc", pid.read_text()).exists())
