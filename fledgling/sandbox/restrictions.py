"""The kernel's locks, put on the calling process for good: rlimits, capabilities, Landlock, seccomp.

The one idea: name what a Python program needs and refuse the rest. seccomp holds a list of some seventy harmless
system calls, a few of them only with harmless arguments; Landlock holds a list of readable files and not one
writable. What is on neither list does not exist, so a new system call of a newer kernel is refused too.

System calls go through ctypes: `pyseccomp` wants libseccomp on the machine and has seen no release since 2021,
`landlock` is a pre-release that knows no network or signal scope. x86-64 and aarch64; nothing is imported but the
standard library, because this runs inside the jail's own Python.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # as seccomp names them (AUDIT_ARCH_...)

# name: number on x86-64, number on aarch64 (None: aarch64 never had it)
ALLOWED_SYSCALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "lseek": (8, 62),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233), "futex": (202, 98), "clock_gettime": (228, 113), "getrandom": (318, 278),
    "stat": (4, None), "lstat": (6, None), "statx": (332, 291), "getdents64": (217, 61), "readlink": (89, None),
    "readlinkat": (267, 78), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "getcwd": (79, 17), "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "fadvise64": (221, 223),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "pipe": (22, None),
    "pipe2": (293, 59), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160),
    "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163), "set_robust_list": (273, 99),
    "rseq": (334, 293), "membarrier": (324, 283), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
OPEN, OPENAT, IOCTL, FCNTL, PRLIMIT, CLONE3 = (2, None), (257, 56), (16, 29), (72, 25), (302, 261), (435, 435)
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TCGETS = 0x5401  # what isatty() asks
ALLOWED_FCNTLS = (0, 1, 2, 3, 4, 1030)  # duplicate, flags; not F_SETOWN, which has the kernel send signals to others

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # BPF instructions
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_NO_NEW_PRIVS, _SET_DUMPABLE, _SET_PDEATHSIG, _SET_SECCOMP, _GET_SECCOMP = 38, 4, 1, 22, 21
_CAPSET = (126, 91)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)


class RestrictionError(Exception):
    """A lock that this kernel did not put on: which one and what it answered."""


def get_landlock_version() -> int:
    """Return Landlock's version on this kernel; 0 where there is none. 1 is Linux 5.13."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def has_seccomp() -> bool:
    """Return whether this kernel filters system calls and this module knows the processor's numbers."""
    return platform.machine() in AUDIT_ARCHITECTURES and _libc.prctl(_GET_SECCOMP, 0, None, 0, 0) >= 0


def make_landlock_ruleset(readable: Iterable[str], listable: Iterable[str] = ()) -> int:
    """Return a Landlock ruleset (a descriptor) under which nothing is written and only this is read.

    `readable` are files and directories with all below them; `listable` directories give away names only.
    From version 4 on TCP is refused too, from 6 on abstract unix sockets and signals to outside.
    """
    version = get_landlock_version()
    if not version:
        raise RestrictionError("landlock: not in this kernel")
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    fields = struct.pack("=QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _syscall("landlock", _LANDLOCK_CREATE, fields, ctypes.c_size_t(len(fields)), 0)
    for paths, rights in ((readable, _READ_FILE | _READ_DIR), (listable, _READ_DIR)):
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # a path that is not there gives nobody anything
            allowed = rights if os.path.isdir(path) else rights & _READ_FILE
            _syscall("landlock", _LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, place), 0)
            os.close(place)
    return rules


def apply_landlock(ruleset: int) -> None:
    """Put the calling process under `rules`, for good."""
    _syscall("landlock", _LANDLOCK_RESTRICT, ruleset, 0)


def set_no_new_privileges() -> None:
    """Give up set-uid programs and file capabilities; Landlock and seccomp ask for it."""
    if _libc.prctl(_NO_NEW_PRIVS, 1, None, 0, 0):
        raise RestrictionError("no_new_privs: refused")


def isolate_process(parent: int) -> None:
    """Start a session and process group of one's own, die with `parent`, and be closed to other processes."""
    os.setsid()
    die_with_parent()
    if os.getppid() != parent:
        raise RestrictionError("parent death signal: the parent is gone")
    _libc.prctl(_SET_DUMPABLE, 0, None, 0, 0)


def die_with_parent() -> None:
    """Have the kernel kill the calling process when its parent ends."""
    if _libc.prctl(_SET_PDEATHSIG, 9, None, 0, 0):
        raise RestrictionError("parent death signal: refused")


def drop_capabilities() -> None:
    """Give up every capability, which root has and others have not."""
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _syscall("capabilities", _CAPSET[platform.machine() == "aarch64"], header, nothing)


def apply_rlimits(memory: int, seconds: int, files: int) -> None:
    """Set the resource limits: address space (bytes), CPU seconds, open files; no file, core or process at all."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError) as error:
            raise RestrictionError(f"rlimits: {error}") from error


def build_seccomp_filter(machine: str) -> bytes:
    """Return the seccomp filter for `machine` as BPF instructions of 8 bytes.

    A call of another architecture kills the process (its numbers mean other things); one that is not on the
    list gets EPERM; clone3 gets ENOSYS, so that libc asks with clone and is refused there.
    """
    column = list(AUDIT_ARCHITECTURES).index(machine)
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, AUDIT_ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":  # numbers with this bit are the x32 interface
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for numbers in ALLOWED_SYSCALLS.values():
        if numbers[column] is not None:
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    refuse, allow = (_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    guarded = [
        (OPEN, [_load_argument(1), (_ANY_BIT, 1, 0, WRITE_FLAGS), allow, refuse]),
        (OPENAT, [_load_argument(2), (_ANY_BIT, 1, 0, WRITE_FLAGS), allow, refuse]),
        (IOCTL, [_load_argument(1), (_EQUAL, 0, 1, TCGETS), allow, refuse]),
        (FCNTL, [_load_argument(1), *[x for c in ALLOWED_FCNTLS for x in ((_EQUAL, 0, 1, c), allow)], refuse]),
        (
            PRLIMIT,
            [_load_argument(2), (_EQUAL, 0, 3, 0), _load_argument(2, high=True), (_EQUAL, 0, 1, 0), allow, refuse],
        ),
        (CLONE3, [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)]),
    ]
    for numbers, block in guarded:
        if numbers[column] is not None:
            code += [(_EQUAL, 0, len(block), numbers[column]), *block]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*code, refuse])


def apply_seccomp(program: bytes) -> None:
    """Put the calling process under the seccomp filter `program`, for good."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    packed = Program(len(program) // 8, program)
    if _libc.prctl(_SET_SECCOMP, 2, ctypes.byref(packed), 0, 0):
        raise RestrictionError(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _load_argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    """Return the instruction that loads one half of a call's argument; both machines are little-endian."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _syscall(lock: str, number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        raise RestrictionError(f"{lock}: {os.strerror(ctypes.get_errno())}")
    return result
