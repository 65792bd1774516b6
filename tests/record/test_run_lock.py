"""One writer of a directory at a time: between processes and machines, after a kill, in a copy."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.record import run_lock
from fledgling.record.run_lock import hold_lock, read_living_holder
from tests.waits import WAIT_SECONDS

RACE = """
import sys
from fledgling.config import UserError
from fledgling.record.run_lock import hold_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold_lock(sys.argv[1], "train"):
        print("held", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""
ELSEWHERE = """
import socket, sys
socket.gethostname = lambda: "elsewhere"
from fledgling.record import run_lock
run_lock.LEASE_SECONDS, run_lock.HEARTBEAT_SECONDS = float(sys.argv[2]), 0.05
with run_lock.hold_lock(sys.argv[1], "train"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def start(program: str, directory: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-c", program, str(directory), *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def let_go(*processes: subprocess.Popen) -> None:
    for process in processes:
        process.communicate("\n", timeout=WAIT_SECONDS)


def leave_claim_of_killed_process(directory: Path) -> None:
    process = start(RACE, directory)
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert (directory / "lock").exists()


@pytest.mark.parametrize("left", ["nothing", "a killed holder", "a copied claim"])
def test_of_two_processes_that_start_at_once_one_writes(left, tmp_path):
    directory = tmp_path / "run"
    if left == "a killed holder":
        leave_claim_of_killed_process(directory)
    if left == "a copied claim":
        with hold_lock(tmp_path / "original", "train"):
            shutil.copytree(tmp_path / "original", directory)
    racers = [start(RACE, directory) for _ in range(3)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 3
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    printed = [racer.stdout.readline() for racer in racers]
    winners = [racer for racer, line in zip(racers, printed, strict=True) if line == "held\n"]
    assert len(winners) == 1, printed
    for line in printed:
        assert line == "held\n" or f"process {winners[0].pid} on " in line
    let_go(*racers)
    assert not (directory / "lock").exists()


def test_the_second_start_says_who_since_when_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fledgling", "train", "sft", "runs/a b"])
    with hold_lock(tmp_path, "sft"), pytest.raises(UserError) as error, hold_lock(tmp_path, "pretrain"):
        pass
    printed = str(error.value)
    assert f"{tmp_path} is being written by process {os.getpid()} on " in printed and "\n" not in printed
    assert (
        " since 20" in printed and "(fledgling train sft 'runs/a b')" in printed and "pretrain cannot write" in printed
    )
    assert "wait for that process, stop it, or choose another directory" in printed
    with hold_lock(tmp_path, "pretrain"):  # it was released
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_process_whose_id_was_given_to_another_is_taken_over(tmp_path):
    with hold_lock(tmp_path, "train"):
        claim = (tmp_path / "lock").read_text()
    start_line = next(line for line in claim.splitlines() if line.startswith("start="))
    (tmp_path / "lock").write_text(claim.replace(start_line, f"start={int(start_line[6:]) - 100}"))
    with hold_lock(tmp_path, "train"):
        assert (tmp_path / "lock").read_text() != claim


def test_a_link_to_a_run_has_the_same_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    link = hold_lock(tmp_path / "link", "sft")
    with hold_lock(tmp_path / "run", "sft"), pytest.raises(UserError, match="link is being written by process"), link:
        pass


def test_a_copy_whose_claim_was_given_the_inode_of_the_original_is_free(tmp_path):
    copy = tmp_path / "copy"
    with hold_lock(tmp_path / "original", "train"):
        shutil.copytree(tmp_path / "original", copy)
    described = json.loads((copy / "lock.json").read_bytes())
    (copy / "lock.json").write_text(json.dumps(described | {"inode": (copy / "lock").stat().st_ino}))
    assert read_living_holder(copy) is None, "this process lives, but holds nothing there"
    with hold_lock(copy, "train"):
        assert read_living_holder(copy)["pid"] == os.getpid()


@pytest.mark.parametrize("lives", [True, False])
def test_a_holder_on_another_machine_is_known_by_its_heartbeat(lives, tmp_path, monkeypatch):
    lease = 300.0 if lives else 0.4
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", lease)
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "POLL_SECONDS", 0.02)
    holder, lines = start(ELSEWHERE, tmp_path, str(lease)), []
    assert holder.stdout.readline() == "held\n"
    os.utime(tmp_path / "lock", (0, 0))  # its clock may say anything: only a change counts
    if lives:
        with pytest.raises(UserError, match=f"process {holder.pid} on elsewhere"), hold_lock(tmp_path, "sft"):
            pass
    else:
        holder.send_signal(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)  # until it has stopped
        with hold_lock(tmp_path, "sft", lines.append) as lock:
            assert lines == [line for line in lines if "waiting up to" in line] and len(lines) == 1
            holder.send_signal(signal.SIGCONT)
            let_go(holder)  # it must not release the lock of its successor
            lock.require_held()
            assert (tmp_path / "lock").exists() and (tmp_path / "lock.json").exists()
    if lives:
        let_go(holder)


def test_a_holder_that_lost_its_lock_writes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.01)
    with hold_lock(tmp_path, "train") as lock:
        (tmp_path / "lock").unlink()
        heartbeat = lock.lease._claim.heartbeat.thread
        heartbeat.join(timeout=WAIT_SECONDS)
        with pytest.raises(UserError, match="no longer locked by this process"):
            lock.require_held()
