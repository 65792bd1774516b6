"""Moves a fork server into namespaces: a root that holds its Python only, no network, no other processes.

This layer is optional. Landlock and seccomp deny what a program requests; inside namespaces it does not even exist:
no path, no network interface, no process number. Many machines (above all containers) do not let a process make
namespaces, so they are used where they can be made, once for each fork server.

Imports only the standard library, because it runs inside the jail's own Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable

_MOUNTS, _NAMES, _IPC, _USERS, _PROCESSES, _NETWORK = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE, _DETACH = 2, 4, 1 << 12, 1 << 14, 1 << 18, 2
_PIVOT_ROOT = (155, 41)
NEW_ROOT = "/tmp"  # where the new root is mounted; any existing directory works

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def enter_namespaces(paths: Iterable[str]) -> None:
    """Moves the calling process, which has one thread, into new namespaces whose root holds `paths` only.

    Its next child is process 1 of the namespace; when that ends, all others are killed. Raises OSError where a step is
    denied; the process is then in an undefined state and must end.
    """
    user, group = os.getuid(), os.getgid()
    _check_result(_libc.unshare(_MOUNTS | _NAMES | _IPC | _USERS | _PROCESSES | _NETWORK))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths if os.path.exists(path)}
    _mount("none", NEW_ROOT, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path in sorted(sources):  # a directory before its content
        target, source = NEW_ROOT + path, f"/proc/self/fd/{sources[path]}"
        if os.path.exists(target):
            continue
        if os.path.isdir(source):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "w").close()
        _mount(source, target, None, _BIND | _RECURSIVE)
    for descriptor in sources.values():
        os.close(descriptor)
    os.chdir(NEW_ROOT)
    _check_result(_libc.syscall(_PIVOT_ROOT[os.uname().machine == "aarch64"], b".", b"."))
    _check_result(_libc.umount2(b".", _DETACH))
    os.chdir("/")


def supervise_init(child: int, harness: int, poll_interval: float) -> None:
    """Waits outside of the namespaces as the parent of process 1; kills it when the harness has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if os.getppid() != harness:
            os.kill(child, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, poll_interval)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text if text is None else text.encode() for text in (source, target, kind, options)]
    _check_result(_libc.mount(*encoded[:3], flags, encoded[3]))


def _check_result(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
