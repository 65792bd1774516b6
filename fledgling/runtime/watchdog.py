"""Ranks that watch each other: one that dies, stops or stands still is named, and all leave together.

The one idea: every rank has a thread that beats into the group's store, and a beat says what the main thread has done:
how many exchanges it has begun, and whether it is inside a step. What is judged, and by whom:

    gone       a process of the same agent that is no more, and said no word    its neighbours     .5 s
    stopped    a process of the same agent in the kernel's state T              its neighbours     STOPPED
    silent     no beat of any rank of an agent: machine or network lost         first, last rank   SILENT
    stuck      inside steps, and no rank begins an exchange: a deadlock; the    first, last rank   STUCK, or 20 of the
               ranks that are behind the others are named                                          longest steps so far
    raised     says so itself                                                                      at once

So a long pause (data being prepared, an evaluation, compiling) is no fault: the thread goes on beating, and only steps
are timed. The first who knows writes it into the store, to stderr and into the run's notices; the others read it. A
watcher that was itself stopped (a suspended job) begins anew. Who starts the ranks again is their agent
(`launch.py`, torchrun): the exit code is FAULT.
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
from fledgling.runtime.signals import STOP_SIGNALS
from fledgling.runtime.world import World, open_store

HEARTBEAT_INTERVAL = 0.5  # seconds between beats
STOPPED_TIMEOUT = 5.0  # seconds in state T before a rank is given up
SILENT_TIMEOUT = 20.0  # seconds without a beat of a whole agent
STUCK_TIMEOUT = 300.0  # seconds without an exchange inside steps, at least
STUCK_STEP_FACTOR = 20  # times the longest step so far, where that is more
EXIT_GRACE = 1.0  # seconds for what the main thread still says, before the process ends
SIGNAL_DELAY = 2.0  # seconds that a process stays after an agent's signal, so that it can say who was lost


@dataclass(frozen=True)
class RankProcess:
    """A rank as a process."""

    rank: int
    host: str
    pid: int
    agent_pid: int  # pid of who started it
    start_time: str = ""  # the kernel's start time, so that a pid used again is another process

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass
class Heartbeat:
    """What was last seen of a rank."""

    payload: bytes = b""
    received_at: float = 0.0  # of the beat
    progressed_at: float = 0.0  # of its exchanges
    collectives: int = -1
    in_step: bool = False


def read_process_state(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process; None when it is gone, ("?", "") where the system does not say."""
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
    """The thread of one rank. `fault` is what it came to know: who, and what happened."""

    def __init__(self, world: World, stage_dir: Path, store: Any, members: Sequence[RankProcess]) -> None:
        self.world, self.stage_dir, self.store, self.members = world, stage_dir, store, tuple(members)
        self.own = self.members[world.rank]
        self.local_peers = [
            m for m in self.members if m.host == self.own.host and m.agent_pid == self.own.agent_pid and m != self.own
        ]
        ends = {0, world.size - 1}
        judged = range(world.size) if world.rank in ends else ends
        self.heartbeats = {rank: Heartbeat() for rank in judged if rank != world.rank}
        self.stopped_since: dict[int, float] = {}  # since when
        self.fault: str | None = None
        self.exit_code = FAULT
        self.fault_known, self.closed = threading.Event(), threading.Event()
        self.heartbeat_count, self.last_check = 0, time.monotonic()
        self.send_heartbeat()
        self.thread = threading.Thread(target=self._run, name="fledgling-watch", daemon=True)

    # ---- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self.closed.wait(HEARTBEAT_INTERVAL):
            try:
                self.send_heartbeat()
                self.check_ranks(time.monotonic())
            except Exception as problem:
                if self.closed.is_set():
                    return
                self.report_fault(
                    self.own, f"lost the store that the ranks share: {_first_line(problem)}", store_reachable=False
                )
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
        """Say that this process runs, how many exchanges its main thread has begun, and whether within a step."""
        self.heartbeat_count += 1
        pulse = self.world.progress
        self.store.set(f"beat/{self.own.rank}", f"{self.heartbeat_count} {pulse.collectives} {int(pulse.in_step)}")

    def check_ranks(self, now: float) -> None:
        """Learn of a fault, or find one."""
        if now - self.last_check > 6 * HEARTBEAT_INTERVAL:  # this process itself stood still: what it last saw is old
            self.stopped_since.clear()
            for beat in self.heartbeats.values():
                beat.received_at = beat.progressed_at = now
        self.last_check = now
        if self.store.check(["fault"]):
            self._read_fault()
            return
        if os.getppid() != self.own.agent_pid:
            self.report_fault(self.own, "has lost the agent that started it")
            return
        self._check_local_peers(now)
        if self.fault is None:
            self._check_heartbeats(now)

    def _check_local_peers(self, now: float) -> None:
        for member in self.local_peers:
            found = read_process_state(member.pid)
            if found is None or (member.start_time and found[1] and found[1] != member.start_time):
                if not self.store.check([f"left/{member.rank}"]):
                    self.report_fault(member, "is gone without a word: killed (out of memory?) or crashed")
                    return
            elif found[0] != "T":
                self.stopped_since.pop(member.rank, None)
            elif now - self.stopped_since.setdefault(member.rank, now) >= STOPPED_TIMEOUT:
                self.report_fault(member, f"is stopped (SIGSTOP) for {STOPPED_TIMEOUT:.0f} s and will be killed")
                return

    def _check_heartbeats(self, now: float) -> None:
        ranks = list(self.heartbeats)
        for rank, text in zip(ranks, self.store.multi_get([f"beat/{rank}" for rank in ranks]), strict=True):
            beat = self.heartbeats[rank]
            if text != beat.payload:
                _, exchanges, within = map(int, text.split())
                if (exchanges, bool(within)) != (beat.collectives, beat.in_step):
                    beat.progressed_at, beat.collectives, beat.in_step = now, exchanges, bool(within)
                beat.payload, beat.received_at = text, now
        silent = {rank for rank, beat in self.heartbeats.items() if now - beat.received_at > SILENT_TIMEOUT}
        for rank in sorted(silent):
            member = self.members[rank]
            beside = {m.rank for m in self.members if (m.host, m.agent_pid) == (member.host, member.agent_pid)}
            if beside & self.heartbeats.keys() <= silent and member not in self.local_peers:
                if not self.store.check([f"left/{rank}"]):
                    self.report_fault(
                        member,
                        f"and all ranks beside it are silent for {SILENT_TIMEOUT:.0f} s: machine or network lost",
                    )
                return
        if len(self.heartbeats) == self.world.size - 1:
            self._check_for_deadlock(now)

    def _check_for_deadlock(self, now: float) -> None:
        pulse, limit = self.world.progress, max(STUCK_TIMEOUT, STUCK_STEP_FACTOR * self.world.progress.longest_step)
        beats = self.heartbeats.values()
        if not pulse.in_step or not all(beat.in_step and now - beat.progressed_at > limit for beat in beats):
            return
        counts = {self.own.rank: pulse.collectives} | {rank: beat.collectives for rank, beat in self.heartbeats.items()}
        behind = [rank for rank, count in sorted(counts.items()) if count == min(counts.values())]
        if len(behind) == len(counts):
            self.report_fault(
                self.members[behind[0]], f"and all others stand still in the same exchange for {limit:.0f} s"
            )
            return
        others = f" (as rank {', '.join(map(str, behind[1:]))})" if behind[1:] else ""
        self.report_fault(
            self.members[behind[0]], f"stands still within a step for {limit:.0f} s{others}; the others wait"
        )

    # ---- naming --------------------------------------------------------------------------------------

    def _read_fault(self) -> None:
        told = json.loads(self.store.get("fault"))
        self.fault, self.exit_code = told["text"], told["code"]

    def report_fault(
        self, member: RankProcess, description: str, store_reachable: bool = True, exit_code: int = FAULT
    ) -> None:
        """Make a fault known: the first to do so writes it down, all others take over what the first said.

        shared: the store can be reached; code: with which the others leave (a mistake that was told elsewhere: FAILED).
        """
        text = f"{member} {description}"
        own = json.dumps({"text": text, "code": exit_code, "told by": self.own.rank, **asdict(member)})
        with suppress(Exception):
            if store_reachable and self.store.compare_set("fault", "", own).decode() != own:
                self._read_fault()
                return
        self.fault, self.exit_code = text, exit_code
        if exit_code != FAULT:
            return
        sys.stderr.write(f"fault: {self.fault}\n")  # in one piece
        sys.stderr.flush()
        with suppress(UserError):
            JsonlWriter(self.stage_dir / "notices.jsonl").append({"step": None, "text": self.fault})

    def _kill_faulty_rank(self) -> None:
        """Kill the rank that was named where it cannot leave by itself, so that its agent need not wait for it."""
        with suppress(Exception):
            told = json.loads(self.store.get("fault"))
            named = self.members[told["rank"]]
            if named in self.local_peers and (found := read_process_state(named.pid)) and found[1] == named.start_time:
                os.kill(named.pid, signal.SIGKILL)

    def is_other_ranks_fault(self, error: BaseException) -> bool:
        """Whether an error of the main thread is another rank's fault; if it is not, it becomes known as this rank's.

        An exchange fails when a partner is gone: then the watch is given the time to find out who.
        """
        last = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
        within = any(place in name for name in last for place in ("fledgling/runtime/world.py", "torch/distributed/"))
        exchange = within and isinstance(error, RuntimeError)
        if self.fault_known.wait(SILENT_TIMEOUT + 4 * HEARTBEAT_INTERVAL if exchange else 0):
            return True
        self.report_fault(self.own, f"raised {type(error).__name__}: {_first_line(error)}")
        return False

    def close(self) -> None:
        """Leave without being missed."""
        self.closed.set()
        with suppress(Exception):
            self.store.set(f"left/{self.own.rank}", "1")
        self.thread.join(timeout=5)


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).splitlines()), "")[:200]


