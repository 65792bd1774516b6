"""The watchdog: which ranks are faulty and which are only slow, and one real rank that is stopped."""

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
from tests.campaigns import ranks


def make_member(rank, pid=None, host="here", agent_pid=None):
    pid = pid or os.getpid()
    start_time = (watchdog.read_process_state(pid) or ("", ""))[1]
    return RankProcess(rank, host, pid, agent_pid or os.getppid(), start_time)


def make_watchdog(folder, members, rank=0):
    """Returns the watchdog of one rank, without its thread, and the store that it shares."""
    world, store = World(rank, len(members), 0, torch.device("cpu")), HashStore()
    dog = Watchdog(world, folder, store, members)
    for member in members:
        store.set(f"beat/{member.rank}", "1 0 0")
    dog.check_ranks(dog.last_check + 0.1)
    return dog, store


def write_heartbeat(store, rank, number, collectives=0, in_step=0):
    store.set(f"beat/{rank}", f"{number} {collectives} {int(in_step)}")


def pass_time(dog, store, seconds, beating, collectives=None, in_step=0):
    """Simulates time, in which the ranks `beating` send heartbeats; returns the seconds until a fault, or None."""
    start = dog.last_check
    for tick in range(1, int(seconds / watchdog.HEARTBEAT_INTERVAL) + 1):
        for rank in beating:
            write_heartbeat(store, rank, 100 + tick, (collectives or {}).get(rank, 0), in_step)
        dog.check_ranks(start + tick * watchdog.HEARTBEAT_INTERVAL)
        if dog.fault:
            return dog.last_check - start
    return None


def test_a_rank_that_is_gone_is_named_at_once(tmp_path, capsys):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    dog, _ = make_watchdog(tmp_path, [make_member(0), make_member(1, process.pid)])
    assert dog.fault is None
    process.kill()
    process.wait()
    dog.check_ranks(dog.last_check + watchdog.HEARTBEAT_INTERVAL)
    assert f"rank 1 (host here, pid {process.pid}) ended without an error" in dog.fault
    assert capsys.readouterr().err == f"fault: {dog.fault}\n"
    assert read_jsonl(tmp_path / "notices.jsonl") == [{"step": None, "text": dog.fault}]


def test_a_rank_that_has_signed_off_is_no_fault(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1, process.pid)])
    store.set("left/1", "1")
    process.wait()
    dog.check_ranks(dog.last_check + watchdog.HEARTBEAT_INTERVAL)
    assert dog.fault is None


def send_signal(process, number):
    """Stops or continues a process, and waits until the kernel shows it."""
    os.kill(process.pid, number)
    while (watchdog.read_process_state(process.pid)[0] == "T") != (number == signal.SIGSTOP):
        time.sleep(0.01)


def test_a_stopped_rank_is_named_after_some_seconds_unless_it_continues(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1, other.pid)])
        send_signal(other, signal.SIGSTOP)
        assert pass_time(dog, store, watchdog.STOPPED_TIMEOUT - 1, [1]) is None
        send_signal(other, signal.SIGCONT)
        assert pass_time(dog, store, watchdog.STOPPED_TIMEOUT + 1, [1]) is None
        send_signal(other, signal.SIGSTOP)
        assert watchdog.STOPPED_TIMEOUT <= pass_time(dog, store, 30, [1]) <= watchdog.STOPPED_TIMEOUT + 1
        assert "is stopped (SIGSTOP)" in dog.fault
        dog._kill_faulty_rank()
        assert other.wait(timeout=60) == -9
    finally:
        other.kill()


def test_silence_is_a_fault_where_all_ranks_of_a_launcher_are_silent(tmp_path):
    far = [make_member(2, 7, "there", 1), make_member(3, 8, "there", 1)]
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1), *far])
    assert pass_time(dog, store, 3 * watchdog.SILENT_TIMEOUT, [1, 3]) is None  # rank 3 would have reported it
    silent = pass_time(dog, store, 60, [1])
    assert watchdog.SILENT_TIMEOUT < silent < 30 and "rank 2 (host there, pid 7)" in dog.fault


