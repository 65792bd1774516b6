"""Starts one process for each rank on this machine, runs every topology on them, and always ends the processes.

The parent waits on the pipes of all ranks at once. A rank that ends for any reason closes its pipe; the parent then
names it and ends the others, which would otherwise wait forever. The ranks synchronize at a barrier of the operating
system, not of the measured library, so that nothing is sent through the counted sockets.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from fledgling.config import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.wire import GlooWire

TIMES = 8  # repetitions of passing or adding a chunk while the clock runs: one is shorter than the ranks' start skew
SETTLE = 0.02  # seconds until the sockets' counters are complete


@dataclass(frozen=True)
class Job:
    """The settings of every rank: ranks, values of its vector, servers to try, timed repeats, bytes of the pings."""

    ranks: int
    values: int
    servers: tuple[int, ...]
    repeats: int
    pings: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """One topology: prepares a vector, changes it, and selects the part that must be the sum."""

    prepare: Callable[[Tensor], None]
    run: Callable[[Tensor], object]
    part: Callable[[Tensor], Tensor]


def run_ranks(job: Job) -> list[dict[str, Any]]:
    """Runs `job` in one process for each rank. Returns the measurements of each; raises UserError if a rank fails."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
    barrier = context.Barrier(job.ranks)
    processes, receivers = [], []
    reported: dict[int, dict[str, Any]] = {}
    phase = "starting"
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(job.ranks):
                receiver, sender = context.Pipe(duplex=False)
                arguments = (rank, job, str(Path(folder) / "store"), sender, barrier)
                processes.append(context.Process(target=_run_rank, args=arguments, daemon=True))
                processes[-1].start()
                sender.close()  # then only the rank has the sending end, which closes when the rank ends
                receivers.append(receiver)
            while len(reported) < job.ranks:
                for ready in wait([receiver for rank, receiver in enumerate(receivers) if rank not in reported]):
                    rank = receivers.index(cast(Connection, ready))
                    kind, what = _receive(receivers[rank])
                    if kind == "at" and rank == 0:
                        phase = what
                        print(f"\r{phase:<40}", end="", file=sys.stderr, flush=True)
                    elif kind == "done":
                        reported[rank] = what
                    elif kind in ("died", "failed"):
                        dead = rank if kind == "died" else _find_killed(processes)
                        if dead is None:
                            raise UserError(f"rank {rank} of {job.ranks} failed at: {phase}: {what}")
                        processes[dead].join(5)
                        how = _describe_exit(processes[dead].exitcode)
                        raise UserError(
                            f"rank {dead} of {job.ranks} died ({how}) at: {phase}; try again, or fewer ranks"
                        )
        finally:
            print(file=sys.stderr)
            for process in processes:
                process.join(5 if len(reported) == job.ranks else 0)
                process.kill()
                process.join()
    return [reported[rank] for rank in range(job.ranks)]


def _receive(receiver: Connection) -> tuple[str, Any]:
    try:
        return receiver.recv()
    except (EOFError, OSError):
        return "died", None


def _find_killed(processes: Sequence[BaseProcess]) -> int | None:
    """Returns a rank that a signal has ended: the cause of another's error, which may be reported before its death."""
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        for rank, process in enumerate(processes):
            if process.exitcode is not None and process.exitcode < 0:
                return rank
        time.sleep(0.05)
    return None


def _describe_exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _run_rank(rank: int, job: Job, store: str, parent: Connection, barrier: Any) -> None:
    """Joins the process group, measures, and sends the result to the parent: the body of one process."""
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles an interrupt and ends this process
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, job.ranks), rank=rank, world_size=job.ranks)
        result = _measure_rank(job, lambda name: parent.send(("at", name)), barrier.wait)
        dist.destroy_process_group()
        parent.send(("done", result))
    except Exception as error:
        parent.send(("failed", " ".join(f"{type(error).__name__}: {error}".split())[:300]))


def _measure_rank(job: Job, log: Callable[[str], None], wait_barrier: Callable) -> dict[str, Any]:
    """Runs every topology once to count its bytes, then `repeats` times, each after a calibration, to time it."""
    import torch

    from benchmarks.wire import GlooWire

    wire = GlooWire()
    gradients = [make_gradients(rank, job.values) for rank in range(job.ranks)]
    own, total = gradients[wire.rank], torch.stack(gradients).sum(0)
    vector = torch.empty_like(own)
    programs, rows = make_programs(wire, job, own, total), {}
    for name, program in programs.items():
        log(f"{name}, bytes")
        rows[name] = {**_count_bytes(wire, program, vector, wait_barrier), "exact": True, "times": []}
    calibration: dict[str, list[Any]] = {"ping": [], "ring": [], "alone": []}
    for repeat in range(job.repeats):
        log(f"calibration, {repeat + 1} of {job.repeats}")
        for kind, seconds in _calibrate(wire, job, wait_barrier).items():
            calibration[kind].append(seconds)
        for name, program in programs.items():
            log(f"{name}, {repeat + 1} of {job.repeats}")
            program.prepare(vector)
            rows[name]["times"].append(_time_span(wait_barrier, partial(program.run, vector)))
            rows[name]["exact"] &= torch.equal(program.part(vector), program.part(total))
    return {**calibration, "rows": rows}


