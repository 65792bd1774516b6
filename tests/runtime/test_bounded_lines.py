"""A relay of lines passes on what is short, whole and at once, and ends a command whose line is too long."""

import subprocess
import sys

from fledgling.runtime.bounded_lines import pass_lines

RELAY = [sys.executable, "-m", "fledgling.runtime.bounded_lines", sys.executable, "-c"]


def test_lines_and_the_exit_code_are_passed_on():
    code = "import sys; [print(line.strip()[::-1], flush=True) for line in sys.stdin]; sys.exit(4)"
    done = subprocess.run([*RELAY, code], input=b"abc\nde\n", capture_output=True, timeout=60)
    assert done.stdout == b"cba\ned\n" and done.returncode == 4


def test_a_line_that_is_too_long_ends_the_command(capfdbinary):
    code = "import sys, time; print('ok'); sys.stdout.write('x' * 100); sys.stdout.flush(); time.sleep(60)"
    assert pass_lines([sys.executable, "-c", code], limit=50) == 1
    assert "more than 50 bytes" in capfdbinary.readouterr().err.decode()
