"""CPython behind the kernel's restrictions: runs a program, or keeps the processes of a check. Linux only.

The sandbox fails closed. Unless every layer of REQUIRED_LAYERS is on, nothing runs: where the kernel lacks one, or a
probe shows that it does not hold, the caller gets a one-line error and has to name that layer in `disabled_layers` to
continue. OPTIONAL_LAYERS are added where the machine allows them.

A call costs one fork of a running Python (`fork_server.py`). The time limit is a wait on the child's channel, so it
works from any thread and needs no signal. Every child is killed and reaped before a call returns.

What `run_program` returns is what the program reports about itself. For a trustworthy result use verdict.py.
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
from fledgling.sandbox.jailed import MAX_ERROR_CHARS

Result = TypeVar("Result")
REQUIRED_LAYERS = ("landlock", "seccomp", "rlimits")
OPTIONAL_LAYERS = ("namespaces",)  # on where the machine lets a process make them
MIB = 2**20
MAX_JOB_BYTES = 4 * MIB  # of a program and its tests
FIXED_HASH_SEED = 0  # of programs: their sets have the same order every time
START_TIMEOUT = 60.0  # seconds for a fork server to start, or to answer
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
    """What one program may use: seconds of wall clock, bytes of address space, bytes of printed output."""

    timeout: float = 5.0
    memory_bytes: int = 512 * MIB
    output_bytes: int = 64 * 1024


@dataclass(frozen=True)
class ExecutionResult:
    """What a program reports: the value of its last expression, what it printed, its error; and the seconds it took.

    `value` is text, None when there is none; `error` is one line, "" when there is none.
    """

    value: str | None
    output: str
    error: str
    seconds: float


class ForkServerLost(Exception):
    """A fork server has ended or does not answer. No program can cause it short of the machine's end."""


def run_program(
    code: str, limits: Limits = Limits(), stdin: str = "", disabled_layers: frozenset[str] = frozenset()
) -> ExecutionResult:
    """Runs `code` as `__main__` behind all layers except `disabled_layers`.

    Printing more than `limits.output_bytes` ends the program. Raises UserError when a layer is missing.
    """
    return call_with_servers(lambda server: _run_in_child(server, code, limits, stdin), disabled_layers)


def call_with_servers(
    job: Callable[..., Result],
    disabled_layers: frozenset[str] = frozenset(),
    hash_seeds: tuple[int, ...] = (FIXED_HASH_SEED,),
) -> Result:
    """Calls `job` with a fork server of each hash seed and returns its result; retries once when a server is lost."""
    for is_retry in (False, True):
        try:
            with contextlib.ExitStack() as stack:
                return job(*[stack.enter_context(acquire_server(disabled_layers, seed)) for seed in hash_seeds])
        except ForkServerLost as error:
            for seed in hash_seeds:  # the idle servers may have been killed too
                _get_pool(os.getpid(), disabled_layers, seed).close()
            if is_retry:
                raise UserError(
                    f"sandbox: its fork server has ended ({error}): is something killing processes?"
                ) from None
    raise AssertionError("unreachable")


def get_layers(disabled_layers: frozenset[str] = frozenset()) -> dict[str, str]:
    """Returns {layer: version, "on", "off" or "unavailable"} of this machine. Raises as `run_program` does."""
    return call_with_servers(lambda server: dict(server.layers), disabled_layers)


