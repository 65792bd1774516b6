"""The limit of open files of this process, raised before many files are mapped into memory."""

from __future__ import annotations

import os

from fledgling.config import UserError

RESERVED_OPEN_FILES = 512  # room for what a process opens later, where the hard limit has it
LEAST_OPEN_FILES = 64  # of that room, without which a run would fail soon: checkpoints, logs, sockets


def count_open_files() -> int:
    """Returns the files that this process has open; 0 where the system does not list them."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0


def raise_open_file_limit(count: int, what: str) -> None:
    """Raises this process's limit of open files so that `count` more fit next to those that are open.

    Args:
        count: files that are about to be opened.
        what: needs them, such as "300 shards", for the error.

    Raises:
        UserError: the hard limit does not allow that.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = count_open_files()
    wanted, least = in_use + count + RESERVED_OPEN_FILES, in_use + count + LEAST_OPEN_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < least:
        raise UserError(
            f"{what} need {count:,} open files next to {in_use:,} that are open, {hard:,} are allowed: raise the limit "
            f"with ulimit -Hn {wanted}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
