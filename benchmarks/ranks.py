"""Starts one process for each rank on this machine, runs it through every topology and ends it in every case.

The parent waits for all ranks at once, on the pipes by which they report. A rank that dies closes its pipe, whatever
killed it; the parent names it and ends the others, which would otherwise wait forever. The ranks meet at a barrier of
the operating system, not of the measured library, so that meeting sends nothing through the counted sockets.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fledgling.config import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.wire import GlooWire

TIMES = 8  # that a chunk is passed or added while the clock runs: once is shorter than the ranks' start is uneven
SETTLE = 0.02  # seconds after which the sockets' counters have everything


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
    """One topology as the ranks run it: prepare a vector, change it, and look at the part that must be the sum."""

    prepare: Callable[[Tensor], None]
    run: Callable[[Tensor], object]
    part: Callable[[Tensor], Tensor]


def run_ranks(job: Job) -> list[dict[str, Any]]:
    """Run `job` in a process for each rank; return what each measured. Raises UserError for a rank that fails."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
    barrier = context.Barrier(job.ranks)
    processes, ends = [], []
    reported: dict[int, dict[str, Any]] = {}
    at = "starting"
    with tempfile.TemporaryDirectory() as place:
        try:
            for rank in range(job.ranks):
                here, there = context.Pipe(duplex=False)
                words = (rank, job, str(Path(place) / "store"), there, barrier)
                processes.append(context.Process(target=_rank, args=words, daemon=True))
                processes[-1].start()
                there.close()  # the rank's own end is then the only one, and closes when it dies
                ends.append(here)
            while len(reported) < job.ranks:
                for ready in wait([end for rank, end in enumerate(ends) if rank not in reported]):
                    rank = ends.index(ready)
                    kind, what = _hear(ready)
                    if kind == "at" and rank == 0:
                        at = what
                        print(f"\r{at:<40}", end="", file=sys.stderr, flush=True)
                    elif kind == "done":
                        reported[rank] = what
                    elif kind == "died":
                        processes[rank].join(5)
                        how = _ending(processes[rank].exitcode)
                        raise UserError(f"rank {rank} of {job.ranks} died ({how}) at: {at}; try again, or fewer ranks")
                    elif kind == "failed":
                        raise UserError(f"rank {rank} of {job.ranks} failed at: {at}: {what}")
        finally:
            print(file=sys.stderr)
            for process in processes:
                process.join(5 if len(reported) == job.ranks else 0)
                process.kill()
                process.join()
    return [reported[rank] for rank in range(job.ranks)]


def _hear(end: Connection) -> tuple[str, Any]:
    try:
        return end.recv()
    except (EOFError, OSError):
        return "died", None


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _rank(rank: int, job: Job, store: str, parent: Connection, barrier: Any) -> None:
    """The body of one process: join the group, measure, tell the parent."""
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interrupt, and ends this process
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, job.ranks), rank=rank, world_size=job.ranks)
        result = _measure(job, lambda name: parent.send(("at", name)), barrier.wait)
        dist.destroy_process_group()
        parent.send(("done", result))
    except Exception as error:
        parent.send(("failed", " ".join(f"{type(error).__name__}: {error}".split())[:300]))


def _measure(job: Job, say: Callable[[str], None], meet: Callable) -> dict[str, Any]:
    """Run every topology once to count its bytes, then `repeats` times, in turn with the calibration, to time it."""
    import torch

    from benchmarks.wire import GlooWire

    wire = GlooWire()
    own, total = gradients(wire.rank, job.values), sum(gradients(rank, job.values) for rank in range(job.ranks))
    vector = torch.empty_like(own)
    every, rows = programs(wire, job, own, total), {}
    for name, program in every.items():
        say(f"{name}, bytes")
        rows[name] = {**_count(wire, program, vector, meet), "exact": True, "times": []}
    calibration: dict[str, list[Any]] = {"ping": [], "around": [], "alone": []}
    for repeat in range(job.repeats):
        say(f"calibration, {repeat + 1} of {job.repeats}")
        for kind, seconds in _calibrate(wire, job, meet).items():
            calibration[kind].append(seconds)
        for name, program in every.items():
            say(f"{name}, {repeat + 1} of {job.repeats}")
            program.prepare(vector)
            rows[name]["times"].append(_span(meet, partial(program.run, vector)))
            rows[name]["exact"] &= torch.equal(program.part(vector), program.part(total))
    return {**calibration, "rows": rows}


