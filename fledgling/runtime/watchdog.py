"""Detects ranks that died, stopped, hung or raised; names the rank, and makes all ranks exit together.

Every rank has a thread that writes a heartbeat into the store of the group. A heartbeat holds what the main thread has
done: how many collectives it has begun, and whether it is inside a training step. Faults, and who detects them:

    gone       a process of the same launcher no longer exists and did not     its local peers     .5 s
               sign off
    stopped    a process of the same launcher is in the kernel's state T       its local peers     STOPPED_TIMEOUT
    silent     no heartbeat of any rank of a launcher: machine or network      first, last rank    SILENT_TIMEOUT
               lost
    deadlock   all ranks are inside a step and none begins a collective; the   first, last rank    STUCK_TIMEOUT, or 20
               ranks that are behind the others are named                                          of the longest steps
    raised     reported by the rank itself                                                         at once

A long pause (preparing data, evaluating, compiling) is no fault: the thread still sends heartbeats, and only steps
are timed. The first rank that detects a fault writes it into the store, to stderr and into notices.jsonl; the others
read it from the store. A watchdog whose own process was suspended starts counting again. The exit code is FAULT; the
launcher (`launch.py`, torchrun) restarts the ranks.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.record.jsonl import JsonlWriter
from fledgling.runtime.exit_codes import FAILED, FAULT
from fledgling.runtime.rendezvous import open_store
from fledgling.runtime.signals import STOP_SIGNALS
from fledgling.runtime.world import World

HEARTBEAT_INTERVAL = 0.5  # seconds
STOPPED_TIMEOUT = 5.0  # seconds in state T until a rank is given up
SILENT_TIMEOUT = 20.0  # seconds without a heartbeat of a whole launcher
STUCK_TIMEOUT = 300.0  # seconds without a collective inside steps, at least
STUCK_STEP_FACTOR = 20  # multiple of the longest step so far, where that is more than STUCK_TIMEOUT
EXIT_GRACE = 1.0  # seconds for the main thread to print its error before the process ends
SIGNAL_DELAY = 2.0  # seconds that a process outlives a launcher's signal, so that it can name the lost rank


@dataclass(frozen=True)
class RankProcess:
    """A rank as a process.

    agent_pid: the launcher that started it. start_time: as the kernel counts it, so that a reused pid is detected.
    """

    rank: int
    host: str
    pid: int
    agent_pid: int
    start_time: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass
class Heartbeat:
    """The last heartbeat of a rank.

    received_at: time of the last new heartbeat; progressed_at: of the last one that shows progress (`time.monotonic`
    seconds).
    """

    payload: bytes = b""
    received_at: float = 0.0
    progressed_at: float = 0.0
    collectives: int = -1
    in_step: bool = False


def read_process_state(pid: int) -> tuple[str, str] | None:
    """Returns state letter and start time of a process: None when it has ended, ("?", "") without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else (fields[0], fields[19])
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return "?", ""


