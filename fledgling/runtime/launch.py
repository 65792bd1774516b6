"""Starts the ranks of this machine with torch.distributed.run's agent, and restarts them after a fault.

`--gpus N` is torchrun with two additions. Exit codes are kept (`exit_codes.py`): ranks that stopped on request, or that
met a user's mistake, are not restarted, and their code becomes the launcher's. Every restart is reported on stderr.
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
from fledgling.runtime.accelerator import count_devices
from fledgling.runtime.cores import count_cores
from fledgling.runtime.exit_codes import FAULT, NO_RESTART_CODES
from fledgling.runtime.watchdog import read_process_state
from fledgling.runtime.world import choose_device

DEFAULT_RESTARTS = 3
STOPPED_RANK_TIMEOUT = 12.0  # seconds in state T before the launcher kills a rank; the watchdog is quicker
SHUTDOWN_TIMEOUT = 600  # seconds for ranks to finish their step and save after a stop request


def launch_ranks(
    nproc_per_node: int,
    device: str,
    command: Sequence[str],
    restarts: int = 0,
    nodes: int = 1,
    rendezvous: str = "127.0.0.1:0",
) -> int:
    """Runs `python COMMAND` as `nproc_per_node` ranks of this machine and returns the exit code.

    Args:
        nproc_per_node: ranks on this machine; on GPUs at most as many as there are.
        device: as in [run].
        command: arguments of the Python interpreter.
        restarts: how often all ranks are restarted after a fault.
        nodes: machines that run this same call.
        rendezvous: HOST:PORT of one of the machines, where all meet.

    Returns: the exit code of the ranks, or FAULT where a signal ended one.
    Raises: UserError for counts that are out of range.
    """
    if nproc_per_node < 1:
        raise UserError(f"--gpus {nproc_per_node}: expected at least 1")
    if restarts < 0:
        raise UserError(f"--restarts {restarts}: expected at least 0")
    if nodes < 1 or (nodes > 1 and rendezvous.endswith(":0")):
        raise UserError(f"--nodes {nodes} --rendezvous {rendezvous}: expected HOST:PORT that all {nodes} nodes reach")
    kind = choose_device(device)
    if kind in ("cuda", "xpu") and nproc_per_node > count_devices(kind):
        raise UserError(f"--gpus {nproc_per_node}: this machine has {count_devices(kind)} GPUs; use at most that")
    if kind == "mps" and nproc_per_node > 1:
        raise UserError(f"--gpus {nproc_per_node}: Apple GPUs train with one rank; use --set run.device=cpu, or one")
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, SubprocessContext
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters, registry

    class Agent(LocalElasticAgent):
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

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks report their own errors
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // nproc_per_node)))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    parameters = RendezvousParameters("c10d", rendezvous, "fledgling", nodes, nodes, timeout=900)
    try:
        rendezvous_handler = registry.get_rendezvous_handler(parameters)
    except RendezvousError as error:
        raise UserError(
            f"--rendezvous {rendezvous}: no connection ({' '.join(str(error).split())[:120]}); expected HOST:PORT of "
            "one of the machines, which runs this same command"
        ) from None
    spec = WorkerSpec(
        role="default_role",
        local_world_size=nproc_per_node,
        entrypoint=sys.executable,
        args=tuple(command),
        rdzv_handler=rendezvous_handler,
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    agent = Agent(spec, DefaultLogsSpecs(), shutdown_timeout=SHUTDOWN_TIMEOUT)
    try:
        result = agent.run()
    except SignalException as stop:  # the agent has forwarded the signal to the ranks and waited for them
        codes = agent.rank_exit_codes()
        own_exits = [code for code in codes if code is not None and code >= 0]
        return _combine_exit_codes(own_exits) if codes and len(own_exits) == len(codes) else 128 + stop.sigval.value
    finally:
        spec.rdzv_handler.shutdown()
    return _combine_exit_codes([failure.exitcode for failure in result.failures.values()])


def _combine_exit_codes(codes: Sequence[int]) -> int:
    """Returns one exit code for those of the ranks: one of NO_RESTART_CODES first; a signal counts as FAULT."""
    failures = [FAULT if code < 0 else code for code in codes if code != 0]
    return next((code for code in failures if code in NO_RESTART_CODES), failures[0] if failures else 0)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
