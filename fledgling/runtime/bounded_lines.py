"""Runs a command and passes on its standard output line by line, as long as no line is too long.

    python -m fledgling.runtime.bounded_lines COMMAND [ARGUMENT ...]

A client of JSON lines reads into memory until a newline comes; through this process a server can send it no more than
MAX_LINE_BYTES at once. A longer line ends the command, and this process with exit code 1.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

MAX_LINE_BYTES = 1_000_000


def pass_lines(command: Sequence[str], limit: int = MAX_LINE_BYTES) -> int:
    """Runs `command` with this process's standard input until it ends; returns its exit code, 1 for a line too long."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while line := process.stdout.readline(limit):
            if len(line) == limit and not line.endswith(b"\n"):
                process.kill()
                print(f"{command[0]}: a line has more than {limit:,} bytes; ended", file=sys.stderr)
                return 1
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        return process.wait()


if __name__ == "__main__":
    sys.exit(pass_lines(sys.argv[1:]))
