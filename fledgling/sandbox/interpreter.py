"""A small Python without a machine under it: Monty, an interpreter written in Rust, in a worker that is reused.

The one idea: what is not there needs no lock. The interpreter has no files, network, processes or environment to
offer, so a call is a message to a process that waits already, a fraction of a millisecond. Each call starts with
fresh names; time, memory, recursion and printed output have bounds; whatever goes wrong is a short text.

It is not all of Python: no third-party modules, part of the standard library, no `input`, no `exit`. What it cannot
run belongs into process.py. It runs on every platform. Needs the package `pydantic-monty` (pip install
'fledgling[sandbox]').
"""

from __future__ import annotations

import atexit
import os
import time
from functools import cache
from typing import Any

from fledgling.config import UserError
from fledgling.sandbox.process import MIB, ExecutionResult, Limits

TOOL_LIMITS = Limits(timeout=1.0, memory_bytes=16 * MIB, output_bytes=4096)  # what a tool call gets
MAX_RECURSION = 200
MAX_CODE_CHARS = 64 * 1024  # characters
MAX_VALUE_CHARS = 10_000  # characters of a value, as text


def evaluate_code(code: str, limits: Limits = TOOL_LIMITS) -> ExecutionResult:
    """Run `code` and return the value of its last expression as text, what it printed, and its error.

    Nothing that `code` does raises. `limits.seconds` counts the interpreter's own time; one that does not even
    come back to look at the clock is killed a second later. Sleeping takes no time. Random numbers start from 0.
    """
    monty = import_monty()
    start = time.monotonic()
    printed = monty.CollectString(limits.output_bytes)
    value, error = None, ""
    if len(code) > MAX_CODE_CHARS:
        error = f"too long: {len(code)} characters"
    else:
        try:
            with _get_pool(os.getpid()).checkout(
                limits={
                    "max_feed_duration_secs": limits.timeout,
                    "max_memory": limits.memory_bytes,
                    "max_recursion_depth": MAX_RECURSION,
                    "max_suspensions": 100,
                },
                os_policy={"sleep": "zero", "random_start": {"seed": 0}},
            ) as session:
                value = _format_value(session.feed_run(code, print_callback=printed))
        except monty.MontySyntaxError as problem:
            error = f"SyntaxError: {problem}"
        except monty.MontyCrashedError:
            error = "the interpreter had to be stopped"
        except (monty.MontyError, ValueError, RecursionError) as problem:
            error = str(problem) or type(problem).__name__
    return ExecutionResult(value, printed.output, " ".join(error.split())[:300], time.monotonic() - start)


def _format_value(value: Any) -> str | None:
    """Return a value as Python would show it; raises `ValueError` for an integer of too many digits."""
    return None if value is None else repr(value)[:MAX_VALUE_CHARS]


def import_monty() -> Any:
    """Return the interpreter's package; raises `UserError` where it is not installed."""
    try:
        import pydantic_monty
    except ImportError as error:
        raise UserError("the interpreter needs pydantic-monty: pip install 'fledgling[sandbox]'") from error
    return pydantic_monty


@cache
def _get_pool(pid: int) -> Any:
    """Return the workers of this process, for a forked process must not share its parent's."""
    pool = import_monty().Monty(max_checkouts_per_worker=10_000)
    pool.__enter__()
    atexit.register(pool.__exit__, None, None, None)
    return pool