@contextmanager
def _delay_signals() -> Iterator[None]:
    """Within it a signal ends the process only after LINGER.

    An agent that has lost one rank signals the others within .1 s, before they could say which.
    """

    def later(number: int, frame: Any) -> None:
        time.sleep(SIGNAL_DELAY)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, later) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _attribute_errors(watch: Watchdog, ends: tuple[type[Exception], ...]) -> Iterator[None]:
    """Within it an error is this rank's fault, which the others are told, or becomes the exit code of another's."""
    try:
        yield
        watch.world.barrier()
    except ends:
        raise
    except UserError:
        watch.report_fault(watch.own, "has told what is wrong", exit_code=FAILED)
        raise
    except Exception as error:
        if watch.is_other_ranks_fault(error):
            time.sleep(2 * EXIT_GRACE)  # the thread ends the process
            raise SystemExit(watch.exit_code) from None
        raise


@contextmanager
def run_watchdog(
    world: World, stage_dir: Path, collective_exceptions: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Within it the ranks watch each other; one rank has nobody to watch.

    ends: exceptions that all ranks raise together. A fault of another rank ends the process with exit code FAULT; one
    of its own is told to the others and goes on up, and so does a UserError, after which the others leave with FAILED.
    """
    if world.size == 1:
        yield
        return
    own = read_process_state(os.getpid()) or ("", "")
    told = world.all_gather_object((socket.gethostname(), os.getpid(), os.getppid(), own[1], secrets.token_hex(8)))
    members = [RankProcess(rank, *one[:4]) for rank, one in enumerate(told)]
    store = open_store(f"watch/{told[0][4]}", timedelta(seconds=SILENT_TIMEOUT / 2))
    watch = Watchdog(world, stage_dir, store, members)
    world.barrier()  # everybody's first beat is there
    watch.thread.start()
    try:
        with (
            _delay_signals(),
            _attribute_errors(watch, collective_exceptions),
        ):  # in this order: until it is known whose fault an error is
            yield
    finally:
        watch.close()
