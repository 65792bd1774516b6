"""A process that an experiment asks for measurements: a line in, a line of JSON out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fledgling.config import UserError


@contextmanager
def start_worker(
    arguments: Sequence[str], environment: Mapping[str, str], what: str
) -> Iterator[Callable[[object], dict[str, Any]]]:
    """Starts Python; yields a function that writes a line to it and returns the values of its next line.

    Args:
        arguments: of Python.
        environment: of the process, whole.
        what: the worker does, for the error.

    Raises:
        UserError: it has ended, when it is asked.
    """
    worker = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert worker.stdin is not None and worker.stdout is not None
    source, answers = worker.stdin, worker.stdout

    def ask(line: object) -> dict[str, Any]:
        with suppress(BrokenPipeError):
            print(line, file=source, flush=True)
        answer = answers.readline()
        if not answer:
            raise UserError(f"the worker that measures {what} ended with exit code {worker.wait()}; its error is above")
        return json.loads(answer)

    try:
        yield ask
    finally:
        with suppress(BrokenPipeError):
            source.close()
        worker.wait()
