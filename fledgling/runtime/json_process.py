"""A child process that answers lines of JSON, each within a time: for code of a user that may hang, print or exit."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from fledgling.runtime.user_code import describe_exception


class JsonProcess:
    """Starts `command`; each `ask` writes one line to its stdin and reads one from its stdout, a thread at a time.

    Texts have the same hash in every process, so that what a user's code makes of a set is the same after a restart.
    """

    def __init__(self, command: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.buffer = b""
        self.lock = threading.Lock()

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Returns the reply to `request`; {"error": why} if there is none within `timeout` seconds."""
        with self.lock:
            try:
                assert self.process.stdin is not None
                self.process.stdin.write((json.dumps(request, default=str) + "\n").encode())
                self.process.stdin.flush()
                reply = self.read_reply(timeout)
            except BrokenPipeError:
                reply = None
        if reply is None:
            code = self.process.poll()
            late = f"took more than {timeout:g} s" if code is None else f"ended its process (exit code {code})"
            return {"error": late}
        return reply

    def read_reply(self, timeout: float) -> dict[str, Any] | None:
        """Returns the next line of the process, or None if it ends or the time is over."""
        assert self.process.stdout is not None
        pipe, deadline = self.process.stdout.fileno(), time.monotonic() + timeout
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(pipe, 1 << 16) if ready else b""
            if not piece:
                if ready:
                    self.process.wait()
                return None
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def serve_json_lines(load: Callable[[], Any], answer: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> None:
    """The child's side: loads the user's code, then writes `answer(code, request)` for each line of stdin.

    The first line is {"ready": true}, or {"error": why} if it cannot be loaded. What the code prints goes to stderr, so
    it cannot write into the replies.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        code = load()
    except BaseException as error:
        reply({"error": f"cannot be loaded: {describe_exception(error)}"})
        return
    reply({"ready": True})
    for line in sys.stdin:
        reply(answer(code, json.loads(line)))
