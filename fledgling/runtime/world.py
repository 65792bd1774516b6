"""The ranks of a run and what they say to each other: sum, gather, barrier; reduce_scatter and all_gather, unwaited.

The one idea: a single process is a world of size 1 that takes the same path, so no caller asks whether it is
distributed. Whatever trains speaks to other ranks through this file alone, `fully_shard` too; only it reads the
variables torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK). `python -m benchmarks comm` measures the library itself.

What it is not: it decides nothing about shards. What travels, and when, is in `fledgling.optim.gradients`. Nor does it
notice that a rank is lost: that is `watch.py`; who starts ranks is `launch.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fledgling.config import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
COLLECTIVE_TIMEOUT = timedelta(
    hours=2
)  # a rank waits so long for another: the main one may prepare data or evaluate meanwhile
RENDEZVOUS_TIMEOUT = timedelta(minutes=15)  # for all ranks to have started


@dataclass(frozen=True)
class PendingCollective:
    """A collective under way: holds its buffers until `wait`, so that none is freed while others still read it."""

    result: Callable[[], torch.Tensor]
    works: Sequence[Any] = ()
    buffers: tuple = field(default=(), repr=False)

    def wait(self) -> torch.Tensor:
        """Return the result once it is there (on a GPU: once the stream that asks may read it)."""
        for work in self.works:
            work.wait()
        return self.result()


def pairwise_sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of equal-shaped tensors as a binary tree over neighbours, a new tensor; changes all parts but the last.

    ((0 + 1) + (2 + 3)) + ...: with powers of two, a tree of trees is the same tree, whoever sums which branch.
    """
    tensors = list(tensors)
    while len(tensors) > 2:
        pairs = zip(tensors[0::2], tensors[1::2], strict=False)
        odd = tensors[len(tensors) & ~1 :]
        tensors = [left.add_(right) for left, right in pairs] + odd
    return tensors[0] + tensors[1] if len(tensors) == 2 else tensors[0]


@dataclass
class Progress:
    """What a rank's main thread has done, for those who watch it: exchanges begun, and the steps' time."""

    collectives: int = 0
    in_step: bool = False  # a step; outside of one a rank may take as long as it wants
    longest_step: float = 0.0  # seconds of a step, the first two apart, which compile
    finished_steps: int = 0

    @contextmanager
    def track_step(self) -> Iterator[None]:
        """Within it is a step of training."""
        began, self.in_step = time.monotonic(), self.finished_steps >= 2
        try:
            yield
        finally:
            if self.in_step:
                self.longest_step = max(self.longest_step, time.monotonic() - began)
            self.in_step, self.finished_steps = False, self.finished_steps + 1


