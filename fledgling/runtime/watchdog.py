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
from fledgling.record.lines import Lines
from fledgling.runtime.exit_codes import FAILED, FAULT
from fledgling.runtime.signals import SIGNALS
from fledgling.runtime.world import World, own_store

TICK = 0.5  # seconds between beats
STOPPED = 5.0  # seconds in state T before a rank is given up
SILENT = 20.0  # seconds without a beat of a whole agent
STUCK = 300.0  # seconds without an exchange inside steps, at least
SLOWER = 20  # times the longest step so far, where that is more
GRACE = 1.0  # seconds for what the main thread still says, before the process ends
LINGER = 2.0  # seconds that a process stays after an agent's signal, so that it can say who was lost


@dataclass(frozen=True)
class Member:
    """A rank as a process."""

    rank: int
    host: str
    pid: int
    agent: int  # pid of who started it
    born: str = ""  # the kernel's start time, so that a pid used again is another process

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass
class Beat:
    """What was last seen of a rank."""

    text: bytes = b""
    changed: float = 0.0  # of the beat
    moved: float = 0.0  # of its exchanges
    exchanges: int = -1
    within: bool = False


def process(pid: int) -> tuple[str, str] | None:
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


class Watch:
    """The thread of one rank. `fault` is what it came to know: who, and what happened."""

    def __init__(self, world: World, stage_dir: Path, store: Any, members: Sequence[Member]) -> None:
        self.world, self.stage_dir, self.store, self.members = world, stage_dir, store, tuple(members)
        self.own = self.members[world.rank]
        self.near = [m for m in self.members if m.host == self.own.host and m.agent == self.own.agent and m != self.own]
        ends = {0, world.size - 1}
        judged = range(world.size) if world.rank in ends else ends
        self.beats = {rank: Beat() for rank in judged if rank != world.rank}
        self.stopped: dict[int, float] = {}  # since when
        self.fault: str | None = None
        self.code = FAULT
        self.known, self.over = threading.Event(), threading.Event()
        self.number, self.last = 0, time.monotonic()
        self.beat()
        self.thread = threading.Thread(target=self._run, name="fledgling-watch", daemon=True)

    # ---- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self.over.wait(TICK):
            try:
                self.beat()
                self.look(time.monotonic())
            except Exception as problem:
                if self.over.is_set():
                    return
                self.tell(self.own, f"lost the store that the ranks share: {_first_line(problem)}", shared=False)
            if self.fault is not None:
                self.known.set()
                break
        else:
            return
        self.over.wait(GRACE)
        if not self.over.is_set():
            self._end_the_named()
            os._exit(self.code)

    def beat(self) -> None:
        """Say that this process runs, how many exchanges its main thread has begun, and whether within a step."""
        self.number += 1
        pulse = self.world.pulse
        self.store.set(f"beat/{self.own.rank}", f"{self.number} {pulse.exchanges} {int(pulse.within)}")

    def look(self, now: float) -> None:
        """Learn of a fault, or find one."""
        if now - self.last > 6 * TICK:  # this process itself stood still: what it last saw is old
            self.stopped.clear()
            for beat in self.beats.values():
                beat.changed = beat.moved = now
        self.last = now
        if self.store.check(["fault"]):
            self._learn()
            return
        if os.getppid() != self.own.agent:
            self.tell(self.own, "has lost the agent that started it")
            return
        self._look_near(now)
        if self.fault is None:
            self._look_far(now)

    def _look_near(self, now: float) -> None:
        for member in self.near:
            found = process(member.pid)
            if found is None or (member.born and found[1] and found[1] != member.born):
                if not self.store.check([f"left/{member.rank}"]):
                    self.tell(member, "is gone without a word: killed (out of memory?) or crashed")
                    return
            elif found[0] != "T":
                self.stopped.pop(member.rank, None)
            elif now - self.stopped.setdefault(member.rank, now) >= STOPPED:
                self.tell(member, f"is stopped (SIGSTOP) for {STOPPED:.0f} s and will be killed")
                return

    def _look_far(self, now: float) -> None:
        ranks = list(self.beats)
        for rank, text in zip(ranks, self.store.multi_get([f"beat/{rank}" for rank in ranks]), strict=True):
            beat = self.beats[rank]
            if text != beat.text:
                _, exchanges, within = map(int, text.split())
                if (exchanges, bool(within)) != (beat.exchanges, beat.within):
                    beat.moved, beat.exchanges, beat.within = now, exchanges, bool(within)
                beat.text, beat.changed = text, now
        silent = {rank for rank, beat in self.beats.items() if now - beat.changed > SILENT}
        for rank in sorted(silent):
            member = self.members[rank]
            beside = {m.rank for m in self.members if (m.host, m.agent) == (member.host, member.agent)}
            if beside & self.beats.keys() <= silent and member not in self.near:
                if not self.store.check([f"left/{rank}"]):
                    self.tell(member, f"and all ranks beside it are silent for {SILENT:.0f} s: machine or network lost")
                return
        if len(self.beats) == self.world.size - 1:
            self._look_for_standstill(now)

    def _look_for_standstill(self, now: float) -> None:
        pulse, limit = self.world.pulse, max(STUCK, SLOWER * self.world.pulse.longest)
        beats = self.beats.values()
        if not pulse.within or not all(beat.within and now - beat.moved > limit for beat in beats):
            return
        counts = {self.own.rank: pulse.exchanges} | {rank: beat.exchanges for rank, beat in self.beats.items()}
        behind = [rank for rank, count in sorted(counts.items()) if count == min(counts.values())]
        if len(behind) == len(counts):
            self.tell(self.members[behind[0]], f"and all others stand still in the same exchange for {limit:.0f} s")
            return
        others = f" (as rank {', '.join(map(str, behind[1:]))})" if behind[1:] else ""
        self.tell(self.members[behind[0]], f"stands still within a step for {limit:.0f} s{others}; the others wait")

    # ---- naming --------------------------------------------------------------------------------------

    def _learn(self) -> None:
        told = json.loads(self.store.get("fault"))
        self.fault, self.code = told["text"], told["code"]

    def tell(self, member: Member, what: str, shared: bool = True, code: int = FAULT) -> None:
        """Make a fault known: the first to do so writes it down, all others take over what the first said.

        shared: the store can be reached; code: with which the others leave (a mistake that was told elsewhere: FAILED).
        """
        text = f"{member} {what}"
        own = json.dumps({"text": text, "code": code, "told by": self.own.rank, **asdict(member)})
        with suppress(Exception):
            if shared and self.store.compare_set("fault", "", own).decode() != own:
                self._learn()
                return
        self.fault, self.code = text, code
        if code != FAULT:
            return
        sys.stderr.write(f"fault: {self.fault}\n")  # in one piece
        sys.stderr.flush()
        with suppress(UserError):
            Lines(self.stage_dir / "notices.jsonl").append({"step": None, "text": self.fault})

    def _end_the_named(self) -> None:
        """Kill the rank that was named where it cannot leave by itself, so that its agent need not wait for it."""
        with suppress(Exception):
            told = json.loads(self.store.get("fault"))
            named = self.members[told["rank"]]
            if named in self.near and (found := process(named.pid)) and found[1] == named.born:
                os.kill(named.pid, signal.SIGKILL)

    def explain(self, error: BaseException) -> bool:
        """Whether an error of the main thread is another rank's fault; if it is not, it becomes known as this rank's.

        An exchange fails when a partner is gone: then the watch is given the time to find out who.
        """
        last = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
        within = any(place in name for name in last for place in ("fledgling/runtime/world.py", "torch/distributed/"))
        exchange = within and isinstance(error, RuntimeError)
        if self.known.wait(SILENT + 4 * TICK if exchange else 0):
            return True
        self.tell(self.own, f"raised {type(error).__name__}: {_first_line(error)}")
        return False

    def close(self) -> None:
        """Leave without being missed."""
        self.over.set()
        with suppress(Exception):
            self.store.set(f"left/{self.own.rank}", "1")
        self.thread.join(timeout=5)


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).splitlines()), "")[:200]


