"""What runs behind the locks: a program, a candidate that answers calls, or a checker that asks them.

The one idea: the candidate's code and the tests never share a process. The candidate's process holds the program
and answers calls with plain values; the checker's process holds the tests, where the function under test is a stub
that sends its arguments away and gets a value back. Only the checker has a channel to the harness for the verdict,
so whatever the candidate exits, prints, patches or walks to, it can still only answer calls.

Each function here is the whole life of one jailed process: it reads one job from its channel and returns.
Nothing is imported but the standard library, because this runs inside the jail's own Python.
"""

from __future__ import annotations

import ast
import builtins
import io
import random
import sys
import traceback
from typing import Any

from fledgling.sandbox.messages import (
    ChannelError,
    UnsupportedValue,
    decode_value,
    encode_value,
    receive_message,
    send_message,
)

MAX_ERROR_CHARS = 300  # characters of an error or a reason
MAX_VALUE_CHARS = 10_000  # characters of a printed value


class CheckAborted(BaseException):
    """What ends the tests at once and cannot be caught into a pass: the candidate left, or answered no value."""


def format_error(error: BaseException) -> str:
    """Return an exception as one short line; its own `__str__` may do what it likes."""
    try:
        text = f"{type(error).__name__}: {error}"[: 4 * MAX_ERROR_CHARS]
    except BaseException:
        text = type(error).__name__
    return " ".join(text.split())[:MAX_ERROR_CHARS].removesuffix(":").strip()


def execute_program(channel: int) -> None:
    """Run a program; report the value of its last line, if that is an expression, and its error, if any."""
    job = receive_message(channel)
    random.seed(0)
    sys.stdin = io.StringIO(job["stdin"])
    namespace = {"__name__": "__main__", "__builtins__": builtins}
    report: dict[str, str | None] = {"value": None, "error": None}
    try:
        tree = ast.parse(job["code"], "<program>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<program>", "exec"), namespace)
        if last is not None:
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
    """Run a candidate's program, then answer calls of its function on `link` until the other side closes."""
    job = receive_message(channel)
    random.seed(1)
    namespace = {"__name__": "candidate", "__builtins__": builtins}
    try:
        exec(compile(job["program"], "<program>", "exec"), namespace)
        function = namespace[job["entry_point"]]
    except KeyError:
        return send_message(connection, {"error": f"no function {job['entry_point']}"})
    except BaseException as error:
        return send_message(connection, {"error": format_error(error)})
    send_message(connection, {})
    while True:
        arguments, keywords = decode_value(receive_message(connection))
        try:
            answer = {"value": encode_value(function(*arguments, **keywords))}
        except UnsupportedValue as error:
            answer = {"odd": str(error)}
        except Exception as error:
            answer = {"raised": type(error).__name__, "text": format_error(error).partition(": ")[2]}
        except BaseException as error:
            answer = {"left": format_error(error)}
        send_message(connection, answer)


def execute_tests(channel: int, connection: int) -> None:
    """Run the tests against the candidate at the other end of `link` and write the verdict on `channel`."""
    job = receive_message(channel)
    random.seed(0)
    stub = CandidateStub(connection)
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    reason = ""
    try:
        stub.wait_ready()
        exec(compile(job["given"], "<given>", "exec"), namespace)
        namespace[job["entry_point"]] = stub.call
        exec(compile(job["tests"], "<tests>", "exec"), namespace)
        entry = namespace.get("check", stub.call)
        if entry != stub.call:
            entry(stub.call)
    except BaseException as error:
        reason = _describe_failure(error, job["tests"]) or "failed"
    reason = stub.failure or reason or ("" if stub.call_count else f"the tests never call {job['entry_point']}")
    send_message(channel, {"passed": not reason, "reason": reason})


class CandidateStub:
    """The function under test as the checker's process sees it: a wire.

    `broken` says why no verdict but failure is possible any more: the candidate's process ended, its code did not
    run, or what it returned is not made of built-in types. It stays, even if the tests catch the exception.
    """

    def __init__(self, connection: int) -> None:
        self.connection = connection
        self.call_count = 0
        self.failure = ""

    def wait_ready(self) -> None:
        """Wait until the candidate's program has run."""
        error = self._request().get("error")
        if error:
            self._abort(error)

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the candidate's function with copies of the arguments; return a copy of its value, or raise alike."""
        if self.failure:
            raise CheckAborted(self.failure)
        self.call_count += 1
        answer = self._request(encode_value((arguments, keywords)))
        if "value" in answer:
            try:
                return decode_value(answer["value"])
            except (ChannelError, RecursionError, MemoryError):
                self._abort("the program sent no value")
        if "raised" in answer:
            raise _rebuild_exception(str(answer["raised"]), str(answer.get("text", "")))
        self._abort(
            f"returned what has no plain value: {answer['odd']}" if "odd" in answer else str(answer.get("left"))
        )

    def _request(self, request: Any = None) -> dict:
        try:
            if request is not None:
                send_message(self.connection, request)
            answer = receive_message(self.connection)
        except (ChannelError, MemoryError):
            self._abort("the program ended before it answered")
        if not isinstance(answer, dict):
            self._abort("the program sent no value")
        return answer

    def _abort(self, reason: str) -> None:
        self.failure = " ".join(str(reason).split())[:MAX_ERROR_CHARS] or "broken"
        raise CheckAborted(self.failure)


def _rebuild_exception(name: str, text: str) -> Exception:
    """Return the built-in exception `name`, or a RuntimeError that names it.

    StopIteration is one of the latter: raised inside `map` or `all` it would end the tests early, and quietly.
    """
    kind = getattr(builtins, name, None)
    quiet = StopIteration | StopAsyncIteration
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, quiet):
        try:
            return kind(text)
        except TypeError:  # some ask for more than a text
            pass
    return RuntimeError(f"{name}: {text}"[:MAX_ERROR_CHARS])


def _describe_failure(error: BaseException, tests: str) -> str:
    """Return the error as a short line, with the line of the tests where an assertion failed."""
    text = format_error(error)
    if isinstance(error, AssertionError) and text == "AssertionError":
        lines = tests.splitlines()
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename == "<tests>" and frame.lineno and frame.lineno <= len(lines):
                return f"{text}: {lines[frame.lineno - 1].strip()}"[:MAX_ERROR_CHARS]
    return text
