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

from fledgling.sandbox import inside, kernel, namespaces
from fledgling.sandbox.values import Gone, send

# imported before the first fork, so that a program need not: what short programs use, and what loads libraries
COMMON = (
    "array ast bisect bz2 calendar cmath collections contextlib copy ctypes dataclasses datetime decimal enum fcntl "
    "fractions functools hashlib heapq io itertools json lzma math numbers operator queue random re secrets "
    "statistics string struct textwrap threading time traceback typing unicodedata uuid zlib"
)
PATIENCE = 5.0  # seconds between two looks at whether the harness still lives
ROLES: dict[str, Callable[..., None]] = {"run": inside.run, "candidate": inside.candidate, "check": inside.check}


def main(descriptor: int, without: str) -> None:
    """Serve the control socket `descriptor`; `without` names the layers to leave off, separated by commas."""
    control = socket.socket(fileno=descriptor)
    for name in COMMON.split():
        importlib.import_module(name)
    os.environ.clear()
    sys.argv = [""]
    _first_to_go()
    harness, off = os.getppid(), frozenset(filter(None, without.split(",")))
    files, listable = readable()
    if "namespaces" not in off:
        try:
            namespaces.enter([*files, *listable, *sys.path])
        except OSError as error:
            control.send(json.dumps({"no namespaces": str(error)}).encode())
            return
        first = os.fork()
        if first:
            control.close()
            return namespaces.mind(first, harness, PATIENCE)
        kernel.die_with_parent()
        harness = os.getppid()
    try:
        locks = Locks(off, files, listable)
    except kernel.LockError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    control.send(json.dumps({"layers": locks.layers}).encode())
    control.settimeout(PATIENCE)
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
            _live(order, descriptors, locks, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(json.dumps({"pid": pid}).encode())


class Locks:
    """The layers of this kernel, prepared once so that a child only has to put them on."""

    def __init__(self, without: frozenset[str], files: list[str], listable: list[str]) -> None:
        self.without = without
        self.rules = -1 if "landlock" in without else kernel.landlock_rules(files, listable)
        if "seccomp" not in without and not kernel.has_seccomp():
            raise kernel.LockError("seccomp: not in this kernel, or not known for this processor")
        self.filter = b"" if "seccomp" in without else kernel.filter_program(os.uname().machine)
        self.layers = {
            "landlock": "off" if "landlock" in without else f"version {kernel.landlock_version()}",
            "seccomp": "off" if "seccomp" in without else "on",
            "rlimits": "off" if "rlimits" in without else "on",
            "namespaces": "off" if "namespaces" in without else "on",
        }

    def put_on(self, memory: int, seconds: int, parent: int) -> None:
        """Lock the calling process up for good; raises `LockError` when one lock does not close."""
        kernel.detach(parent)
        if "rlimits" not in self.without:
            kernel.limit(memory, seconds, files=64)
        kernel.no_new_privileges()
        if self.rules >= 0:
            kernel.restrict(self.rules)
            os.close(self.rules)
        if self.filter:
            kernel.drop_capabilities()
            kernel.filter_calls(self.filter)


def readable() -> tuple[list[str], list[str]]:
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


def _live(order: dict, descriptors: list[int], locks: Locks, parent: int) -> None:
    """Be the child: arrange the descriptors, lock up and say so, do the job, end. Never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        rules = [] if locks.rules < 0 else [locks.rules]
        moved = [_high(descriptor) for descriptor in [*descriptors, *rules]]
        for place, descriptor in enumerate(moved, start=3):
            os.dup2(descriptor, place)
        os.closerange(3 + len(moved), 2**16)
        if rules:
            locks.rules = 2 + len(moved)
        role = order["fork"]
        if role == "run":  # the second channel takes what is printed
            os.dup2(4, 1)
            os.dup2(4, 2)
            os.close(4)
        try:
            locks.put_on(order["memory"], order["seconds"], parent)
        except kernel.LockError as error:
            return send(3, {"error": str(error)})
        send(3, {"locked": True})
        ROLES[role](*((3,) if role == "run" else (3, 4)))
    except Gone:
        pass
    finally:
        os._exit(0)


def _high(descriptor: int) -> int:
    """Return a copy of `descriptor` out of the way of the places 3 to 5."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 16)


def _first_to_go() -> None:
    """Offer this process and its children to the kernel first when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("1000")
    except OSError:
        pass