class Watchdog:
    """The watchdog thread of one rank. `fault` is the text of the fault once one is known, else None."""

    def __init__(self, world: World, stage_dir: Path, store: Any, members: Sequence[RankProcess]) -> None:
        self.world, self.stage_dir, self.store, self.members = world, stage_dir, store, tuple(members)
        self.own = self.members[world.rank]
        self.local_peers = [
            member
            for member in self.members
            if member.host == self.own.host and member.agent_pid == self.own.agent_pid and member != self.own
        ]
        first_and_last = {0, world.size - 1}
        watched_ranks = range(world.size) if world.rank in first_and_last else first_and_last
        self.heartbeats = {rank: Heartbeat() for rank in watched_ranks if rank != world.rank}
        self.stopped_since: dict[int, float] = {}  # by rank
        self.fault: str | None = None
        self.exit_code = FAULT
        self.fault_known, self.closed = threading.Event(), threading.Event()
        self.heartbeat_count, self.last_check = 0, time.monotonic()
        self.send_heartbeat()
        self.thread = threading.Thread(target=self._run, name="fledgling-watchdog", daemon=True)

    # ---- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self.closed.wait(HEARTBEAT_INTERVAL):
            try:
                self.send_heartbeat()
                self.check_ranks(time.monotonic())
            except Exception as error:
                if self.closed.is_set():
                    return
                description = f"lost the store that the ranks share: {_first_line(error)}"
                self.report_fault(self.own, description, store_reachable=False)
            if self.fault is not None:
                self.fault_known.set()
                break
        else:
            return
        self.closed.wait(EXIT_GRACE)
        if not self.closed.is_set():
            self._kill_faulty_rank()
            os._exit(self.exit_code)

    def send_heartbeat(self) -> None:
        """Writes to the store that this process runs, and the progress of its main thread."""
        self.heartbeat_count += 1
        progress = self.world.progress
        payload = f"{self.heartbeat_count} {progress.collectives} {int(progress.in_step)}"
        self.store.set(f"beat/{self.own.rank}", payload)

    def check_ranks(self, now: float) -> None:
        """Reads a fault that another rank reported, or detects one. now: `time.monotonic` seconds."""
        if now - self.last_check > 6 * HEARTBEAT_INTERVAL:  # this process was suspended, what it last read is old
            self.stopped_since.clear()
            for heartbeat in self.heartbeats.values():
                heartbeat.received_at = heartbeat.progressed_at = now
        self.last_check = now
        if self.store.check(["fault"]):
            self._read_fault()
            return
        if os.getppid() != self.own.agent_pid:
            self.report_fault(self.own, "has lost the launcher that started it")
            return
        self._check_local_peers(now)
        if self.fault is None:
            self._check_heartbeats(now)

    def _check_local_peers(self, now: float) -> None:
        for member in self.local_peers:
            state = read_process_state(member.pid)
            if state is None or (member.start_time and state[1] and state[1] != member.start_time):
                if not self._has_signed_off(member.rank):
                    self.report_fault(member, "ended without an error: killed (out of memory?) or crashed")
                    return
            elif state[0] != "T":
                self.stopped_since.pop(member.rank, None)
            elif now - self.stopped_since.setdefault(member.rank, now) >= STOPPED_TIMEOUT:
                self.report_fault(member, f"is stopped (SIGSTOP) for {STOPPED_TIMEOUT:.0f} s and will be killed")
                return

    def _check_heartbeats(self, now: float) -> None:
        ranks = list(self.heartbeats)
        for rank, payload in zip(ranks, self.store.multi_get([f"beat/{rank}" for rank in ranks]), strict=True):
            heartbeat = self.heartbeats[rank]
            if payload != heartbeat.payload:
                _, collectives, in_step = map(int, payload.split())
                if (collectives, bool(in_step)) != (heartbeat.collectives, heartbeat.in_step):
                    heartbeat.progressed_at, heartbeat.collectives, heartbeat.in_step = now, collectives, bool(in_step)
                heartbeat.payload, heartbeat.received_at = payload, now
        silent = {rank for rank, heartbeat in self.heartbeats.items() if now - heartbeat.received_at > SILENT_TIMEOUT}
        for rank in sorted(silent):
            member = self.members[rank]
            same_agent = {m.rank for m in self.members if (m.host, m.agent_pid) == (member.host, member.agent_pid)}
            if same_agent & self.heartbeats.keys() <= silent and member not in self.local_peers:
                if not self._has_signed_off(rank):
                    self.report_fault(
                        member,
                        f"and all ranks of its launcher are silent for {SILENT_TIMEOUT:.0f} s: machine or network lost",
                    )
                return
        if len(self.heartbeats) == self.world.size - 1:
            self._check_for_deadlock(now)

    def _check_for_deadlock(self, now: float) -> None:
        progress = self.world.progress
        limit = max(STUCK_TIMEOUT, STUCK_STEP_FACTOR * progress.longest_step)
        heartbeats = self.heartbeats.values()
        if not progress.in_step or not all(one.in_step and now - one.progressed_at > limit for one in heartbeats):
            return
        counts = {self.own.rank: progress.collectives}
        counts |= {rank: heartbeat.collectives for rank, heartbeat in self.heartbeats.items()}
        behind = [rank for rank, count in sorted(counts.items()) if count == min(counts.values())]
        member = self.members[behind[0]]
        if len(behind) == len(counts):
            self.report_fault(member, f"and all others hang in the same collective for {limit:.0f} s")
            return
        others = f" (as rank {', '.join(map(str, behind[1:]))})" if behind[1:] else ""
        self.report_fault(member, f"hangs inside a step for {limit:.0f} s{others}; the others wait")

    # ---- reporting -----------------------------------------------------------------------------------

    def _has_signed_off(self, rank: int) -> bool:
        return self.store.check([f"left/{rank}"])

    def _read_fault(self) -> None:
        report = json.loads(self.store.get("fault"))
        self.fault, self.exit_code = report["text"], report["code"]

    def report_fault(
        self, member: RankProcess, description: str, store_reachable: bool = True, exit_code: int = FAULT
    ) -> None:
        """Reports a fault of `member` once for all ranks; takes over the report of another rank that was first.

        store_reachable: whether the report can be shared. exit_code: with which the other ranks exit; FAILED for a
        user's mistake, which is printed elsewhere.
        """
        text = f"{member} {description}"
        report = json.dumps({"text": text, "code": exit_code, "reported_by": self.own.rank, **asdict(member)})
        with suppress(Exception):
            if store_reachable and self.store.compare_set("fault", "", report).decode() != report:
                self._read_fault()
                return
        self.fault, self.exit_code = text, exit_code
        if exit_code != FAULT:
            return
        sys.stderr.write(f"fault: {self.fault}\n")  # one write, so that lines of several ranks do not mix
        sys.stderr.flush()
        with suppress(UserError):
            JsonlWriter(self.stage_dir / "notices.jsonl").append({"step": None, "text": self.fault})

    def _kill_faulty_rank(self) -> None:
        """Kills the named rank where it cannot exit by itself, so that its launcher need not wait for it."""
        with suppress(Exception):
            member = self.members[json.loads(self.store.get("fault"))["rank"]]
            state = read_process_state(member.pid)
            if member in self.local_peers and state and state[1] == member.start_time:
                os.kill(member.pid, signal.SIGKILL)

    def is_other_ranks_fault(self, error: BaseException) -> bool:
        """Returns whether `error` of the main thread is caused by another rank; if not, reports it as this rank's.

        A collective fails when a partner is gone; then the watchdog gets the time to detect which one.
        """
        innermost = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
        places = ("fledgling/runtime/world.py", "torch/distributed/")
        in_collective = any(place in name for name in innermost for place in places) and isinstance(error, RuntimeError)
        if self.fault_known.wait(SILENT_TIMEOUT + 4 * HEARTBEAT_INTERVAL if in_collective else 0):
            return True
        self.report_fault(self.own, f"raised {type(error).__name__}: {_first_line(error)}")
        return False

    def close(self) -> None:
        """Signs off, so that the end of this process is no fault, and stops the thread."""
        self.closed.set()
        with suppress(Exception):
            self.store.set(f"left/{self.own.rank}", "1")
        self.thread.join(timeout=5)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


