"""Memory that this process may use: the machine's, limited by its container or batch job."""

from __future__ import annotations

import os
from pathlib import Path

from fledgling.runtime.cgroup import list_group_folders, read_number

MEMINFO = Path("/proc/meminfo")
# (limit, use, statistics, the part of the use that is freed at need), of versions 2 and 1
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def get_total_memory() -> int | None:
    """Returns the bytes of this machine, or of the smallest group that this process is in; None if unknown.

    A container limited to 4 GiB still sees all memory of its host in the system's counts.
    """
    if os.name != "posix":
        return None
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _read_groups())])


def get_available_memory() -> int | None:
    """Returns the bytes that are free or freed at need, of the machine and of its groups; None where none says."""
    try:
        entries = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        machine = [int(entries["MemAvailable"].split()[0]) * 1024]
    except (OSError, ValueError, KeyError, IndexError):
        machine = []
    return min([*machine, *(max(0, limit - used) for limit, used in _read_groups())], default=None)


def _read_groups() -> list[tuple[int, int]]:
    """Returns (limit, bytes in use that cannot be freed) of each group that has a limit."""
    found = []
    for folder in list_group_folders("memory"):
        for limit_file, use_file, freed_name in GROUP_FILES:
            limit = read_number(folder / limit_file)
            if limit is not None:
                used = read_number(folder / use_file) or 0
                found.append((limit, used - (read_number(folder / "memory.stat", freed_name) or 0)))
    return found