@dataclass(frozen=True)
class World:
    """One process's place among `size` processes, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    local_size: int = 1  # ranks on this machine
    progress: Progress = field(default_factory=Progress, repr=False, compare=False)

    @classmethod
    def start(cls, device: str = "auto") -> World:
        """Read torchrun's variables, choose the device and, when there is more than one rank, join the group.

        `device` is auto (cuda, then mps, then cpu), cpu, cuda or mps. Groups speak nccl on cuda, else gloo.
        Raises UserError for a device this machine lacks, or for variables that do not make sense together.
        """
        import torch
        import torch.distributed as dist

        rank, size, local_rank = (
            _int_from_env("RANK", 0),
            _int_from_env("WORLD_SIZE", 1),
            _int_from_env("LOCAL_RANK", 0),
        )
        local_size = _int_from_env("LOCAL_WORLD_SIZE", 1)
        if size < 1 or not 0 <= rank < size:
            raise UserError(f"RANK={rank} with WORLD_SIZE={size}: expected 0 <= RANK < WORLD_SIZE, as torchrun sets")
        kind = choose_device(device)
        if kind == "mps" and size > 1:
            raise UserError(f"{size} ranks on mps: Apple GPUs train alone; use --device cpu, or one rank")
        if kind == "cuda":
            gpus = torch.cuda.device_count()
            if local_rank >= gpus:
                raise UserError(f"LOCAL_RANK={local_rank}, but this machine shows {gpus} GPU(s): start fewer ranks")
            torch.cuda.set_device(local_rank)
        place = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        if size > 1 and not dist.is_initialized():
            backend, bound = ("nccl", place) if kind == "cuda" else ("gloo", None)
            store = rendezvous(rank, size)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT, device_id=bound
            )
        return cls(rank, size, local_rank, place, local_size)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the user."""
        return self.rank == 0

    def all_reduce(self, value: float | torch.Tensor) -> Any:
        """Return the sum of `value` over all ranks: a new tensor for a tensor, a float for a number.

        Numbers travel as float64, exact for whole numbers below 2^53 (token counts). Every rank must call it.
        """
        import torch

        tensor = isinstance(value, torch.Tensor)
        if self.size == 1:
            return value.clone() if tensor else float(value)
        import torch.distributed as dist

        self.progress.collectives += 1
        total = value.clone() if tensor else torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total if tensor else total.item()

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's `thing` (anything small that pickles), in order of rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        self.progress.collectives += 1
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, value)
        return things

    def all_to_all(self, chunks: torch.Tensor) -> PendingCollective:
        """Piece j of `sent` (size x chunk,) goes to rank j; in the result (size x chunk,) piece j is rank j's."""
        import torch

        if self.size == 1:
            return PendingCollective(lambda: chunks)
        import torch.distributed as dist

        received = torch.empty_like(chunks)
        return PendingCollective(lambda: received, [dist.all_to_all_single(received, chunks, async_op=True)], (chunks,))

    def reduce_scatter(self, chunks: torch.Tensor, deterministic: bool = True) -> PendingCollective:
        """Sum `sent` (size x chunk,) over ranks; the result is this rank's chunk (chunk,), a tensor of its own.

        exact: add in a binary tree over the ranks, the same bits for any way to deal 2^k things to them. gloo always
        does (all_to_all and a sum here are eight times as fast as its own reduce_scatter); NCCL, not asked to, sums
        along its ring.
        """
        import torch

        if self.size == 1:
            return PendingCollective(lambda: chunks)
        import torch.distributed as dist

        self.progress.collectives += 1
        chunk = chunks.numel() // self.size
        if self.device.type == "cuda" and not deterministic:
            own = torch.empty(chunk, dtype=chunks.dtype, device=chunks.device)
            return PendingCollective(lambda: own, [dist.reduce_scatter_tensor(own, chunks, async_op=True)], (chunks,))
        received = torch.empty_like(chunks)
        work = dist.all_to_all_single(received, chunks, async_op=True)
        return PendingCollective(lambda: pairwise_sum(received.view(self.size, chunk).unbind()), [work], (chunks,))

    def all_gather(self, chunk: torch.Tensor, out: torch.Tensor | None = None) -> PendingCollective:
        """Every rank's `own` (chunk,) one after another: (size x chunk,), in `into` where that is given.

        `own` may be its place in `into`. On gloo every rank broadcasts: half the time of its own all_gather.
        """
        import torch

        if self.size == 1:
            return PendingCollective(lambda: chunk)
        import torch.distributed as dist

        self.progress.collectives += 1
        out = torch.empty(self.size * chunk.numel(), dtype=chunk.dtype, device=chunk.device) if out is None else out
        if self.device.type == "cuda":
            return PendingCollective(lambda: out, [dist.all_gather_into_tensor(out, chunk, async_op=True)], (chunk,))
        pieces = out.view(self.size, -1).unbind()
        pieces[self.rank].copy_(chunk)
        works = [dist.broadcast(piece, src=rank, async_op=True) for rank, piece in enumerate(pieces)]
        return PendingCollective(lambda: out, works)

    def make_device_mesh(self) -> Any:
        """All ranks in a row, as PyTorch's DeviceMesh: what `fully_shard` shards over."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.size,))

    def gather_to_main(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Every rank's equal-shaped `own` stacked (size, ...) on the main rank; None on the others."""
        import torch

        if self.size == 1:
            return tensor[None]
        import torch.distributed as dist

        self.progress.collectives += 1
        out = torch.empty(self.size, *tensor.shape, dtype=tensor.dtype, device=tensor.device) if self.is_main else None
        dist.gather(tensor.contiguous(), list(out.unbind()) if out is not None else None, dst=0)
        return out

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            import torch.distributed as dist

            self.progress.collectives += 1
            dist.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Within it the main rank works alone; the others follow when it is done, and find what it made.

        After a UserError of the main rank, which it tells, the others leave with exit code 1.
        """
        if not self.is_main:
            if self.all_gather_object(False)[0]:
                raise SystemExit(1)
            yield
            return
        try:
            yield
        except UserError:
            self.all_gather_object(True)
            raise
        self.all_gather_object(False)

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Within it the main rank works alone, then the first rank of every other machine, then the rest.

        On a shared disk the later ones find what the main one made; where machines have disks of their own, each makes
        its copy. After a UserError of one of them, which it tells, the others leave with exit code 1.
        """
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2

        def wait() -> None:
            if any(self.all_gather_object(False)):
                raise SystemExit(1)

        for _ in range(turn):
            wait()
        try:
            yield
        except UserError:
            if turn < 2:
                self.all_gather_object(True)
            raise
        for _ in range(turn, 2):
            wait()

    def close(self) -> None:
        """Leave the group, so that the process ends without a warning; the world is then spent."""
        if self.size > 1:
            leave_process_group()