@contextmanager
def _delay_signals() -> Iterator[None]:
    """Makes a stop signal end the process only after SIGNAL_DELAY.

    A launcher that has lost one rank signals the others within .1 s, before they can report which one.
    """

    def exit_later(number: int, frame: Any) -> None:
        time.sleep(SIGNAL_DELAY)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handlers = {number: signal.signal(number, exit_later) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def _attribute_errors(watchdog: Watchdog, collective_exceptions: tuple[type[Exception], ...]) -> Iterator[None]:
    """Reports an error of the block as this rank's fault, or turns it into the exit code of another rank's fault."""
    try:
        yield
        watchdog.world.barrier()
    except collective_exceptions:
        raise
    except UserError:
        watchdog.report_fault(watchdog.own, "has reported a user's mistake", exit_code=FAILED)
        raise
    except Exception as error:
        if watchdog.is_other_ranks_fault(error):
            time.sleep(2 * EXIT_GRACE)  # the thread ends the process
            raise SystemExit(watchdog.exit_code) from None
        raise


@contextmanager
def run_watchdog(
    world: World, stage_dir: Path, collective_exceptions: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Runs a watchdog on every rank during the block; with one rank there is nothing to watch. Collective.

    collective_exceptions: raised by all ranks together, so they are no fault. A fault of another rank ends the process
    with exit code FAULT. An error of this rank is reported to the others and propagates; after a UserError the others
    exit with FAILED.
    """
    if world.size == 1:
        yield
        return
    own_state = read_process_state(os.getpid()) or ("", "")
    own_identity = (socket.gethostname(), os.getpid(), os.getppid(), own_state[1], secrets.token_hex(8))
    identities = world.all_gather_object(own_identity)
    members = [RankProcess(rank, *identity[:4]) for rank, identity in enumerate(identities)]
    store = open_store(f"watch/{identities[0][4]}", timedelta(seconds=SILENT_TIMEOUT / 2))
    watchdog = Watchdog(world, stage_dir, store, members)
    world.barrier()  # the first heartbeat of every rank is in the store
    watchdog.thread.start()
    try:
        # _delay_signals is outermost: signals are held back until the cause of an error is known.
        with _delay_signals(), _attribute_errors(watchdog, collective_exceptions):
            yield
    finally:
        watchdog.close()