def test_a_long_pause_outside_of_steps_is_no_fault(tmp_path):
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1), make_member(2)])
    assert pass_time(dog, store, 3 * watchdog.STUCK_TIMEOUT, [1, 2]) is None
    dog.world.progress.in_step = True  # this rank waits inside a step for the main rank, which evaluates
    for rank in (1, 2):
        write_heartbeat(store, rank, 1, in_step=rank == 1)
    assert pass_time(dog, store, 3 * watchdog.STUCK_TIMEOUT, [2]) is None


def test_a_deadlock_inside_a_step_names_the_rank_that_is_behind(tmp_path):
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1), make_member(2)])
    dog.world.progress.in_step, dog.world.progress.collectives, dog.world.progress.longest_step = True, 8, 20.0
    assert pass_time(dog, store, 350, [1, 2], {1: 7, 2: 8}, in_step=1) is None  # less than twenty of the longest steps
    seconds = pass_time(dog, store, 100, [1, 2], {1: 7, 2: 8}, in_step=1)
    assert seconds is not None and "rank 1" in dog.fault and "hangs inside a step" in dog.fault


def test_a_watchdog_that_was_suspended_starts_counting_again(tmp_path):
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1, 7, "there", 1)])
    dog.check_ranks(dog.last_check + 3600)
    assert dog.fault is None
    assert pass_time(dog, store, 30, []) > watchdog.SILENT_TIMEOUT


def test_the_first_report_is_kept(tmp_path, capsys):
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1)])
    store.set("fault", json.dumps({"text": "rank 1 raised", "code": 70, **vars(make_member(1))}))
    dog.report_fault(make_member(1), "ended without an error")
    assert dog.fault == "rank 1 raised" and capsys.readouterr().err == ""


def test_only_one_of_two_ranks_reports_the_same_fault(tmp_path, capsys):
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1), make_member(2)])
    other = Watchdog(World(1, 3, 0, torch.device("cpu")), tmp_path, store, dog.members)
    dog.report_fault(make_member(2), "is gone")
    other.report_fault(make_member(2), "is gone")
    assert dog.fault == other.fault and len(read_jsonl(tmp_path / "notices.jsonl")) == 1
    assert capsys.readouterr().err.count("fault: ") == 1


def test_an_own_error_is_reported_and_an_error_of_a_collective_is_the_other_ranks_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENT_TIMEOUT", 0.1)
    dog, store = make_watchdog(tmp_path, [make_member(0), make_member(1)])
    try:
        raise ValueError("no such word\nmore")
    except ValueError as error:
        assert dog.is_other_ranks_fault(error) is False
    assert dog.fault.endswith("raised ValueError: no such word") and store.check(["fault"])
    dog.fault_known.set()
    assert dog.is_other_ranks_fault(RuntimeError("Connection closed by peer")) is True


LOST_RANK = """
import os, signal, sys
from pathlib import Path
from fledgling.runtime import watchdog
from fledgling.runtime.watchdog import run_watchdog
from fledgling.runtime.world import World
watchdog.SIGNAL_DELAY = 20.0  # the thread that names the lost rank may start late
world = World.start("cpu")
with run_watchdog(world, Path(sys.argv[1])):
    for step in range(2000):
        if step == 1000 and world.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        world.all_reduce(step)
"""


def test_a_launchers_signal_does_not_end_a_rank_before_it_has_named_the_lost_one(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch_ranks(2, "cpu", ["-c", LOST_RANK, str(tmp_path)]) == exit_codes.FAULT
    (notice,) = read_jsonl(tmp_path / "notices.jsonl")
    assert notice["text"].startswith("rank 0 (host ") and notice["text"].endswith("killed (out of memory?) or crashed")
    assert f"fault: {notice['text']}\n" in capfd.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stopped_main_rank_is_named_and_the_run_ends_with_the_same_bits(tmp_path):
    reference = ranks.start_run(tmp_path, "reference", ranks=1, steps=12)  # one rank: the same bits as two
    reference.wait()
    outcome = ranks.run_case(tmp_path, "stop", 0, ranks.hash_tensors(reference.out), ranks=2, steps=12)
    assert outcome.ok, outcome
