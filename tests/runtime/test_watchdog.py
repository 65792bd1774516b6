"""Ranks that watch each other: what is a fault and what is only slow, and one real rank that is stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.distributed import HashStore

from fledgling.record import read_jsonl
from fledgling.runtime import exit_codes, watchdog
from fledgling.runtime.launch import launch_ranks
from fledgling.runtime.watchdog import RankProcess, Watchdog
from fledgling.runtime.world import World
from fledgling.train import run
from tests.campaigns import ranks
from tests.ranks import one_thread
from tests.tiny import tiny

ME, AGENT = os.getpid(), os.getppid()


def member(rank, pid=ME, host="here", agent=AGENT):
    return RankProcess(rank, host, pid, agent, (watchdog.read_process_state(pid) or ("", ""))[1])


def made(folder, members, rank=0):
    """The watch of one rank, without its thread, and the store it shares."""
    world, store = World(rank, len(members), 0, torch.device("cpu")), HashStore()
    found = Watchdog(world, folder, store, members)
    for one in members:
        store.set(f"beat/{one.rank}", "1 0 0")
    found.check_ranks(found.last_check + 0.1)
    return found, store


def beat(store, rank, number, exchanges=0, within=0):
    store.set(f"beat/{rank}", f"{number} {exchanges} {int(within)}")


def pass_time(found, store, seconds, beating, exchanges=None, within=0):
    """Let time go by in ticks, in which the ranks `beating` do so."""
    start = found.last_check
    for tick in range(1, int(seconds / watchdog.HEARTBEAT_INTERVAL) + 1):
        for rank in beating:
            beat(store, rank, 100 + tick, (exchanges or {}).get(rank, 0), within)
        found.check_ranks(start + tick * watchdog.HEARTBEAT_INTERVAL)
        if found.fault:
            return found.last_check - start
    return None


def test_a_rank_that_is_gone_is_named_at_once(tmp_path, capsys):
    gone = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    found, _ = made(tmp_path, [member(0), member(1, gone.pid)])
    assert found.fault is None
    gone.kill()
    gone.wait()
    found.check_ranks(found.last_check + watchdog.HEARTBEAT_INTERVAL)
    assert f"rank 1 (host here, pid {gone.pid}) is gone without a word" in found.fault
    assert capsys.readouterr().err == f"fault: {found.fault}\n"
    assert read_jsonl(tmp_path / "notices.jsonl") == [{"step": None, "text": found.fault}]


def test_one_that_said_it_leaves_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    found, store = made(tmp_path, [member(0), member(1, gone.pid)])
    store.set("left/1", "1")
    gone.wait()
    found.check_ranks(found.last_check + watchdog.HEARTBEAT_INTERVAL)
    assert found.fault is None


def signal_to(process, number):
    """Stop or continue a process, and wait until the kernel shows it."""
    os.kill(process.pid, number)
    while (watchdog.read_process_state(process.pid)[0] == "T") != (number == signal.SIGSTOP):
        time.sleep(0.01)


def test_a_stopped_one_is_named_after_some_seconds_and_not_if_it_goes_on(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found, store = made(tmp_path, [member(0), member(1, other.pid)])
        signal_to(other, signal.SIGSTOP)
        assert pass_time(found, store, watchdog.STOPPED_TIMEOUT - 1, [1]) is None
        signal_to(other, signal.SIGCONT)
        assert pass_time(found, store, watchdog.STOPPED_TIMEOUT + 1, [1]) is None
        signal_to(other, signal.SIGSTOP)
        assert watchdog.STOPPED_TIMEOUT <= pass_time(found, store, 30, [1]) <= watchdog.STOPPED_TIMEOUT + 1
        assert "is stopped (SIGSTOP)" in found.fault
        found._kill_faulty_rank()
        assert other.wait(timeout=10) == -9
    finally:
        other.kill()


def test_silence_is_a_fault_where_all_of_an_agent_are_silent(tmp_path):
    far = [member(2, 7, "there", 1), member(3, 8, "there", 1)]
    found, store = made(tmp_path, [member(0), member(1), *far])
    assert pass_time(found, store, 3 * watchdog.SILENT_TIMEOUT, [1, 3]) is None  # its neighbour would have named it
    silent = pass_time(found, store, 60, [1])
    assert watchdog.SILENT_TIMEOUT < silent < 30 and "rank 2 (host there, pid 7)" in found.fault


def test_a_long_pause_outside_of_steps_is_none(tmp_path):
    found, store = made(tmp_path, [member(0), member(1), member(2)])
    assert pass_time(found, store, 3 * watchdog.STUCK_TIMEOUT, [1, 2]) is None
    found.world.progress.in_step = True  # this one waits within a step, for the main rank that evaluates
    for rank in (1, 2):
        beat(store, rank, 1, within=rank == 1)
    assert pass_time(found, store, 3 * watchdog.STUCK_TIMEOUT, [2]) is None


def test_a_deadlock_within_a_step_names_who_is_behind(tmp_path):
    found, store = made(tmp_path, [member(0), member(1), member(2)])
    found.world.progress.in_step, found.world.progress.collectives, found.world.progress.longest_step = True, 8, 20.0
    assert pass_time(found, store, 350, [1, 2], {1: 7, 2: 8}, within=1) is None  # twenty of the longest steps
    took = pass_time(found, store, 100, [1, 2], {1: 7, 2: 8}, within=1)
    assert took is not None and "rank 1" in found.fault and "stands still within a step" in found.fault


def test_a_watcher_that_was_itself_stopped_begins_anew(tmp_path):
    found, store = made(tmp_path, [member(0), member(1, 7, "there", 1)])
    found.check_ranks(found.last_check + 3600)
    assert found.fault is None
    assert pass_time(found, store, 30, []) > watchdog.SILENT_TIMEOUT


def test_the_first_word_counts(tmp_path, capsys):
    found, store = made(tmp_path, [member(0), member(1)])
    store.set("fault", json.dumps({"text": "rank 1 raised", "code": 70, **vars(member(1))}))
    found.report_fault(member(1), "is gone without a word")
    assert found.fault == "rank 1 raised" and capsys.readouterr().err == ""


def test_of_two_that_see_the_same_one_tells_it(tmp_path, capsys):
    found, store = made(tmp_path, [member(0), member(1), member(2)])
    other = Watchdog(World(1, 3, 0, torch.device("cpu")), tmp_path, store, found.members)
    found.report_fault(member(2), "is gone")
    other.report_fault(member(2), "is gone")
    assert found.fault == other.fault and len(read_jsonl(tmp_path / "notices.jsonl")) == 1
    assert capsys.readouterr().err.count("fault: ") == 1


def test_an_error_of_one_s_own_is_told_and_one_of_an_exchange_is_the_other_s(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENT_TIMEOUT", 0.1)
    found, store = made(tmp_path, [member(0), member(1)])
    try:
        raise ValueError("no such word\nmore")
    except ValueError as error:
        assert found.is_other_ranks_fault(error) is False
    assert found.fault.endswith("raised ValueError: no such word") and store.check(["fault"])
    found.fault_known.set()
    assert found.is_other_ranks_fault(RuntimeError("Connection closed by peer")) is True


LOST = """
import os, signal, sys
from pathlib import Path
from fledgling.runtime.watchdog import run_watchdog
from fledgling.runtime.world import World
world = World.start("cpu")
with run_watchdog(world, Path(sys.argv[1])):
    for step in range(2000):
        if step == 1000 and world.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        world.all_reduce(step)
"""


def test_an_agent_s_signal_does_not_end_a_rank_before_it_has_said_who_is_lost(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch_ranks(2, "cpu", ["-c", LOST, str(tmp_path)]) == exit_codes.FAULT
    (notice,) = read_jsonl(tmp_path / "notices.jsonl")
    assert notice["text"].startswith("rank 0 (host ") and notice["text"].endswith("killed (out of memory?) or crashed")
    assert f"fault: {notice['text']}\n" in capfd.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stopped_main_rank_is_named_and_the_run_ends_with_the_same_bits(tmp_path):
    whole = tiny(tmp_path, **ranks.settings_of(tmp_path / "whole", 12))
    with one_thread():
        run.run_stage(whole, "pretrain", quiet=True)  # one rank: the same bits as two
    found = ranks.case(tmp_path, "stop", 0, ranks.bits(tmp_path / "whole"), ranks=2, steps=12)
    assert found.good, found
