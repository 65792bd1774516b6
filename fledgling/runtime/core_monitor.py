"""How many of its cores a process really has while other processes use them, and threads that follow it.

Threads of a matrix product wait for each other. If one of two cores has to serve another process too, both threads are
as slow as the one that shares its core, and slower: a thread that waits busily uses up the time that its core grants.
One thread on a free core is faster than two of which one is interrupted (docs/engine.md, Measured). So the
number of threads follows the number of free cores, which /proc gives: what other processes of normal priority use, and
how long the threads of this one wait for a core. Where there is no /proc nothing changes.

Start with `CoreMonitor`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
NOT_SHARED = 0.25  # cores: less use by others than this is the machine's own housekeeping
FIRST_INTERVAL = 0.5  # seconds until the first measurement; each further one waits twice as long, up to the interval
AGREEING_CHECKS = 2  # this many measurements in a row must give the same number of threads before it is used


@dataclass(frozen=True)
class CoreTimes:
    """Seconds since some moment."""

    busy: float  # of the cores that this process may use, in processes of normal priority (or any, if it is niced)
    own: float  # of this process and its children
    waited: float  # in which threads of this process could run and had no core


def read_core_times(proc: Path = PROC) -> CoreTimes | None:
    """Reads the times; None where the system does not give them."""
    try:
        cores = os.sched_getaffinity(0)
        tick = os.sysconf("SC_CLK_TCK")
        is_nice = os.getpriority(os.PRIO_PROCESS, 0) > 0
        busy = _read_busy_ticks((proc / "stat").read_text(encoding="ascii"), cores, is_nice) / tick
        return CoreTimes(busy, _read_own_ticks(proc, os.getpid()) / tick, _read_waited(proc / "self" / "task"))
    except (OSError, ValueError, AttributeError, IndexError):
        return None


def _read_busy_ticks(stat: str, cores: set[int], with_nice: bool) -> int:
    """Returns the ticks that processes used on some cores. Lines are `cpu1 user nice system idle iowait irq ...`."""
    total = 0
    for line in stat.splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system = map(int, values[:3])
            total += user + system + (nice if with_nice else 0)
    return total


def _read_own_ticks(proc: Path, process: int) -> int:
    """Returns the ticks of a process and of all that descend from it, those that have ended included."""
    parents, ticks = {}, {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))  # its own and its ended children's, user and system
    own = {process}
    while found := {child for child, parent in parents.items() if parent in own} - own:
        own |= found
    return sum(ticks.get(member, 0) for member in own)


def _read_waited(tasks: Path) -> float:
    """Returns the seconds that threads have waited for a core: the second number of each schedstat, in nanoseconds."""
    waited = 0
    for task in tasks.iterdir():
        try:
            waited += int((task / "schedstat").read_text(encoding="ascii").split()[1])
        except OSError:  # it has ended, or the kernel does not count
            continue
    return waited / 1e9


def count_free_cores(cores: int, before: CoreTimes, after: CoreTimes, seconds: float) -> float:
    """Returns how many of `cores` are left for this process, between two readings.

    Another process on a core that it shares with one of these threads gets half of it, and would use all. So the time
    that these threads wait counts as well, up to what the others use: they may also wait for each other.
    """
    others = max(0.0, (after.busy - before.busy) - (after.own - before.own)) / seconds
    if others < NOT_SHARED:
        return float(cores)
    waited = max(0.0, after.waited - before.waited) / seconds
    return cores - others - min(waited, others)


@dataclass
class CoreMonitor:
    """Follows the number of free cores with the number of threads. `adapt` is called often, and measures sometimes.

    Args:
        threads: at most, and as long as the machine is not shared.
        set_threads: sets the number of threads.
        notify: is called once, with one line, that the machine is shared.
        interval: seconds between measurements, at most; the first ones follow sooner (`FIRST_INTERVAL`).
        cores: that this process may use; 0: those of its affinity mask.
        first: threads to start with, where fewer than `threads` were in use before; 0: all of them.
    """

    threads: int
    set_threads: Callable[[int], None]
    notify: Callable[[str], None]
    interval: float = 1.0
    read: Callable[[], CoreTimes | None] = read_core_times
    clock: Callable[[], float] = time.monotonic
    cores: int = 0
    first: int = 0
    current: int = field(init=False)

    def __post_init__(self) -> None:
        self.current = min(self.first or self.threads, self.threads)
        self.cores = self.cores or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else self.threads
        self._agreed, self._has_notified, self._wait = 0, False, min(FIRST_INTERVAL, self.interval)
        self._last, self._last_time = self.read(), self.clock()
        if self.current < self.threads:
            self.set_threads(self.current)
            self._notify_once()

    def adapt(self) -> None:
        """Measures if the interval has passed, and changes the threads once two measurements agree."""
        now = self.clock()
        if self.threads == 1 or self._last is None or now - self._last_time < self._wait:
            return
        self._wait = min(2 * self._wait, self.interval)
        times = self.read()
        if times is None:
            return
        free = count_free_cores(self.cores, self._last, times, now - self._last_time)
        self._last, self._last_time = times, now
        fitting = max(1, min(self.threads, round(free)))
        self._agreed = self._agreed + 1 if fitting != self.current else 0
        if self._agreed >= AGREEING_CHECKS:
            self._agreed, self.current = 0, fitting
            self.set_threads(fitting)
            if fitting < self.threads:
                self._notify_once()

    def _notify_once(self) -> None:
        if not self._has_notified:
            self._has_notified = True
            self.notify(
                f"other processes use some of the {self.cores} cores: {self.current} of {self.threads} threads are "
                "used while they do"
            )
