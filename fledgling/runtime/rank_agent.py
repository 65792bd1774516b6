"""torchrun's agent, which reports restarts, restarts only where that may help, and kills a rank that is stopped."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import ClassVar

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SubprocessContext

from fledgling.runtime.exit_codes import NO_RESTART_CODES
from fledgling.runtime.watchdog import read_process_state

STOPPED_RANK_TIMEOUT = 12.0  # seconds in state T before a rank is killed; the watchdog is quicker


class RankAgent(LocalElasticAgent):
    """torchrun's agent; reports restarts, and restarts only where that may help."""

    stopped_since: ClassVar[dict[int, float]] = {}  # by pid

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        for pid in self._pcontext.pids().values() if self._pcontext else ():
            self._kill_if_stopped(pid, time.monotonic())
        result = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            first = min(result.failures.values(), key=lambda failure: failure.timestamp)
            if any(failure.exitcode in NO_RESTART_CODES for failure in result.failures.values()):
                self._remaining_restarts = 0
            elif first.exitcode < 0:
                name = signal.Signals(-first.exitcode).name
                _log(f"a process of this machine ({socket.gethostname()}, pid {first.pid}) was ended by {name}")
            if self._remaining_restarts:
                restarts = worker_group.spec.max_restarts
                _log(f"restart {restarts - self._remaining_restarts + 1} of {restarts}, from the last checkpoint")
        return result

    def _kill_if_stopped(self, pid: int, now: float) -> None:
        """Kills a stopped rank that no other rank of this machine kills: it would not see a signal to exit."""
        if (read_process_state(pid) or ("", ""))[0] != "T":
            self.stopped_since.pop(pid, None)
        elif now - self.stopped_since.setdefault(pid, now) > STOPPED_RANK_TIMEOUT:
            _log(f"a rank of this machine ({socket.gethostname()}, pid {pid}) is stopped (SIGSTOP) and killed")
            os.kill(pid, signal.SIGKILL)

    def rank_exit_codes(self) -> list[int | None]:
        """Returns the exit codes of this machine's ranks; None for a rank that still runs."""
        processes = self._pcontext
        handlers = processes.subprocess_handlers.values() if isinstance(processes, SubprocessContext) else ()
        return [handler.proc.poll() for handler in handlers]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
