"""CPython behind the kernel's locks: run a program, or keep the processes of a check. Linux only.

The one idea: fail closed. Every layer of `LAYERS` is on, or nothing runs: where the kernel lacks one, or a probe
shows that it does not hold, the caller gets one line and has to name that layer in `without` to go on. Those of
`MORE` come on top where they can be had.

A call costs a fork of a Python that is ready (`zygote.py`); the wall clock is kept here, by waiting on the child's
channel, so it holds from any thread and needs no signal. Every child is killed and reaped before a call returns.

It is no verdict: what `run` returns is what the program says of itself. For a verdict see verdict.py.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fledgling.config import UserError

Result = TypeVar("Result")
REQUIRED_LAYERS = ("landlock", "seccomp", "rlimits")
OPTIONAL_LAYERS = ("namespaces",)  # on where the machine lets a process make them
MIB = 2**20
MAX_JOB_BYTES = 4 * MIB  # bytes of a program and its tests
START_TIMEOUT = 20.0  # seconds a fork server may take to start, or to answer
BOOTSTRAP_CODE = """import sys
sys.path.insert(0, sys.argv[1])
from fledgling.sandbox.fork_server import main
sys.path.remove(sys.argv[1])
main(int(sys.argv[2]), sys.argv[3])"""
PROBE_CODE = """import mmap, os, socket
held = []
for name, attempt in (
    ("landlock", lambda: os.listdir("/")),
    ("seccomp", lambda: socket.socket()),
    ("rlimits", lambda: mmap.mmap(-1, 2 ** 30)),
):
    try:
        attempt()
    except (OSError, MemoryError):
        held.append(name)
print(*held)"""


@dataclass(frozen=True)
class Limits:
    """What one program may use: seconds of wall clock, bytes of address space, bytes of what it prints."""

    timeout: float = 5.0
    memory_bytes: int = 512 * MIB
    output_bytes: int = 64 * 1024


@dataclass(frozen=True)
class ExecutionResult:
    """What a program says of itself: the value of its last expression, what it printed, its error; seconds it took.

    `value` is text and None when there is none; `error` is one line and "" when there is none.
    """

    value: str | None
    output: str
    error: str
    seconds: float


class ForkServerLost(Exception):
    """A fork server died or does not answer. It is ours, no program can cause it short of the machine's end."""


def run_program(
    code: str, limits: Limits = Limits(), stdin: str = "", disabled_layers: frozenset[str] = frozenset()
) -> ExecutionResult:
    """Run `code` as `__main__` behind all layers except those in `without`.

    What it prints beyond `limits.output` ends it. Raises `UserError` when a layer is missing.
    """
    return call_with_server(lambda zygote: _run_in_child(zygote, code, limits, stdin), disabled_layers)


def call_with_server(job: Callable[[ForkServer], Result], disabled_layers: frozenset[str] = frozenset()) -> Result:
    """Return what `job` makes of a fork server; once more with a new one when that got lost on the way."""
    for last in (False, True):
        try:
            with acquire_server(disabled_layers) as zygote:
                return job(zygote)
        except ForkServerLost as error:
            _get_pool(os.getpid(), disabled_layers).close()  # whoever killed one may have killed the idle ones too
            if last:
                raise UserError(
                    f"sandbox: its fork server is gone ({error}): is something killing processes?"
                ) from None
    raise AssertionError("unreachable")