def _count_bytes(wire: GlooWire, program: Program, vector: Tensor, wait_barrier: Callable) -> dict[str, Any]:
    """Runs a topology with no other traffic, and returns the bytes of our send calls and those of the sockets."""
    from benchmarks.wire import socket_bytes

    wire.pop_counts()
    program.prepare(vector)
    wait_barrier()
    time.sleep(SETTLE)
    before = socket_bytes()
    wait_barrier()
    program.run(vector)
    wait_barrier()
    time.sleep(SETTLE)
    after = socket_bytes()
    carried = None if before is None or after is None else (after[0] - before[0], after[1] - before[1])
    return {"counted": wire.pop_counts(), "sockets": carried}


def _calibrate(wire: GlooWire, job: Job, wait_barrier: Callable) -> dict[str, Any]:
    """Returns the seconds of a ping of each size, and (start, end) of passing a chunk and of adding it on rank 0."""
    import torch

    from benchmarks.wire import ping, shift_along_ring

    def add() -> None:
        for _ in range(TIMES):
            target.add_(chunk)

    def send() -> None:
        for _ in range(TIMES):
            shift_along_ring(wire, chunk, target)

    pings = []
    for size in job.pings:
        wait_barrier()
        pings.append(min(ping(wire, size) for _ in range(3)))  # the first warms up
    chunk, target = torch.ones(job.values // job.ranks), torch.zeros(job.values // job.ranks)  # (n / p,)
    return {
        "ping": pings,
        "ring": _time_span(wait_barrier, send),
        "alone": _time_span(wait_barrier, add if wire.rank == 0 else lambda: None),
    }


def _time_span(wait_barrier: Callable, run: Callable[[], object]) -> tuple[float, float]:
    """Returns (start, end) of a call that all ranks start together, by the clock that all processes share."""
    wait_barrier()
    start = perf_counter()
    run()
    return start, perf_counter()


def make_gradients(rank: int, values: int) -> Tensor:
    """Returns a rank's vector (values,): whole numbers below 1,009, whose sums over ranks are exact in any order."""
    import torch

    return (torch.arange(values) * (2 * rank + 3) % 1009).float()


def make_programs(wire: GlooWire, job: Job, own: Tensor, total: Tensor) -> dict[str, Program]:
    """Returns every topology by name. own (n,): this rank's gradients; total (n,): their sum over all ranks."""
    import torch.distributed as dist

    from benchmarks import topologies

    def chunk(vector: Tensor) -> Tensor:
        return vector.view(job.ranks, -1)[wire.rank]

    def whole(vector: Tensor) -> Tensor:
        return vector

    def copy_own(vector: Tensor) -> None:
        vector.copy_(own)

    def copy_own_sum_chunk(vector: Tensor) -> None:
        """Fills the vector as a reduce-scatter does: with this rank's chunk of the sum, and zeros."""
        vector.zero_()
        chunk(vector).copy_(chunk(total))

    def reduce_scatter(vector: Tensor) -> None:
        dist.reduce_scatter(chunk(vector), list(vector.view(job.ranks, -1)))

    def all_gather(vector: Tensor) -> None:
        dist.all_gather(list(vector.view(job.ranks, -1)), chunk(vector).clone())

    def make_parameter_server(servers: int) -> Callable[[Tensor], None]:
        return lambda vector: topologies.parameter_server(wire, vector, servers)

    return {
        "ring all-reduce": Program(copy_own, lambda vector: topologies.ring_all_reduce(wire, vector), whole),
        "ring reduce-scatter": Program(copy_own, lambda vector: topologies.ring_reduce_scatter(wire, vector), chunk),
        "ring all-gather": Program(copy_own_sum_chunk, lambda vector: topologies.ring_all_gather(wire, vector), whole),
        "tree all-reduce": Program(copy_own, lambda vector: topologies.tree_all_reduce(wire, vector), whole),
        **{f"parameter server, {s}": Program(copy_own, make_parameter_server(s), whole) for s in job.servers},
        "library all_reduce": Program(copy_own, dist.all_reduce, whole),
        "library reduce_scatter": Program(copy_own, reduce_scatter, chunk),
        "library all_gather": Program(copy_own_sum_chunk, all_gather, whole),
    }
