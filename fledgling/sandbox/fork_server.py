"""A fork server: a Python that has started already and forks a locked-up child for each job.

The one idea: it never sees a job. It learns which kind of child to fork and is handed the child's channels; the
program and the tests go from the harness to the child. So nothing of one job lies in the memory that the next one
inherits, and no child can reach this process: it is another process, and the child has no system call that touches
one. Children are forked one after another from the same untouched memory.

Messages on the control socket, one packet each: {"fork": role, memory, seconds} with two descriptors, answered with
{"pid"}; {"reap": pid}, which kills that child and is answered with {"status"} once it is gone. When the harness
goes, so do the children and this process.
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

# imported before the first fork, so that a program need not: what short programs use, and what loads libraries
PRELOADED_MODULES = (
    "array ast bisect bz2 calendar cmath collections contextlib copy ctypes dataclasses datetime decimal enum fcntl "
    "fractions functools hashlib heapq io itertools json lzma math numbers operator queue random re secrets "
    "statistics string struct textwrap threading time traceback typing unicodedata uuid zlib"
)
POLL_INTERVAL = 5.0  # seconds between two looks at whether the harness still lives
ROLES: dict[str, Callable[..., None]] = {
    "run": jailed.execute_program,
    "candidate": jailed.serve_candidate,
    "check": jailed.execute_tests,
}


def main(descriptor: int, disabled_layers: str) -> None:
    """Serve the control socket `descriptor`; `without` names the layers to leave off, separated by commas."""
    control = socket.socket(fileno=descriptor)
    for name in PRELOADED_MODULES.split():
        importlib.import_module(name)
    os.environ.clear()
    sys.argv = [""]
    _prefer_oom_kill()
    harness, off = os.getppid(), frozenset(filter(None, disabled_layers.split(",")))
    files, listable = list_readable_paths()
    if "namespaces" not in off:
        try:
            namespaces.enter_namespaces([*files, *listable, *sys.path])
        except OSError as error:
            control.send(json.dumps({"no namespaces": str(error)}).encode())
            return
        first = os.fork()
        if first:
            control.close()
            return namespaces.supervise_init(first, harness, POLL_INTERVAL)
        restrictions.die_with_parent()
        harness = os.getppid()
    try:
        locks = Restrictions(off, files, listable)
    except restrictions.RestrictionError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    control.send(json.dumps({"layers": locks.layers}).encode())
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
        order = json.loads(message)
        if "reap" in order:
            os.kill(order["reap"], signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):  # with its group: it has one only where seccomp is off
                os.killpg(order["reap"], signal.SIGKILL)
            control.send(json.dumps({"status": os.waitpid(order["reap"], 0)[1]}).encode())
            continue
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_child(order, descriptors, locks, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(json.dumps({"pid": pid}).encode())


class Restrictions:
    """The layers of this kernel, prepared once so that a child only has to put them on."""

    def __init__(self, disabled_layers: frozenset[str], files: list[str], listable: list[str]) -> None:
        self.disabled_layers = disabled_layers
        self.ruleset = -1 if "landlock" in disabled_layers else restrictions.make_landlock_ruleset(files, listable)
        if "seccomp" not in disabled_layers and not restrictions.has_seccomp():
            raise restrictions.RestrictionError("seccomp: not in this kernel, or not known for this processor")
        self.seccomp_filter = (
            b"" if "seccomp" in disabled_layers else restrictions.build_seccomp_filter(os.uname().machine)
        )
        self.layers = {
            "landlock": "off" if "landlock" in disabled_layers else f"version {restrictions.get_landlock_version()}",
            "seccomp": "off" if "seccomp" in disabled_layers else "on",
            "rlimits": "off" if "rlimits" in disabled_layers else "on",
            "namespaces": "off" if "namespaces" in disabled_layers else "on",
        }

    def apply(self, memory: int, seconds: int, parent: int) -> None:
        """Lock the calling process up for good; raises `LockError` when one lock does not close."""
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
    """Return what the jail's Python needs: files and folders to read, and folders whose names it may list.

    That is the standard library without site-packages, and the shared libraries that are loaded by now.
    """
    folders = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    folders |= {os.path.realpath(path) for path in sys.path if os.path.exists(path)}
    found = [path for path in folders if not os.path.isdir(path)]
    listable = [path for path in folders if os.path.isdir(path)]
    for folder in listable:
        names = (name for name in os.listdir(folder) if name not in ("site-packages", "dist-packages"))
        found += [os.path.join(folder, name) for name in names]
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        found += {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    return [*found, "/etc/ld.so.cache", "/dev/null", "/dev/urandom"], listable


def _run_child(order: dict, descriptors: list[int], locks: Restrictions, parent: int) -> None:
    """Be the child: arrange the descriptors, lock up and say so, do the job, end. Never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        rules = [] if locks.ruleset < 0 else [locks.ruleset]
        moved = [_duplicate_high(descriptor) for descriptor in [*descriptors, *rules]]
        for place, descriptor in enumerate(moved, start=3):
            os.dup2(descriptor, place)
        os.closerange(3 + len(moved), 2**16)
        if rules:
            locks.ruleset = 2 + len(moved)
        role = order["fork"]
        if role == "run":  # the second channel takes what is printed
            os.dup2(4, 1)
            os.dup2(4, 2)
            os.close(4)
        try:
            locks.apply(order["memory"], order["seconds"], parent)
        except restrictions.RestrictionError as error:
            return send_message(3, {"error": str(error)})
        send_message(3, {"locked": True})
        ROLES[role](*((3,) if role == "run" else (3, 4)))
    except ChannelError:
        pass
    finally:
        os._exit(0)


def _duplicate_high(descriptor: int) -> int:
    """Return a copy of `descriptor` out of the way of the places 3 to 5."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 16)


def _prefer_oom_kill() -> None:
    """Offer this process and its children to the kernel first when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("1000")
    except OSError:
        pass
