"""What runs in a jailed process: a program, a candidate that answers calls, or the tests that make the calls.

The candidate's code and the tests never share a process. The candidate's process holds the program and answers calls
with plain values. The tests' process replaces the function under test by a stub that sends the arguments and receives
the value. Only the tests' process has a channel for the verdict, so whatever the candidate exits, prints or patches, it
can only answer calls.

Each role function is the whole life of one process: it reads one job from its channel and returns. Imports only the
standard library, because it runs inside the jail's own Python.
"""

from __future__ import annotations

import ast
import builtins
import io
import random
import sys
import traceback
from typing import Any, NoReturn

from fledgling.sandbox.messages import (
    ChannelError,
    UnsupportedValue,
    decode_value,
    encode_value,
    receive_message,
    send_message,
)

MAX_ERROR_CHARS = 300  # of an error or a reason
MAX_VALUE_CHARS = 10_000  # of a value as text


class CheckAborted(BaseException):
    """Ends the tests at once and cannot be caught into a pass: the candidate ended, or returned no plain value."""


def format_error(error: BaseException) -> str:
    """Formats an exception as one short line; its own `__str__` may raise."""
    try:
        text = f"{type(error).__name__}: {error}"[: 4 * MAX_ERROR_CHARS]
    except BaseException:
        text = type(error).__name__
    return " ".join(text.split())[:MAX_ERROR_CHARS].removesuffix(":").strip()


def execute_program(channel: int) -> None:
    """Runs a program; reports the value of its last line, if that is an expression, and its error, if any."""
    job = receive_message(channel)
    random.seed(0)
    sys.stdin = io.StringIO(job["stdin"])
    namespace = {"__name__": "__main__", "__builtins__": builtins}
    report: dict[str, str | None] = {"value": None, "error": None}
    try:
        tree = ast.parse(job["code"], "<program>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<program>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<program>", "eval"), namespace)
            report["value"] = None if value is None else repr(value)[:MAX_VALUE_CHARS]
    except BaseException as error:
        report["error"] = format_error(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException as error:
            report["error"] = report["error"] or format_error(error)
    send_message(channel, report)


def serve_candidate(channel: int, connection: int) -> None:
    """Runs a candidate's program, then answers calls of its function on `connection` until the other side closes."""
    job = receive_message(channel)
    random.seed(1)
    namespace = {"__name__": "candidate", "__builtins__": builtins}
    try:
        exec(compile(job["program"], "<program>", "exec"), namespace)
        function: Any = namespace[job["entry_point"]]
    except KeyError:
        return send_message(connection, {"error": f"no function {job['entry_point']}"})
    except BaseException as error:
        return send_message(connection, {"error": format_error(error)})
    send_message(connection, {})
    while True:
        arguments, keywords = decode_value(receive_message(connection))
        try:
            reply = {"value": encode_value(function(*arguments, **keywords))}
        except UnsupportedValue as error:
            reply = {"unsupported": str(error)}
        except Exception as error:
            reply = {"raised": type(error).__name__, "text": format_error(error).partition(": ")[2]}
        except BaseException as error:
            reply = {"exited": format_error(error)}
        send_message(connection, reply)


def execute_tests(channel: int, connection: int) -> None:
    """Runs the tests against the candidate at the other end of `connection`; sends the verdict on `channel`."""
    job = receive_message(channel)
    random.seed(int(job.pop("random_seed"), 16))  # secret: the candidate cannot draw the same tests
    stub = CandidateStub(connection)
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    reason = ""
    try:
        stub.wait_ready()
        exec(compile(job["setup_code"], "<setup>", "exec"), namespace)
        namespace[job["entry_point"]] = stub.call
        exec(compile(job["tests"], "<tests>", "exec"), namespace)
        check = namespace.get("check", stub.call)
        if check != stub.call:
            check(stub.call)
    except BaseException as error:
        reason = _describe_failure(error, job["tests"]) or "failed"
    reason = stub.failure or reason or ("" if stub.call_count else f"the tests never call {job['entry_point']}")
    send_message(channel, {"passed": not reason, "reason": reason})


class CandidateStub:
    """The function under test, as the tests' process sees it.

    `failure` is why the program can no longer pass: its process ended, its code did not run, or it returned something
    that is not made of built-in types. It stays set, even if the tests catch the exception.
    """

    def __init__(self, connection: int) -> None:
        self.connection = connection
        self.call_count = 0
        self.failure = ""

    def wait_ready(self) -> None:
        """Waits until the candidate's program has run."""
        error = self._request().get("error")
        if error:
            self._abort(error)

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls the candidate's function with copies of the arguments; returns a copy of its value, or raises alike."""
        if self.failure:
            raise CheckAborted(self.failure)
        self.call_count += 1
        reply = self._request(encode_value((arguments, keywords)))
        if "value" in reply:
            try:
                return decode_value(reply["value"])
            except (ChannelError, RecursionError, MemoryError):
                self._abort("the program sent no value")
        if "raised" in reply:
            raise _rebuild_exception(str(reply["raised"]), str(reply.get("text", "")))
        if "unsupported" in reply:
            self._abort(f"returned what has no plain value: {reply['unsupported']}")
        self._abort(str(reply.get("exited")))

    def _request(self, message: Any = None) -> dict:
        try:
            if message is not None:
                send_message(self.connection, message)
            reply = receive_message(self.connection)
        except (ChannelError, MemoryError):
            self._abort("the program ended before it answered")
        if not isinstance(reply, dict):
            self._abort("the program sent no value")
        return reply

    def _abort(self, reason: str) -> NoReturn:
        self.failure = " ".join(str(reason).split())[:MAX_ERROR_CHARS] or "broken"
        raise CheckAborted(self.failure)


def _rebuild_exception(name: str, text: str) -> Exception:
    """Returns the built-in exception `name`, or a RuntimeError that names it.

    StopIteration becomes a RuntimeError: raised inside `map` or `all` it would end the tests early without an error.
    """
    kind = getattr(builtins, name, None)
    ends_iteration = StopIteration | StopAsyncIteration
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, ends_iteration):
        try:
            return kind(text)
        except TypeError:  # some need more than a text
            pass
    return RuntimeError(f"{name}: {text}"[:MAX_ERROR_CHARS])


def _describe_failure(error: BaseException, tests: str) -> str:
    """Formats an error of the tests as a short line, with the source line of a failed assertion."""
    text = format_error(error)
    if isinstance(error, AssertionError) and text == "AssertionError":
        lines = tests.splitlines()
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename == "<tests>" and frame.lineno and frame.lineno <= len(lines):
                return f"{text}: {lines[frame.lineno - 1].strip()}"[:MAX_ERROR_CHARS]
    return text