def get_layers(disabled_layers: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return which layers are on here: name -> version, "on", "off" or "not here". Raises `UserError` as `run` does."""
    return call_with_server(lambda zygote: dict(zygote.layers), disabled_layers)


class JailedProcess:
    """A jailed process: its channel, and its end when the `with` block of `Server.child` is left."""

    def __init__(self, zygote: ForkServer, pid: int, channel: socket.socket) -> None:
        self.server, self.pid, self.channel = zygote, pid, channel
        self.exit_reason: str | None = None

    def send_job(self, job: dict, deadline: float) -> str:
        """Hand over the job, once the child says that its locks are closed; return "" or why that failed.

        Raises `UserError` when a lock did not close: the child has not seen the job then.
        """
        opening = self.receive_report(time.monotonic() + START_TIMEOUT)
        if not isinstance(opening, dict):
            return self.kill()
        if not opening.get("locked"):
            raise UserError(f"sandbox: {opening.get('error')}: nothing was run")
        body = json.dumps(job).encode()
        if len(body) > MAX_JOB_BYTES:
            return f"too long: {len(body)} bytes of code"
        try:
            self.channel.settimeout(max(0.001, deadline - time.monotonic()))
            self.channel.sendall(len(body).to_bytes(4, "big") + body)
        except TimeoutError:
            return "timed out"
        except OSError:
            return self.kill()
        return ""

    def receive_report(self, deadline: float, longest: int = MIB) -> Any:
        """Return the one message of the child, or None: it ended, said no message, or the time is up."""
        data = b""
        while True:
            self.channel.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = self.channel.recv(65536)
            except OSError:
                return None
            data += part
            if not part or len(data) > longest:
                return None
            if len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "big"):
                return _decode_message(data)

    def kill(self) -> str:
        """Kill and reap the child, once; return how it ended."""
        if self.exit_reason is None:
            status = self.server.request({"reap": self.pid})["status"]
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                why = {signal.SIGXCPU: "CPU time used up", signal.SIGKILL: "ended without a report"}
                self.exit_reason = why.get(number) or f"crashed: {signal.Signals(number).name}"
            else:
                self.exit_reason = f"exited with {os.WEXITSTATUS(status)} before its end"
        return self.exit_reason


class ForkServer:
    """One fork server and its control socket; one caller at a time."""

    def __init__(self, disabled_layers: frozenset[str]) -> None:
        hello = self._start(disabled_layers)
        if "no namespaces" in hello:
            self.close()
            hello = self._start(disabled_layers | {"namespaces"})
            hello.get("layers", {})["namespaces"] = "not here"
        if "error" in hello:
            self.close()
            raise UserError(f"sandbox: {hello['error']}: nothing is run without it, unless named in `without`")
        self.layers: dict[str, str] = hello["layers"]

    def _start(self, disabled_layers: frozenset[str]) -> dict:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[2])
        python = getattr(sys, "_base_executable", None) or sys.executable
        options = ["-s", "-S", "-P", "-B", "-X", "utf8", "-c", BOOTSTRAP_CODE, root, str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [python, *options, ",".join(sorted(disabled_layers))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0"},  # nothing else, and sets have the same order every time
                cwd="/",
                start_new_session=True,
            )
        self.control = ours
        self.control.settimeout(START_TIMEOUT)
        return self._receive_answer()

    @contextlib.contextmanager
    def fork_child(self, role: str, limits: Limits, second: socket.socket) -> Iterator[JailedProcess]:
        """Fork a child with a channel of its own and `second`; it is gone when the block is left."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                order = {"fork": role, "memory": limits.memory_bytes, "seconds": int(limits.timeout) + 1}
                pid = self.request(order, [theirs.fileno(), second.fileno()])["pid"]
            child = JailedProcess(self, pid, ours)
            try:
                yield child
            finally:
                child.kill()

    def request(self, order: dict, descriptors: list[int] | None = None) -> dict:
        """Give one order and return the answer; raises `ServerLost`."""
        try:
            socket.send_fds(self.control, [json.dumps(order).encode()], descriptors or [])
        except OSError as error:
            raise ForkServerLost(str(error)) from error
        return self._receive_answer()

    def close(self) -> None:
        """Let the fork server go, and with it its children."""
        self.control.close()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _receive_answer(self) -> dict:
        try:
            answer = self.control.recv(4096)
        except OSError as error:
            raise ForkServerLost(str(error)) from error
        if not answer:
            raise ForkServerLost("ended")
        return json.loads(answer)


class ForkServerPool:
    """The fork servers of one process: an idle one is handed out, a new one is started when none is idle."""

    def __init__(self, disabled_layers: frozenset[str]) -> None:
        self.disabled_layers = disabled_layers
        self.idle: list[ForkServer] = []
        self.lock = threading.Lock()
        self.probe_lock = threading.RLock()  # of one thread, which runs the probe; the others wait
        self.probed = False
        atexit.register(self.close)

    @contextlib.contextmanager
    def acquire(self) -> Iterator[ForkServer]:
        """Lend a server; one that got lost is not taken back."""
        with self.lock:
            server = self.idle.pop() if self.idle else None
        server = server or ForkServer(self.disabled_layers)
        try:
            yield server
        except BaseException:
            server.close()
            raise
        with self.lock:
            self.idle.append(server)

    def probe_layers(self) -> None:
        """See that every layer that should hold does; raises `UserError` when one does not."""
        self.probed = True  # the probe is a run like any other
        try:
            held = run_program(PROBE_CODE, Limits(10.0), disabled_layers=self.disabled_layers)
            missing = [
                layer
                for layer in REQUIRED_LAYERS
                if layer not in self.disabled_layers and layer not in held.output.split()
            ]
            if missing:
                why = f" ({held.error})" if held.error else ""
                raise UserError(f"sandbox: {', '.join(missing)} does not hold on this kernel{why}: nothing is run")
        except BaseException:
            self.probed = False
            raise

    def close(self) -> None:
        """End the idle servers."""
        with self.lock:
            servers, self.idle = self.idle, []
        for server in servers:
            server.close()


def _run_in_child(zygote: ForkServer, code: str, limits: Limits, stdin: str) -> ExecutionResult:
    start = time.monotonic()
    deadline = start + limits.timeout
    with contextlib.ExitStack() as stack:
        printed, writer = (stack.enter_context(end) for end in socket.socketpair())
        child = stack.enter_context(zygote.fork_child("run", limits, writer))
        writer.close()
        output, error = b"", child.send_job({"code": code, "stdin": stdin}, deadline)
        if not error:
            output, report, error = _collect_output(printed, child.channel, deadline, limits)
            if isinstance(report, dict) and not error:
                value, error = report.get("value"), report.get("error")
                value = value if value is None else str(value)
                return ExecutionResult(
                    value, _decode_output(output), _first_line(error or ""), time.monotonic() - start
                )
        error = error or child.kill()
    return ExecutionResult(None, _decode_output(output), error, time.monotonic() - start)


@contextlib.contextmanager
def acquire_server(disabled_layers: frozenset[str] = frozenset()) -> Iterator[ForkServer]:
    """Lend a fork server of this process whose layers have been probed; raises `UserError` when one does not hold."""
    if sys.platform != "linux":
        raise UserError(f"sandbox: {sys.platform} has no Landlock and no seccomp: only the interpreter runs code here")
    unknown = disabled_layers - {*REQUIRED_LAYERS, *OPTIONAL_LAYERS}
    if unknown:
        raise UserError(
            f"sandbox: unknown layer {', '.join(sorted(unknown))}: there are {', '.join(REQUIRED_LAYERS + OPTIONAL_LAYERS)}"
        )
    servers = _get_pool(os.getpid(), disabled_layers)
    with servers.probe_lock:
        if not servers.probed:
            servers.probe_layers()
    with servers.acquire() as lent:
        yield lent


@cache
def _get_pool(pid: int, disabled_layers: frozenset[str]) -> ForkServerPool:
    """One set of servers a process, for a forked process must not share its parent's, and a choice of layers."""
    return ForkServerPool(disabled_layers)


def _collect_output(
    printed: socket.socket, channel: socket.socket, deadline: float, limits: Limits
) -> tuple[bytes, Any, str]:
    """Collect what the child prints and its report, until both have ended or a limit is met."""
    output, report = b"", b""
    with selectors.DefaultSelector() as selector:
        for source in (printed, channel):
            source.setblocking(False)
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return output, None, f"timed out after {limits.timeout:g} s"
            for key, _ in ready:
                try:
                    part = key.fileobj.recv(65536)  # type: ignore[union-attr]
                except BlockingIOError:
                    continue
                except OSError:
                    part = b""
                if not part:
                    selector.unregister(key.fileobj)
                elif key.fileobj is printed:
                    output += part
                    if len(output) > limits.output_bytes:
                        return output[: limits.output_bytes], None, f"printed more than {limits.output_bytes} bytes"
                else:
                    report += part
                    if len(report) > MIB:
                        return output, None, "reported too much"
    return output, _decode_message(report), ""


def _decode_message(data: bytes) -> Any:
    """Return the first message of `data`, or None when there is none."""
    if len(data) < 4:
        return None
    try:
        return json.loads(data[4 : 4 + int.from_bytes(data[:4], "big")])
    except (ValueError, RecursionError):
        return None


def _decode_output(output: bytes) -> str:
    return output.decode("utf-8", "replace")


def _first_line(text: Any) -> str:
    return " ".join(str(text).split())[:300]
