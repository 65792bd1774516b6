"""A fork server: a Python process that has started already and forks a restricted child for each job.

The server never sees a job. It receives the role to fork and the child's channels; the program and the tests go from
the harness to the child. So nothing of one job is in the memory that the next child inherits, and no child can
reach the server: no system call that a child may make affects another process.

Messages on the control socket, one packet each: {"fork": role, "memory", "seconds"} with two descriptors, answered with
{"pid"}; {"reap": pid}, which kills that child and is answered with {"status"} once it has ended. When the harness ends,
the children and this process end too.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable

from fledgling.sandbox import jailed, namespaces, restrictions
from fledgling.sandbox.messages import ChannelError, send_message

# Imported before the first fork, to save time: what short programs use, and what loads shared libraries.
PRELOADED_MODULES = (
    "array ast bisect bz2 calendar cmath collections contextlib copy ctypes dataclasses datetime decimal enum fcntl "
    "fractions functools hashlib heapq io itertools json lzma math numbers operator queue random re secrets "
    "statistics string struct textwrap threading time traceback typing unicodedata uuid zlib"
)
POLL_INTERVAL = 5.0  # seconds between two checks that the harness still runs
ROLES: dict[str, Callable[..., None]] = {
    "run": jailed.execute_program,
    "candidate": jailed.serve_candidate,
    "check": jailed.execute_tests,
}


def main(descriptor: int, disabled_layers: str) -> None:
    """Serves the control socket `descriptor`. disabled_layers: names separated by commas."""
    control = socket.socket(fileno=descriptor)
    for name in PRELOADED_MODULES.split():
        importlib.import_module(name)
    os.environ.clear()
    sys.argv = [""]
    _prefer_oom_kill()
    harness, disabled = os.getppid(), frozenset(filter(None, disabled_layers.split(",")))
    readable, listable = list_readable_paths()
    if "namespaces" not in disabled:
        try:
            namespaces.enter_namespaces([*readable, *listable, *sys.path])
        except OSError as error:
            control.send(json.dumps({"no namespaces": str(error)}).encode())
            return
        child = os.fork()
        if child:
            control.close()
            return namespaces.supervise_init(child, harness, POLL_INTERVAL)
        restrictions.die_with_parent()
        harness = os.getppid()
    try:
        prepared = Restrictions(disabled, readable, listable)
    except restrictions.RestrictionError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    control.send(json.dumps({"layers": prepared.layers}).encode())
    control.settimeout(POLL_INTERVAL)
    gc.collect()
    gc.freeze()
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 4096, 2)
        except TimeoutError:
            if os.getppid() != harness:
                break
            continue
        except OSError:
            break
        if not message:
            break
        request = json.loads(message)
        if "reap" in request:
            os.kill(request["reap"], signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):  # its group has other processes only where seccomp is off
                os.killpg(request["reap"], signal.SIGKILL)
            control.send(json.dumps({"status": os.waitpid(request["reap"], 0)[1]}).encode())
            continue
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_child(request, descriptors, prepared, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(json.dumps({"pid": pid}).encode())


class Restrictions:
    """The restrictions of this kernel, prepared once, so that a child only applies them."""

    def __init__(self, disabled_layers: frozenset[str], readable: list[str], listable: list[str]) -> None:
        self.disabled_layers = disabled_layers
        has_landlock, has_seccomp = "landlock" not in disabled_layers, "seccomp" not in disabled_layers
        self.ruleset = restrictions.make_landlock_ruleset(readable, listable) if has_landlock else -1
        if has_seccomp and not restrictions.has_seccomp():
            raise restrictions.RestrictionError("seccomp: not in this kernel, or not supported on this processor")
        self.seccomp_filter = restrictions.build_seccomp_filter(os.uname().machine) if has_seccomp else b""
        self.layers = {
            "landlock": f"version {restrictions.get_landlock_version()}",
            "seccomp": "on",
            "rlimits": "on",
            "namespaces": "on",
        } | dict.fromkeys(disabled_layers, "off")

    def apply(self, memory: int, seconds: int, parent: int) -> None:
        """Restricts the calling process for good. Raises RestrictionError when one restriction fails."""
        restrictions.isolate_process(parent)
        if "rlimits" not in self.disabled_layers:
            restrictions.apply_rlimits(memory, seconds, files=64)
        restrictions.set_no_new_privileges()
        if self.ruleset >= 0:
            restrictions.apply_landlock(self.ruleset)
            os.close(self.ruleset)
        if self.seccomp_filter:
            restrictions.drop_capabilities()
            restrictions.apply_seccomp(self.seccomp_filter)


def list_readable_paths() -> tuple[list[str], list[str]]:
    """Returns the paths that the jail's Python reads, and the directories whose names it may list.

    These are the standard library without site-packages, and the shared libraries that are loaded already.
    """
    paths = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    paths |= {os.path.realpath(path) for path in sys.path if os.path.exists(path)}
    readable = [path for path in paths if not os.path.isdir(path)]
    listable = [path for path in paths if os.path.isdir(path)]
    for directory in listable:
        names = (name for name in os.listdir(directory) if name not in ("site-packages", "dist-packages"))
        readable += [os.path.join(directory, name) for name in names]
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        readable += {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    return [*readable, "/etc/ld.so.cache", "/dev/null", "/dev/urandom"], listable


def _run_child(request: dict, descriptors: list[int], prepared: Restrictions, parent: int) -> None:
    """Runs in the child: arranges the descriptors, applies the restrictions, reports, does the job. Never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ruleset = [] if prepared.ruleset < 0 else [prepared.ruleset]
        moved = [_duplicate_high(descriptor) for descriptor in [*descriptors, *ruleset]]
        for target, descriptor in enumerate(moved, start=3):
            os.dup2(descriptor, target)
        os.closerange(3 + len(moved), 2**16)
        if ruleset:
            prepared.ruleset = 2 + len(moved)
        role = request["fork"]
        if role == "run":  # the second channel receives what is printed
            os.dup2(4, 1)
            os.dup2(4, 2)
            os.close(4)
        try:
            prepared.apply(request["memory"], request["seconds"], parent)
        except restrictions.RestrictionError as error:
            return send_message(3, {"error": str(error)})
        send_message(3, {"locked": True})
        ROLES[role](*((3,) if role == "run" else (3, 4)))
    except ChannelError:
        pass
    finally:
        os._exit(0)


def _duplicate_high(descriptor: int) -> int:
    """Returns a copy of `descriptor` above the numbers 3 to 5, which the child uses."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 16)


def _prefer_oom_kill() -> None:
    """Makes the kernel kill this process and its children first when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("1000")
    except OSError:
        pass