@contextmanager
def _lingering() -> Iterator[None]:
    """Within it a signal ends the process only after LINGER.

    An agent that has lost one rank signals the others within .1 s, before they could say which.
    """

    def later(number: int, frame: Any) -> None:
        time.sleep(LINGER)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, later) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _explained(watch: Watch, ends: tuple[type[Exception], ...]) -> Iterator[None]:
    """Within it an error is this rank's fault, which the others are told, or becomes the exit code of another's."""
    try:
        yield
        watch.world.barrier()
    except ends:
        raise
    except UserError:
        watch.tell(watch.own, "has told what is wrong", code=FAILED)
        raise
    except Exception as error:
        if watch.explain(error):
            time.sleep(2 * GRACE)  # the thread ends the process
            raise SystemExit(watch.code) from None
        raise


@contextmanager
def watched(world: World, stage_dir: Path, ends: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Within it the ranks watch each other; one rank has nobody to watch.

    ends: exceptions that all ranks raise together. A fault of another rank ends the process with exit code FAULT; one
    of its own is told to the others and goes on up, and so does a UserError, after which the others leave with FAILED.
    """
    if world.size == 1:
        yield
        return
    own = process(os.getpid()) or ("", "")
    told = world.gather((socket.gethostname(), os.getpid(), os.getppid(), own[1], secrets.token_hex(8)))
    members = [Member(rank, *one[:4]) for rank, one in enumerate(told)]
    store = own_store(f"watch/{told[0][4]}", timedelta(seconds=SILENT / 2))
    watch = Watch(world, stage_dir, store, members)
    world.barrier()  # everybody's first beat is there
    watch.thread.start()
    try:
        with _lingering(), _explained(watch, ends):  # in this order: until it is known whose fault an error is
            yield
    finally:
        watch.close()
