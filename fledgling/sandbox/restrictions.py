"""Restricts the calling process for good: rlimits, capabilities, Landlock, seccomp.

The restrictions are allowlists. seccomp allows about seventy harmless system calls, a few of them only with harmless
arguments; Landlock allows reading a list of files and no writing. Everything else is denied, also the new system calls
of a newer kernel.

System calls go through ctypes: `pyseccomp` needs libseccomp on the machine and has had no release since 2021,
`landlock` is a pre-release without network and signal scopes. Supports x86-64 and aarch64. Imports only the standard
library, because it runs inside the jail's own Python.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # seccomp's AUDIT_ARCH_... constants

# name: (number on x86-64, number on aarch64); None where aarch64 has no such call
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
TCGETS = 0x5401  # the request of isatty()
ALLOWED_FCNTLS = (
    0,
    1,
    2,
    3,
    4,
    1030,
)  # duplicate, flags; not F_SETOWN, by which the kernel signals others

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
    """The kernel did not apply a restriction: which one and the error."""


def get_landlock_version() -> int:
    """Returns the version of Landlock in this kernel, 0 where there is none. Version 1 is Linux 5.13."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def has_seccomp() -> bool:
    """Returns whether this kernel has seccomp and ALLOWED_SYSCALLS covers this processor."""
    return platform.machine() in AUDIT_ARCHITECTURES and _libc.prctl(_GET_SECCOMP, 0, None, 0, 0) >= 0


def make_landlock_ruleset(readable: Iterable[str], listable: Iterable[str] = ()) -> int:
    """Returns the descriptor of a Landlock ruleset that forbids all writing and allows reading `readable` only.

    readable: files, and directories with all below them. listable: directories whose file names may be listed.
    From version 4 on TCP is denied too, from version 6 on abstract unix sockets and signals to outside processes.
    """
    version = get_landlock_version()
    if not version:
        raise RestrictionError("landlock: not in this kernel")
    file_rights = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    fields = struct.pack("=QQQ", file_rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _call_kernel("landlock", _LANDLOCK_CREATE, fields, ctypes.c_size_t(len(fields)), 0)
    for paths, rights in ((readable, _READ_FILE | _READ_DIR), (listable, _READ_DIR)):
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # a missing path needs no rule
            allowed = rights if os.path.isdir(path) else rights & _READ_FILE
            _call_kernel("landlock", _LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, descriptor), 0)
            os.close(descriptor)
    return ruleset


def apply_landlock(ruleset: int) -> None:
    """Restricts the calling process to a ruleset of `make_landlock_ruleset`, for good."""
    _call_kernel("landlock", _LANDLOCK_RESTRICT, ruleset, 0)


def set_no_new_privileges() -> None:
    """Gives up set-uid programs and file capabilities; Landlock and seccomp require it."""
    if _libc.prctl(_NO_NEW_PRIVS, 1, None, 0, 0):
        raise RestrictionError("no_new_privs: denied")


def isolate_process(parent: int) -> None:
    """Starts a new session, dies with `parent`, and closes this process's memory to other processes."""
    os.setsid()
    die_with_parent()
    if os.getppid() != parent:
        raise RestrictionError("parent death signal: the parent has ended")
    _libc.prctl(_SET_DUMPABLE, 0, None, 0, 0)


def die_with_parent() -> None:
    """Makes the kernel kill the calling process when its parent ends."""
    if _libc.prctl(_SET_PDEATHSIG, 9, None, 0, 0):
        raise RestrictionError("parent death signal: denied")


def drop_capabilities() -> None:
    """Gives up every capability; only root has any."""
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _call_kernel("capabilities", _CAPSET[platform.machine() == "aarch64"], header, nothing)


def apply_rlimits(memory: int, seconds: int, files: int) -> None:
    """Sets resource limits: `memory` bytes of address space, CPU `seconds`, open `files`; no new file or process."""
    for resource_id, maximum in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        try:
            resource.setrlimit(resource_id, (maximum, maximum))
        except (OSError, ValueError) as error:
            raise RestrictionError(f"rlimits: {error}") from error


def build_seccomp_filter(machine: str) -> bytes:
    """Returns the seccomp filter for `machine` as BPF instructions of 8 bytes.

    A call of another architecture kills the process, because its numbers mean other calls. A call that is not allowed
    gets EPERM. clone3 gets ENOSYS, so that libc falls back to clone, which is denied.
    """
    column = list(AUDIT_ARCHITECTURES).index(machine)
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, AUDIT_ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":  # numbers with this bit belong to the x32 interface
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for numbers in ALLOWED_SYSCALLS.values():
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    deny, allow = (_RETURN, 0, 0, _ERROR | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    argument_checks = [
        (OPEN, [_load_argument(1), (_ANY_BIT, 1, 0, WRITE_FLAGS), allow, deny]),
        (OPENAT, [_load_argument(2), (_ANY_BIT, 1, 0, WRITE_FLAGS), allow, deny]),
        (IOCTL, [_load_argument(1), (_EQUAL, 0, 1, TCGETS), allow, deny]),
        (FCNTL, [_load_argument(1), *[x for c in ALLOWED_FCNTLS for x in ((_EQUAL, 0, 1, c), allow)], deny]),
        (
            PRLIMIT,
            [_load_argument(2), (_EQUAL, 0, 3, 0), _load_argument(2, high=True), (_EQUAL, 0, 1, 0), allow, deny],
        ),
        (CLONE3, [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)]),
    ]
    for numbers, block in argument_checks:
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, len(block), number), *block]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*code, deny])


def apply_seccomp(program: bytes) -> None:
    """Applies a filter of `build_seccomp_filter` to the calling process, for good."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    packed = Program(len(program) // 8, program)
    if _libc.prctl(_SET_SECCOMP, 2, ctypes.byref(packed), 0, 0):
        raise RestrictionError(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _load_argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    """Returns the instruction that loads one half of a call's argument; both machines are little-endian."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _call_kernel(restriction: str, number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        raise RestrictionError(f"{restriction}: {os.strerror(ctypes.get_errno())}")
    return result
