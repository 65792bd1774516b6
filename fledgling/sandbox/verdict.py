"""Does a program pass its tests? A verdict that the program cannot write.

The one idea: the program and the tests never share a process. The program's process answers calls of the function
under test with plain values; the tests run in a second jailed process, which alone can write the verdict, and whose
bytes and memory the first never sees (inside.py, values.py, zygote.py).

Guaranteed, as long as the kernel's locks hold: a program passes only if its function was called by the tests at
least once, every call was answered with values of built-in types, and the tests ran to their end without an
exception. Comparison, arithmetic and the assertion are the checker's own. Exiting, printing, forged messages, patched
built-ins, objects with an `__eq__`, walking frames, hooks, recursion and crashes can only make it fail. The program
cannot read the tests: they are never in its process, nor in the one it was forked from.

Not guaranteed: that the tests are good. A function that returns the right values for the arguments it is asked passes
whatever it does otherwise (it may keep state between calls, and learns all arguments before the one it is asked); a
test that catches every exception accepts every exception; one that compares the function with itself (some
lines of HumanEval/33 do) accepts whatever agrees with itself. Arguments and values are copies: a test of what a
function does to its argument, of identity, or of a returned function or object fails honest programs too.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from fledgling.sandbox.process import ForkServer, Limits, call_with_server

DEFAULT_TIMEOUT = 3.0


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, why not in a few words ("" when it passed), and the seconds it took."""

    passed: bool
    reason: str
    seconds: float


@dataclass(frozen=True)
class ProgramCheck:
    """A program and what it must do.

    program      the candidate's code, whole (HumanEval: prompt + completion).
    tests        code of the task's author. It may define `check(candidate)`, which is then called (HumanEval), or be
                 plain asserts that call the function by its name (MBPP).
    entry_point  the function under test.
    given        code of the task's author that the tests may use (HumanEval: the prompt, whose helper functions some
                 tests call); it is run beside the tests, never taken from the candidate.
    """

    program: str
    tests: str
    entry_point: str
    setup_code: str = ""


def check_program(
    program: str, tests: str, entry_point: str, timeout: float = DEFAULT_TIMEOUT, setup_code: str = ""
) -> Verdict:
    """Return whether `program` passes `tests` within `seconds` of wall clock; see `Check` for the arguments.

    Whatever the program does is a `Verdict`; raises `UserError` only when this machine cannot lock a process up.
    """
    return _run_check(ProgramCheck(program, tests, entry_point, setup_code), timeout)


def check_programs(
    checks: Iterable[ProgramCheck], timeout: float = DEFAULT_TIMEOUT, workers: int | None = None
) -> list[Verdict]:
    """Return the verdicts in order, `workers` at a time (default: one a core); `seconds` holds for each."""
    workers = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(partial(_run_check, timeout=timeout), checks))


def _run_check(check: ProgramCheck, timeout: float) -> Verdict:
    start = time.monotonic()
    reason = call_with_server(lambda zygote: _find_failure(check, zygote, Limits(timeout), time.monotonic() + timeout))
    return Verdict(not reason, reason, time.monotonic() - start)


def _find_failure(check: ProgramCheck, zygote: ForkServer, limits: Limits, deadline: float) -> str:
    """Return why the program does not pass, "" when it does; both processes are gone by then."""
    asking, answering = socket.socketpair()
    with asking, answering, zygote.fork_child("candidate", limits, answering) as candidate:
        answering.close()
        with zygote.fork_child("check", limits, asking) as checker:
            asking.close()
            error = candidate.send_job({"program": check.program, "entry_point": check.entry_point}, deadline)
            job = {"tests": check.tests, "entry_point": check.entry_point, "given": check.setup_code}
            error = checker.send_job(job, deadline) or error
            if error:
                return error
            verdict = checker.receive_report(deadline)
            if time.monotonic() >= deadline:
                return f"timed out after {limits.timeout:g} s"
            if not isinstance(verdict, dict):
                return f"the tests {checker.kill()}"
            return "" if verdict.get("passed") is True else str(verdict.get("reason") or "failed")[:300]
