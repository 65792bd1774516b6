"""A run's threads follow the free cores only where no one chose their number, and its metrics say so."""

from types import SimpleNamespace

import pytest
import torch

from fledgling.config.recipe import RunConfig
from fledgling.runtime import core_monitor
from fledgling.runtime.core_monitor import CoreTimes
from fledgling.train import free_cores

WORLD = SimpleNamespace(device=torch.device("cpu"), size=1)


@pytest.fixture
def shared_machine(monkeypatch):
    """A machine on which another process uses one of two cores, whenever it is asked."""
    seconds = iter(range(100))

    def read():
        now = next(seconds)
        return CoreTimes(1.5 * now, 1.0 * now, 0.5 * now)

    def monitor(*arguments, first):
        return core_monitor.CoreMonitor(*arguments[:3], 0.0, read, lambda: next(seconds), cores=2, first=first)

    monkeypatch.setattr(free_cores, "CoreMonitor", monitor)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    return chosen


def test_steps_with_fewer_threads_say_so(shared_machine):
    lines = []
    adapt = free_cores.follow_free_cores(RunConfig(), WORLD, lines.append)
    assert [adapt() for _ in range(3)] == [{}, {"threads": 1}, {"threads": 1}]
    assert shared_machine == [1] and len(lines) == 1


def test_a_stage_begins_with_the_threads_of_the_one_before_it(shared_machine):
    lines = []
    adapt = free_cores.follow_free_cores(RunConfig(), WORLD, lines.append, first_threads=1)
    assert shared_machine == [1] and "1 of 2 threads" in lines[0], "before its first evaluation"
    assert [adapt() for _ in range(3)] == [{"threads": 1}] * 3 and shared_machine == [1] and len(lines) == 1


@pytest.mark.parametrize("what", ["setting", "variable", "ranks", "device"])
def test_chosen_threads_are_kept(what, shared_machine, monkeypatch):
    if what == "variable":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    config = RunConfig(threads=2 if what == "setting" else 0)
    world = SimpleNamespace(
        device=torch.device("cuda" if what == "device" else "cpu"), size=2 if what == "ranks" else 1
    )
    adapt = free_cores.follow_free_cores(config, world, pytest.fail, first_threads=1)
    assert [adapt() for _ in range(4)] == [{}] * 4 and shared_machine == []