class JailedProcess:
    """A restricted child process and its channel. It ends when the `with` block of `fork_child` is left."""

    def __init__(self, server: ForkServer, pid: int, channel: socket.socket) -> None:
        self.server, self.pid, self.channel = server, pid, channel
        self.exit_reason: str | None = None

    def send_job(self, job: dict, deadline: float) -> str:
        """Sends the job once the child reports that its restrictions are on; returns "" or why that failed.

        deadline: `time.monotonic` seconds. Raises UserError when a restriction failed; the child has no job then.
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

    def receive_report(self, deadline: float, max_bytes: int = MIB) -> Any:
        """Returns the one message of the child; None when it ended, sent no message, or the deadline has passed."""
        data = b""
        while True:
            self.channel.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = self.channel.recv(65536)
            except OSError:
                return None
            data += part
            if not part or len(data) > max_bytes:
                return None
            if len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "big"):
                return _decode_message(data)

    def kill(self) -> str:
        """Kills and reaps the child, once; returns how it ended."""
        if self.exit_reason is None:
            status = self.server.request({"reap": self.pid})["status"]
            if os.WIFSIGNALED(status):
                number = signal.Signals(os.WTERMSIG(status))
                reasons = {signal.SIGXCPU: "CPU time used up", signal.SIGKILL: "ended without a report"}
                self.exit_reason = reasons.get(number) or f"crashed: {number.name}"
            else:
                self.exit_reason = f"exited with {os.WEXITSTATUS(status)} before its end"
        return self.exit_reason


class ForkServer:
    """One fork server process and its control socket. Serves one caller at a time."""

    def __init__(self, disabled_layers: frozenset[str], hash_seed: int = FIXED_HASH_SEED) -> None:
        self.hash_seed = hash_seed  # of str and bytes in all children
        hello = self._start(disabled_layers)
        if "no namespaces" in hello:
            self.close()
            hello = self._start(disabled_layers | {"namespaces"})
            hello.get("layers", {})["namespaces"] = "unavailable"
        if "error" in hello:
            self.close()
            raise UserError(f"sandbox: {hello['error']}: nothing is run without it, unless named in `disabled_layers`")
        self.layers: dict[str, str] = hello["layers"]

    def _start(self, disabled_layers: frozenset[str]) -> dict:
        own_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[2])
        python = getattr(sys, "_base_executable", None) or sys.executable
        options = ["-s", "-S", "-P", "-B", "-X", "utf8", "-c", BOOTSTRAP_CODE, root, str(server_end.fileno())]
        with server_end:
            self.process = subprocess.Popen(
                [python, *options, ",".join(sorted(disabled_layers))],
                pass_fds=[server_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": str(self.hash_seed)},  # nothing else
                cwd="/",
                start_new_session=True,
            )
        self.control = own_end
        self.control.settimeout(START_TIMEOUT)
        return self._receive_answer()

    @contextlib.contextmanager
    def fork_child(self, role: str, limits: Limits, second: socket.socket) -> Iterator[JailedProcess]:
        """Forks a child with its own channel and the socket `second`; kills it when the block is left."""
        own_end, child_end = socket.socketpair()
        with own_end:
            with child_end:
                request = {"fork": role, "memory": limits.memory_bytes, "seconds": int(limits.timeout) + 1}
                pid = self.request(request, [child_end.fileno(), second.fileno()])["pid"]
            child = JailedProcess(self, pid, own_end)
            try:
                yield child
            finally:
                child.kill()

    def request(self, message: dict, descriptors: list[int] | None = None) -> dict:
        """Sends a request and returns the answer. Raises ForkServerLost."""
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], descriptors or [])
        except OSError as error:
            raise ForkServerLost(str(error)) from error
        return self._receive_answer()

    def close(self) -> None:
        """Ends the fork server and its children."""
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
    """The fork servers of one process with one hash seed. Starts a new one when none is idle."""

    def __init__(self, disabled_layers: frozenset[str], hash_seed: int = FIXED_HASH_SEED) -> None:
        self.disabled_layers, self.hash_seed = disabled_layers, hash_seed
        self.idle: list[ForkServer] = []
        self.lock = threading.Lock()
        self.probe_lock = threading.RLock()  # the first thread runs the probe, the others wait
        self.probed = False
        atexit.register(self.close)

    @contextlib.contextmanager
    def acquire(self) -> Iterator[ForkServer]:
        """Provides a server for the block; a server whose block raises is closed."""
        with self.lock:
            server = self.idle.pop() if self.idle else None
        server = server or ForkServer(self.disabled_layers, self.hash_seed)
        try:
            yield server
        except BaseException:
            server.close()
            raise
        with self.lock:
            self.idle.append(server)

    def probe_layers(self) -> None:
        """Checks that every required layer holds. Raises UserError when one does not."""
        self.probed = True  # set first, because the probe calls run_program
        try:
            result = run_program(PROBE_CODE, Limits(10.0), disabled_layers=self.disabled_layers)
            required = [layer for layer in REQUIRED_LAYERS if layer not in self.disabled_layers]
            missing = [layer for layer in required if layer not in result.output.split()]
            if missing:
                why = f" ({result.error})" if result.error else ""
                raise UserError(f"sandbox: {', '.join(missing)} does not hold on this kernel{why}: nothing is run")
        except BaseException:
            self.probed = False
            raise

    def close(self) -> None:
        """Ends the idle servers."""
        with self.lock:
            servers, self.idle = self.idle, []
        for server in servers:
            server.close()


def _run_in_child(server: ForkServer, code: str, limits: Limits, stdin: str) -> ExecutionResult:
    start = time.monotonic()
    deadline = start + limits.timeout
    with contextlib.ExitStack() as stack:
        reader, writer = (stack.enter_context(end) for end in socket.socketpair())
        child = stack.enter_context(server.fork_child("run", limits, writer))
        writer.close()
        output, error = b"", child.send_job({"code": code, "stdin": stdin}, deadline)
        if not error:
            output, report, error = _collect_output(reader, child.channel, deadline, limits)
            if isinstance(report, dict) and not error:
                value = report.get("value")
                value = value if value is None else str(value)
                error = _single_line(report.get("error") or "")
                return ExecutionResult(value, _decode_output(output), error, time.monotonic() - start)
        error = error or child.kill()
    return ExecutionResult(None, _decode_output(output), error, time.monotonic() - start)


@contextlib.contextmanager
def acquire_server(
    disabled_layers: frozenset[str] = frozenset(), hash_seed: int = FIXED_HASH_SEED
) -> Iterator[ForkServer]:
    """Provides a fork server of this process whose layers have been probed. Raises UserError when one does not hold."""
    if sys.platform != "linux":
        raise UserError(f"sandbox: {sys.platform} has no Landlock and no seccomp: only the interpreter runs code here")
    known = (*REQUIRED_LAYERS, *OPTIONAL_LAYERS)
    unknown = disabled_layers - set(known)
    if unknown:
        raise UserError(f"sandbox: unknown layer {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    pool = _get_pool(os.getpid(), disabled_layers, FIXED_HASH_SEED)  # the layers are the same for every seed
    with pool.probe_lock:
        if not pool.probed:
            pool.probe_layers()
    with _get_pool(os.getpid(), disabled_layers, hash_seed).acquire() as server:
        yield server


@cache
def _get_pool(pid: int, disabled_layers: frozenset[str], hash_seed: int = FIXED_HASH_SEED) -> ForkServerPool:
    """Returns the pool of process `pid` for a choice of layers; a forked process must not share its parent's."""
    return ForkServerPool(disabled_layers, hash_seed)


def _collect_output(
    printed: socket.socket, channel: socket.socket, deadline: float, limits: Limits
) -> tuple[bytes, Any, str]:
    """Reads what the child prints and its report, until both have ended or a limit is reached.

    Returns (output, report or None, error or "").
    """
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
                        too_long = f"printed more than {limits.output_bytes} bytes"
                        return output[: limits.output_bytes], None, too_long
                else:
                    report += part
                    if len(report) > MIB:
                        return output, None, "reported too much"
    return output, _decode_message(report), ""


def _decode_message(data: bytes) -> Any:
    """Returns the first message of `data`, or None when there is none."""
    if len(data) < 4:
        return None
    try:
        return json.loads(data[4 : 4 + int.from_bytes(data[:4], "big")])
    except (ValueError, RecursionError):
        return None


def _decode_output(output: bytes) -> str:
    return output.decode("utf-8", "replace")


def _single_line(text: Any) -> str:
    return " ".join(str(text).split())[:MAX_ERROR_CHARS]
