"""The processor cores that this process may use: those of its affinity mask, limited by its container's quota."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # of version 2: a container sees its own here


def count_cores() -> int:
    """Returns the number of cores that this process may use, at least 1.

    A container limited to 2 processors by quota still sees all cores of its host in the affinity mask.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _read_quota()))


def _read_quota() -> int:
    """Returns the processors that cpu.max grants (`200000 100000` is 2), rounded up; a large number without a limit."""
    try:
        microseconds, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return math.ceil(int(microseconds) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or `max 100000`
        return 1 << 20
