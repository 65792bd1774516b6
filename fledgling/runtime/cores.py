"""The processor cores that this process may use: those of its affinity mask, limited by its container's quota."""

import math
import os

from fledgling.runtime.cgroup import list_group_folders, read_words


def count_cores() -> int:
    """Returns the number of cores that this process may use, at least 1.

    A container limited to 2 processors by quota still sees all cores of its host in the affinity mask.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_read_quotas()]))


def _read_quotas() -> list[int]:
    """Returns the processors that each group of this process is granted (`200000 100000` is 2), rounded up."""
    quotas = []
    for folder in list_group_folders("cpu"):
        words = read_words(folder / "cpu.max")
        words = words or [*read_words(folder / "cpu.cfs_quota_us"), *read_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):  # not `max` or -1
            quotas.append(math.ceil(int(words[0]) / int(words[1])))
    return quotas
