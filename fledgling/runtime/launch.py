"""Start the ranks of this machine, and start them again after a fault: torch.distributed.run's own agent.

The one idea: `--gpus N` is torchrun with two things added. Exit codes mean something (`exits.py`): ranks that were
asked to stop, or that met a user's mistake, are not started again, and their code becomes ours. And every restart is
told on stderr.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import ClassVar

from fledgling.config import UserError
from fledgling.runtime.exit_codes import FAULT, NO_RESTART_CODES
from fledgling.runtime.watchdog import read_process_state
from fledgling.runtime.world import choose_device

DEFAULT_RESTARTS = 3  # of a run, where nothing else is said
STOPPED_RANK_TIMEOUT = 12.0  # seconds that a rank may be stopped; its neighbours are quicker (watch.py)
SHUTDOWN_TIMEOUT = 600  # seconds for ranks that were asked to stop to finish their step and save


def launch_ranks(
    nproc_per_node: int,
    device: str,
    command: Sequence[str],
    restarts: int = 0,
    nodes: int = 1,
    rendezvous: str = "127.0.0.1:0",
) -> int:
    """Run `python COMMAND` as `count` ranks of this machine; the exit code: theirs, or FAULT for a signal's.

    device: as in [run]; restarts: how often all ranks are started again after a fault; nodes: machines that run this
    same call, each with `count` ranks, meeting at `rendezvous` (HOST:PORT of one of them).
    Raises UserError for a count below 1 or above the GPUs there are; on a CPU any count will do.
    """
    if nproc_per_node < 1:
        raise UserError(f"--gpus {nproc_per_node}: expected at least 1")
    if restarts < 0:
        raise UserError(f"--restarts {restarts}: expected at least 0")
    if nodes < 1 or (nodes > 1 and rendezvous.endswith(":0")):
        raise UserError(f"--nodes {nodes} --rendezvous {rendezvous}: expected HOST:PORT that all {nodes} nodes reach")
    kind = choose_device(device)
    import torch

    if kind == "cuda" and nproc_per_node > torch.cuda.device_count():
        raise UserError(
            f"--gpus {nproc_per_node}: this machine has {torch.cuda.device_count()}; ask for at most so many"
        )
    if kind == "mps" and nproc_per_node > 1:
        raise UserError(f"--gpus {nproc_per_node}: Apple GPUs train alone; use --set run.device=cpu, or one")
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

    class Agent(LocalElasticAgent):
        """torchrun's, which says that it starts again, and does so only where that may help."""

        since: ClassVar[dict[int, float]] = {}  # pid: stopped

        def _monitor_workers(self, group: WorkerGroup) -> RunResult:
            for pid in self._pcontext.pids().values():
                self._end_stopped(pid, time.monotonic())
            result = super()._monitor_workers(group)
            if result.state is WorkerState.FAILED:
                first = min(result.failures.values(), key=lambda failure: failure.timestamp)
                if any(failure.exitcode in NO_RESTART_CODES for failure in result.failures.values()):
                    self._remaining_restarts = 0
                elif first.exitcode < 0:
                    name = signal.Signals(-first.exitcode).name
                    _log(f"a process of this machine ({socket.gethostname()}, pid {first.pid}) was ended by {name}")
                if self._remaining_restarts:
                    _log(f"restart {restarts - self._remaining_restarts + 1} of {restarts}, from the last checkpoint")
            return result

        def _end_stopped(self, pid: int, now: float) -> None:
            """Kill a rank that is stopped and has no neighbour to do so: it would not hear that it is to leave."""
            if (read_process_state(pid) or ("", ""))[0] != "T":
                self.since.pop(pid, None)
            elif now - self.since.setdefault(pid, now) > STOPPED_RANK_TIMEOUT:
                _log(f"a rank of this machine ({socket.gethostname()}, pid {pid}) is stopped (SIGSTOP) and killed")
                os.kill(pid, signal.SIGKILL)

        def codes(self) -> list[int | None]:
            """The exit codes of this machine's ranks, once they are told to leave."""
            handlers = self._pcontext.subprocess_handlers.values() if self._pcontext else ()
            return [handler.proc.poll() for handler in handlers]

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc_per_node)))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    meeting = RendezvousParameters("c10d", rendezvous, "fledgling", nodes, nodes, timeout=900)
    spec = WorkerSpec(
        role="default_role",
        local_world_size=nproc_per_node,
        entrypoint=sys.executable,
        args=tuple(command),
        rdzv_handler=registry.get_rendezvous_handler(meeting),
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    agent = Agent(spec, DefaultLogsSpecs(), shutdown_timeout=SHUTDOWN_TIMEOUT)
    try:
        result = agent.run()
    except SignalException as stopped:  # the agent has handed it on to the ranks and waited for them
        codes = agent.codes()
        left = [code for code in codes if code is not None and code >= 0]
        return _combine_exit_codes(codes) if codes and len(left) == len(codes) else 128 + stopped.sigval.value
    finally:
        spec.rdzv_handler.shutdown()
    return _combine_exit_codes([failure.exitcode for failure in result.failures.values()])


def _combine_exit_codes(codes: Sequence[int]) -> int:
    """One exit code out of those of the ranks: a code that is final before FAULT, a signal's death counts as FAULT."""
    meant = [FAULT if code < 0 else code for code in codes if code != 0]
    return next((code for code in meant if code in NO_RESTART_CODES), meant[0] if meant else 0)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