def is_launched_rank() -> bool:
    """Whether torchrun, or `fledgling --gpus`, started this process as one of its ranks."""
    return "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this process is the one that talks to the user, before or after there is a World."""
    return _int_from_env("RANK", 0) == 0


def get_restart_count() -> int:
    """How often an agent has started the ranks again after a fault."""
    return _int_from_env("TORCHELASTIC_RESTART_COUNT", 0)


def rendezvous(rank: int, size: int) -> Any:
    """Meet all ranks that were started together; the store that they, and no others before them, share.

    An agent that starts ranks again keeps its store, with the addresses of the dead in it, and agents of several
    machines may count their restarts differently. So every process brings a name of its own; rank 0 writes down who is
    there until all have signed the same list, and the list names the store. Raises TimeoutError naming who is missing.
    """
    import torch.distributed as dist

    shared, _, _ = next(dist.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    own, deadline = secrets.token_hex(8), time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds()
    shared.set(f"join/{rank}", own)

    def read(key: str) -> str:
        return shared.get(key).decode() if shared.check([key]) else ""

    missing: list[int] = []
    while time.monotonic() < deadline:
        if rank == 0:
            names = [read(f"join/{other}") for other in range(size)]
            present = json.dumps(names)
            shared.set("present", present)
            missing = [other for other in range(1, size) if not names[other] or read(f"signed/{other}") != present]
            if not missing:
                shared.set("complete", present)
        else:
            present = read("present")
            if present and own in json.loads(present):
                shared.set(f"signed/{rank}", present)
        if own in (complete := read("complete")):
            return dist.PrefixStore(hashlib.sha256(complete.encode()).hexdigest()[:16], shared)
        time.sleep(0.02 if time.monotonic() < deadline - RENDEZVOUS_TIMEOUT.total_seconds() + 5 else 0.5)
    who = f"ranks {', '.join(map(str, missing))} are" if rank == 0 else "not all ranks are"
    raise TimeoutError(f"{who} missing after {RENDEZVOUS_TIMEOUT}: look at their output, and start the run again")


def open_store(name: str, timeout: timedelta) -> Any:
    """A connection of one's own to the store that all ranks share, for the keys under `name`."""
    import torch.distributed as dist

    shared, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    shared.set_timeout(timeout)
    return dist.PrefixStore(name, shared)


def leave_process_group() -> None:
    """Leave the group of ranks, where this process is in one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def choose_device(device: str = "auto") -> str:
    """Return "cuda", "mps" or "cpu": the one asked for, or the first of these that this machine has.

    Raises UserError when the device asked for is unknown or missing.
    """
    import torch

    if device not in DEVICES:
        raise UserError(f'device "{device}": expected one of {", ".join(DEVICES)}')
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(kind for kind, present in has.items() if present)
    if not has[device]:
        raise UserError(f'device "{device}": torch {torch.__version__} finds none here; use auto or cpu')
    return device


def _int_from_env(name: str, default: int) -> int:
    """Return an environment variable as a whole number, or the default where it is unset."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text}: expected a whole number, as torchrun sets it; unset it to run alone") from None
