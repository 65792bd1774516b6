"""Starts the ranks of this machine with torch.distributed.run's agent, and restarts them after a fault.

`--gpus N` is torchrun with two additions. Exit codes are kept (`exit_codes.py`): ranks that stopped on request, or that
met a user's mistake, are not restarted, and their code becomes the launcher's. Every restart is reported on stderr
(`rank_agent.py`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from fledgling.config import UserError
from fledgling.runtime.accelerator import count_devices
from fledgling.runtime.cores import count_cores
from fledgling.runtime.exit_codes import FAULT, NO_RESTART_CODES
from fledgling.runtime.world import choose_device

DEFAULT_RESTARTS = 3
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
    if restarts < 0:
        raise UserError(f"--restarts {restarts}: expected at least 0")
    if nodes < 1 or (nodes > 1 and rendezvous.endswith(":0")):
        raise UserError(f"--nodes {nodes} --rendezvous {rendezvous}: expected HOST:PORT that all {nodes} nodes reach")
    check_rank_count(nproc_per_node, choose_device(device))
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters, registry

    from fledgling.runtime.rank_agent import RankAgent

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
    agent = RankAgent(spec, DefaultLogsSpecs(), shutdown_timeout=SHUTDOWN_TIMEOUT)
    try:
        result = agent.run()
    except SignalException as stop:  # the agent has forwarded the signal to the ranks and waited for them
        codes = agent.rank_exit_codes()
        own_exits = [code for code in codes if code is not None and code >= 0]
        return _combine_exit_codes(own_exits) if codes and len(own_exits) == len(codes) else 128 + stop.sigval.value
    finally:
        spec.rdzv_handler.shutdown()
    return _combine_exit_codes([failure.exitcode for failure in result.failures.values()])


def check_rank_count(nproc_per_node: int, kind: str) -> None:
    """Raises UserError for a number of ranks that the devices of a type do not take."""
    if nproc_per_node < 1:
        raise UserError(f"--gpus {nproc_per_node}: expected at least 1")
    if kind in ("cuda", "xpu") and nproc_per_node > count_devices(kind):
        raise UserError(f"--gpus {nproc_per_node}: this machine has {count_devices(kind)} GPUs; use at most that")
    if kind == "mps" and nproc_per_node > 1:
        raise UserError(f"--gpus {nproc_per_node}: Apple GPUs train with one rank; use --set run.device=cpu, or one")


def _combine_exit_codes(codes: Sequence[int]) -> int:
    """Returns one exit code for those of the ranks: one of NO_RESTART_CODES first; a signal counts as FAULT."""
    failures = [FAULT if code < 0 else code for code in codes if code != 0]
    return next((code for code in failures if code in NO_RESTART_CODES), failures[0] if failures else 0)
