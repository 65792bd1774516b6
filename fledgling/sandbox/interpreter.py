"""A small Python without access to the machine: Monty, an interpreter written in Rust, in a reused worker process.

The interpreter has no files, network or processes that would need to be restricted. A call is one message to a running
process and takes a fraction of a millisecond. Each call starts with empty names; time, memory, recursion and printed
output are limited; every error is returned as a short text.

Monty is not all of Python: it has no third-party modules, part of the standard library, no `input` and no `exit`. Use
process.py for programs that need more. Runs on every platform; needs the package `pydantic-monty` (pip install
'fledgling[sandbox]').
"""

from __future__ import annotations

import atexit
import os
import time
from functools import cache
from typing import Any

from fledgling.config import UserError
from fledgling.sandbox.jailed import MAX_ERROR_CHARS, MAX_VALUE_CHARS
from fledgling.sandbox.process import MIB, ExecutionResult, Limits

TOOL_LIMITS = Limits(timeout=1.0, memory_bytes=16 * MIB, output_bytes=4096)  # of a tool call
MAX_RECURSION = 200
MAX_CODE_CHARS = 64 * 1024


def evaluate_code(code: str, limits: Limits = TOOL_LIMITS) -> ExecutionResult:
    """Runs `code` and returns the value of its last expression as text, what it printed, and its error.

    Nothing that `code` does raises. `limits.timeout` counts the interpreter's own time; an interpreter that does not
    check its clock is killed a second later. Sleeping takes no time. The random seed is 0.
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
        except monty.MontySyntaxError as exception:
            error = f"SyntaxError: {exception}"
        except monty.MontyCrashedError:
            error = "the interpreter had to be killed"
        except (monty.MontyError, ValueError, RecursionError) as exception:
            error = str(exception) or type(exception).__name__
    return ExecutionResult(value, printed.output, " ".join(error.split())[:MAX_ERROR_CHARS], time.monotonic() - start)


def _format_value(value: Any) -> str | None:
    """Formats a value with repr; raises ValueError for an integer with too many digits."""
    return None if value is None else repr(value)[:MAX_VALUE_CHARS]


def import_monty() -> Any:
    """Returns the package pydantic_monty. Raises UserError where it is not installed."""
    try:
        import pydantic_monty
    except ImportError as error:
        raise UserError("the interpreter needs pydantic-monty: pip install 'fledgling[sandbox]'") from error
    return pydantic_monty


@cache
def _get_pool(pid: int) -> Any:
    """Returns the workers of process `pid`; a forked process must not share its parent's."""
    pool = import_monty().Monty(max_checkouts_per_worker=10_000)
    pool.__enter__()
    atexit.register(pool.__exit__, None, None, None)
    return pool