def _count(wire: GlooWire, program: Program, vector: Tensor, meet: Callable) -> dict[str, Any]:
    """Run a topology in a quiet moment: what was sent by our calls, and what the sockets carried."""
    from benchmarks.wire import socket_bytes

    wire.counted()
    program.prepare(vector)
    meet()
    time.sleep(SETTLE)
    before = socket_bytes()
    meet()
    program.run(vector)
    meet()
    time.sleep(SETTLE)
    after = socket_bytes()
    carried = None if before is None or after is None else (after[0] - before[0], after[1] - before[1])
    return {"counted": wire.counted(), "sockets": carried}


def _calibrate(wire: GlooWire, job: Job, meet: Callable) -> dict[str, Any]:
    """Seconds of a ping of each size, and (began, ended) of passing a chunk around and of adding it on rank 0."""
    import torch

    from benchmarks.wire import pass_context, ping

    def add() -> None:
        for _ in range(TIMES):
            two.add_(one)

    def send() -> None:
        for _ in range(TIMES):
            pass_context(wire, one, two)

    pings = []
    for size in job.pings:
        meet()
        pings.append(min(ping(wire, size) for _ in range(3)))  # the first warms up
    one, two = torch.ones(job.values // job.ranks), torch.zeros(job.values // job.ranks)  # (n / p,)
    return {
        "ping": pings,
        "around": _span(meet, send),
        "alone": _span(meet, add if wire.rank == 0 else lambda: None),
    }


def _span(meet: Callable, do: Callable[[], object]) -> tuple[float, float]:
    """When this rank began and ended, all having begun together; the clock is the machine's, the same for all ranks."""
    meet()
    began = perf_counter()
    do()
    return began, perf_counter()


def gradients(rank: int, values: int) -> Tensor:
    """A rank's vector (values,): whole numbers below 1,009, whose sums over ranks are exact in any order."""
    import torch

    return (torch.arange(values) * (2 * rank + 3) % 1009).float()


def programs(wire: GlooWire, job: Job, own: Tensor, total: Tensor) -> dict[str, Program]:
    """Every topology by name. own (n,): this rank's gradients; total (n,): their sum over all ranks."""
    import torch.distributed as dist

    from benchmarks import topologies

    def chunk(vector: Tensor) -> Tensor:
        return vector.view(job.ranks, -1)[wire.rank]

    def whole(vector: Tensor) -> Tensor:
        return vector

    def bring(vector: Tensor) -> None:
        vector.copy_(own)

    def bring_sum(vector: Tensor) -> None:
        """What a reduce-scatter leaves: this rank's chunk of the sum, and nothing of the others'."""
        vector.zero_()
        chunk(vector).copy_(chunk(total))

    def reduce_scatter(vector: Tensor) -> None:
        dist.reduce_scatter(chunk(vector), list(vector.view(job.ranks, -1)))

    def all_gather(vector: Tensor) -> None:
        dist.all_gather(list(vector.view(job.ranks, -1)), chunk(vector).clone())

    def served(servers: int) -> Callable[[Tensor], None]:
        return lambda vector: topologies.parameter_server(wire, vector, servers)

    return {
        "ring all-reduce": Program(bring, lambda vector: topologies.ring_all_reduce(wire, vector), whole),
        "ring reduce-scatter": Program(bring, lambda vector: topologies.ring_reduce_scatter(wire, vector), chunk),
        "ring all-gather": Program(bring_sum, lambda vector: topologies.ring_all_gather(wire, vector), whole),
        "tree all-reduce": Program(bring, lambda vector: topologies.tree_all_reduce(wire, vector), whole),
        **{f"parameter server, {s}": Program(bring, served(s), whole) for s in job.servers},
        "library all_reduce": Program(bring, dist.all_reduce, whole),
        "library reduce_scatter": Program(bring, reduce_scatter, chunk),
        "library all_gather": Program(bring_sum, all_gather, whole),
    }
