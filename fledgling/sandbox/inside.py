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

from fledgling.sandbox.values import Gone, NotPlain, pack, receive, send, unpack

LONGEST_TEXT = 300  # characters of an error or a reason
LONGEST_VALUE = 10_000  # characters of a printed value


class Unjudged(BaseException):
    """What ends the tests at once and cannot be caught into a pass: the candidate left, or answered no value."""


def short(error: BaseException) -> str:
    """Return an exception as one short line; its own `__str__` may do what it likes."""
    try:
        text = f"{type(error).__name__}: {error}"[: 4 * LONGEST_TEXT]
    except BaseException:
        text = type(error).__name__
    return " ".join(text.split())[:LONGEST_TEXT].removesuffix(":").strip()


def run(channel: int) -> None:
    """Run a program; report the value of its last line, if that is an expression, and its error, if any."""
    job = receive(channel)
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
            report["value"] = None if value is None else repr(value)[:LONGEST_VALUE]
    except BaseException as error:
        report["error"] = short(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException as error:
            report["error"] = report["error"] or short(error)
    send(channel, report)


def candidate(channel: int, link: int) -> None:
    """Run a candidate's program, then answer calls of its function on `link` until the other side closes."""
    job = receive(channel)
    random.seed(1)
    namespace = {"__name__": "candidate", "__builtins__": builtins}
    try:
        exec(compile(job["program"], "<program>", "exec"), namespace)
        function = namespace[job["entry_point"]]
    except KeyError:
        return send(link, {"error": f"no function {job['entry_point']}"})
    except BaseException as error:
        return send(link, {"error": short(error)})
    send(link, {})
    while True:
        arguments, keywords = unpack(receive(link))
        try:
            answer = {"value": pack(function(*arguments, **keywords))}
        except NotPlain as error:
            answer = {"odd": str(error)}
        except Exception as error:
            answer = {"raised": type(error).__name__, "text": short(error).partition(": ")[2]}
        except BaseException as error:
            answer = {"left": short(error)}
        send(link, answer)


def check(channel: int, link: int) -> None:
    """Run the tests against the candidate at the other end of `link` and write the verdict on `channel`."""
    job = receive(channel)
    random.seed(0)
    stub = Stub(link)
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    reason = ""
    try:
        stub.open()
        exec(compile(job["given"], "<given>", "exec"), namespace)
        namespace[job["entry_point"]] = stub.call
        exec(compile(job["tests"], "<tests>", "exec"), namespace)
        entry = namespace.get("check", stub.call)
        if entry != stub.call:
            entry(stub.call)
    except BaseException as error:
        reason = _where(error, job["tests"]) or "failed"
    reason = stub.broken or reason or ("" if stub.calls else f"the tests never call {job['entry_point']}")
    send(channel, {"passed": not reason, "reason": reason})


class Stub:
    """The function under test as the checker's process sees it: a wire.

    `broken` says why no verdict but failure is possible any more: the candidate's process ended, its code did not
    run, or what it returned is not made of built-in types. It stays, even if the tests catch the exception.
    """

    def __init__(self, link: int) -> None:
        self.link = link
        self.calls = 0
        self.broken = ""

    def open(self) -> None:
        """Wait until the candidate's program has run."""
        error = self._ask().get("error")
        if error:
            self._break(error)

    def call(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the candidate's function with copies of the arguments; return a copy of its value, or raise alike."""
        if self.broken:
            raise Unjudged(self.broken)
        self.calls += 1
        answer = self._ask(pack((arguments, keywords)))
        if "value" in answer:
            try:
                return unpack(answer["value"])
            except (Gone, RecursionError, MemoryError):
                self._break("the program sent no value")
        if "raised" in answer:
            raise _alike(str(answer["raised"]), str(answer.get("text", "")))
        self._break(
            f"returned what has no plain value: {answer['odd']}" if "odd" in answer else str(answer.get("left"))
        )

    def _ask(self, request: Any = None) -> dict:
        try:
            if request is not None:
                send(self.link, request)
            answer = receive(self.link)
        except (Gone, MemoryError):
            self._break("the program ended before it answered")
        if not isinstance(answer, dict):
            self._break("the program sent no value")
        return answer

    def _break(self, reason: str) -> None:
        self.broken = " ".join(str(reason).split())[:LONGEST_TEXT] or "broken"
        raise Unjudged(self.broken)


def _alike(name: str, text: str) -> Exception:
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
    return RuntimeError(f"{name}: {text}"[:LONGEST_TEXT])


def _where(error: BaseException, tests: str) -> str:
    """Return the error as a short line, with the line of the tests where an assertion failed."""
    text = short(error)
    if isinstance(error, AssertionError) and text == "AssertionError":
        lines = tests.splitlines()
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename == "<tests>" and frame.lineno and frame.lineno <= len(lines):
                return f"{text}: {lines[frame.lineno - 1].strip()}"[:LONGEST_TEXT]
    return text
