"""Decides whether a program passes its tests, in a way that the program cannot fake.

The program and the tests run in two jailed processes (jailed.py, messages.py, fork_server.py). The program's process
answers calls of the function under test with plain values; only the tests' process can send the verdict, and the
program can reach neither its bytes nor its memory.

Guaranteed, as long as the kernel's restrictions hold: a program passes only if the tests called its function at least
once, every call was answered with values of built-in types, and the tests ran to their end without an exception.
Comparison, arithmetic and the assertion happen in the tests' process. Exiting, printing, forged messages, patched
built-ins, objects with an `__eq__`, walking frames, hooks, recursion and crashes can only make a program fail. The
program cannot read the tests: they are not in its process and not in the one that it was forked from.

Tests that draw at random draw from a secret that the program cannot know: the tests' process gets a seed for `random`
and has a hash seed of its own, both new for each run, in another process tree than the program's. A verdict names them,
and the same check with the same `CheckSeed` draws the same tests.

Not guaranteed: that the tests are good. A test that seeds `random` itself, or draws from the clock, is predictable. A
function that returns the right values for the arguments of the tests passes, whatever else it does (it may keep state
between calls, and sees all earlier arguments). A test that catches every exception accepts every exception. A test that
compares the function with itself (some lines of HumanEval/33) accepts whatever agrees with itself. Arguments and values
are copies: a test of what a function does to its argument, of identity, or of a returned function or object fails
honest programs too.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from fledgling.runtime.cores import count_cores
from fledgling.sandbox.jailed import MAX_ERROR_CHARS
from fledgling.sandbox.process import FIXED_HASH_SEED, ForkServer, Limits, call_with_servers

DEFAULT_TIMEOUT = 3.0  # seconds


@dataclass(frozen=True)
class CheckSeed:
    """What the random draws of tests depend on.

    random_seed  seed of the module `random` in the tests' process, 128 bits.
    hash_seed    PYTHONHASHSEED of that process: the order of its sets.
    """

    random_seed: int
    hash_seed: int

    @classmethod
    def draw(cls) -> CheckSeed:
        """Draws a seed from the system's secure source; the hash seed is that of this process's fork servers."""
        return cls(secrets.randbits(128), _draw_hash_seed(os.getpid()))


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, why not in a few words ("" when it passed), the seconds it took, the tests' seed."""

    passed: bool
    reason: str
    seconds: float
    seed: CheckSeed


@dataclass(frozen=True)
class ProgramCheck:
    """A program and its tests.

    program      the complete code of the candidate (HumanEval: prompt + completion).
    tests        code of the task's author. It may define `check(candidate)`, which is then called (HumanEval), or be
                 plain asserts that call the function by its name (MBPP).
    entry_point  name of the function under test.
    setup_code   code of the task's author that the tests may use (HumanEval: the prompt, whose helper functions some
                 tests call); it runs in the tests' process and is never taken from the candidate.
    """

    program: str
    tests: str
    entry_point: str
    setup_code: str = ""


def check_program(
    program: str,
    tests: str,
    entry_point: str,
    timeout: float = DEFAULT_TIMEOUT,
    setup_code: str = "",
    seed: CheckSeed | None = None,
) -> Verdict:
    """Returns whether `program` passes `tests` within `timeout` seconds; see ProgramCheck for the arguments.

    Nothing that the program does raises. Raises UserError only when this machine cannot restrict a process.

    Args:
        seed: of an earlier verdict, to draw the same tests again; None: a new secret.
    """
    return _run_check(ProgramCheck(program, tests, entry_point, setup_code), timeout, seed)


def check_programs(
    checks: Iterable[ProgramCheck], timeout: float = DEFAULT_TIMEOUT, workers: int | None = None
) -> list[Verdict]:
    """Returns the verdicts in order, running `workers` checks at a time (default: one a core).

    timeout: seconds of each check.
    """
    workers = workers or count_cores()
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(partial(_run_check, timeout=timeout), checks))


@cache
def _draw_hash_seed(pid: int) -> int:
    """Returns the hash seed of the fork servers that run tests in process `pid`: never the programs' own."""
    return FIXED_HASH_SEED + 1 + secrets.randbelow(2**32 - 1 - FIXED_HASH_SEED)


def _run_check(check: ProgramCheck, timeout: float, seed: CheckSeed | None = None) -> Verdict:
    start = time.monotonic()
    drawn, limits = seed or CheckSeed.draw(), Limits(timeout)
    reason = call_with_servers(
        lambda candidate, tests: _find_failure(check, candidate, tests, drawn, limits, time.monotonic() + timeout),
        hash_seeds=(FIXED_HASH_SEED, drawn.hash_seed),
    )
    return Verdict(not reason, reason, time.monotonic() - start, drawn)


def _find_failure(
    check: ProgramCheck,
    candidate_server: ForkServer,
    tests_server: ForkServer,
    seed: CheckSeed,
    limits: Limits,
    deadline: float,
) -> str:
    """Returns why the program does not pass, "" when it does. Both processes have ended by then."""
    tests_end, candidate_end = socket.socketpair()
    with tests_end, candidate_end, candidate_server.fork_child("candidate", limits, candidate_end) as candidate:
        candidate_end.close()
        with tests_server.fork_child("check", limits, tests_end) as tests:
            tests_end.close()
            error = candidate.send_job({"program": check.program, "entry_point": check.entry_point}, deadline)
            job = {
                "tests": check.tests,
                "entry_point": check.entry_point,
                "setup_code": check.setup_code,
                "random_seed": f"{seed.random_seed:x}",
            }
            error = tests.send_job(job, deadline) or error
            if error:
                return error
            verdict = tests.receive_report(deadline)
            if time.monotonic() >= deadline:
                return f"timed out after {limits.timeout:g} s"
            if not isinstance(verdict, dict):
                return f"the tests {tests.kill()}"
            return "" if verdict.get("passed") is True else str(verdict.get("reason") or "failed")[:MAX_ERROR_CHARS]
