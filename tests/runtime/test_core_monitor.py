"""The number of threads follows the cores that other processes leave."""

import os
import subprocess
import sys

import pytest

from fledgling.runtime.core_monitor import (
    CoreMonitor,
    CoreTimes,
    _read_busy_ticks,
    count_free_cores,
    read_core_times,
)

IDLE = CoreTimes(0.0, 0.0, 0.0)


class Machine:
    """Two cores whose use a test decides; each reading is one second later."""

    def __init__(self):
        self.seconds, self.times, self.uses = 0.0, IDLE, (0.0, 0.0, 0.0)

    def clock(self):
        return self.seconds

    def read(self):
        return self.times

    def run(self, monitor, others, own, waited, seconds=1):
        for _ in range(seconds):
            self.seconds += 1.0
            busy = self.times.busy + others + own
            self.times = CoreTimes(busy, self.times.own + own, self.times.waited + waited)
            monitor.adapt()


@pytest.fixture
def machine():
    return Machine()


def make_monitor(machine, threads=2, interval=1.0):
    changes, lines = [], []
    monitor = CoreMonitor(threads, changes.append, lines.append, interval, machine.read, machine.clock, cores=2)
    return monitor, changes, lines


@pytest.mark.parametrize(
    ("others", "own", "waited", "free"),
    [
        (0.0, 2.0, 0.0, 2.0),  # alone
        (0.1, 1.9, 0.1, 2.0),  # housekeeping
        (0.0, 1.9, 1.0, 2.0),  # its own threads wait for each other
        (0.5, 1.5, 0.5, 1.0),  # a busy process on the core of one of two threads
        (1.0, 1.0, 0.0, 1.0),  # one thread, and a busy process on the other core
        (0.0, 1.0, 0.0, 2.0),  # one thread, and nothing else
        (2.0, 0.5, 0.5, -0.5),
    ],
)
def test_free_cores_are_what_others_leave_and_would_leave(others, own, waited, free):
    assert count_free_cores(2, IDLE, CoreTimes(others + own, own, waited), 1.0) == pytest.approx(free)


def test_threads_are_given_up_while_a_core_is_taken_and_it_is_reported_once(machine):
    monitor, changes, lines = make_monitor(machine)
    machine.run(monitor, 0.0, 2.0, 0.0, seconds=5)
    assert changes == lines == []
    machine.run(monitor, 0.5, 1.5, 0.5, seconds=3)
    assert changes == [1] and monitor.current == 1
    machine.run(monitor, 1.0, 1.0, 0.0, seconds=20)  # the other process now has its core to itself
    assert changes == [1]
    machine.run(monitor, 0.0, 1.0, 0.0, seconds=3)
    machine.run(monitor, 0.5, 1.5, 0.5, seconds=3)
    assert changes == [1, 2, 1]
    assert lines == ["other processes use some of the 2 cores: 1 of 2 threads are used while they do"]


def test_a_machine_that_is_shared_from_the_start_is_seen_at_once_and_then_looked_at_seldom(machine):
    """Every stage starts with all threads: with two looks five seconds apart four stages lost forty seconds."""
    monitor, changes, _ = make_monitor(machine, interval=5.0)
    machine.run(monitor, 0.5, 1.5, 0.5, seconds=2)
    assert changes == [1]
    machine.run(monitor, 1.0, 1.0, 0.0, seconds=20)
    machine.run(monitor, 0.0, 1.0, 0.0, seconds=5)
    assert changes == [1]
    machine.run(monitor, 0.0, 1.0, 0.0, seconds=6)
    assert changes == [1, 2]


def test_one_busy_second_changes_nothing(machine):
    monitor, changes, _ = make_monitor(machine)
    for _ in range(10):
        machine.run(monitor, 0.6, 1.4, 0.6)
        machine.run(monitor, 0.0, 2.0, 0.0)
    assert changes == []


def test_at_least_one_thread_stays(machine):
    monitor, changes, _ = make_monitor(machine)
    machine.run(monitor, 1.9, 0.1, 1.9, seconds=3)
    assert changes == [1]


def test_without_proc_nothing_changes():
    monitor = CoreMonitor(2, pytest.fail, pytest.fail, 0.0, lambda: None)
    monitor.adapt()
    assert monitor.current == 2


def test_only_the_cores_of_the_mask_count_and_low_priority_does_not():
    stat = "cpu 9 9 9 9\ncpu0 10 5 3 99 1 0 0 0 0 0\ncpu1 20 7 4 99 1 0 0 0 0 0\ncpu2 500 0 0 0\nintr 7 7\n"
    assert _read_busy_ticks(stat, {0, 1}, with_nice=False) == 37
    assert _read_busy_ticks(stat, {1}, with_nice=True) == 31


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc")
def test_a_child_that_works_is_no_other_process():
    before = read_core_times()
    subprocess.run([sys.executable, "-c", "x = 0\nfor i in range(2_000_000): x += i"], check=True)
    after = read_core_times()
    used = os.times()
    assert before is not None and after is not None and used.children_user > 0
    assert after.own - before.own >= 0.02 and after.waited >= before.waited
