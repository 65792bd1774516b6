"""The ranks of a run and what they say to each other: sum, gather, barrier; reduce_scatter and all_gather, unwaited.

The one idea: a single process is a world of size 1 that takes the same path, so no caller asks whether it is
distributed. Whatever trains speaks to other ranks through this file alone, `fully_shard` too; only it reads the
variables torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK). `fledgling bench comm` measures the library itself.

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
PATIENCE = timedelta(hours=2)  # a rank waits so long for another: the main one may prepare data or evaluate meanwhile
JOINING = timedelta(minutes=15)  # for all ranks to have started


@dataclass(frozen=True)
class Pending:
    """A collective under way: holds its buffers until `wait`, so that none is freed while others still read it."""

    result: Callable[[], torch.Tensor]
    works: Sequence[Any] = ()
    buffers: tuple = field(default=(), repr=False)

    def wait(self) -> torch.Tensor:
        """Return the result once it is there (on a GPU: once the stream that asks may read it)."""
        for work in self.works:
            work.wait()
        return self.result()


def tree_sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of equal-shaped tensors as a binary tree over neighbours, a new tensor; changes all parts but the last.

    ((0 + 1) + (2 + 3)) + ...: with powers of two, a tree of trees is the same tree, whoever sums which branch.
    """
    parts = list(parts)
    while len(parts) > 2:
        pairs = zip(parts[0::2], parts[1::2], strict=False)
        odd = parts[len(parts) & ~1 :]
        parts = [left.add_(right) for left, right in pairs] + odd
    return parts[0] + parts[1] if len(parts) == 2 else parts[0]


@dataclass
class Pulse:
    """What a rank's main thread has done, for those who watch it: exchanges begun, and the steps' time."""

    exchanges: int = 0
    within: bool = False  # a step; outside of one a rank may take as long as it wants
    longest: float = 0.0  # seconds of a step, the first two apart, which compile
    steps: int = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within it is a step of training."""
        began, self.within = time.monotonic(), self.steps >= 2
        try:
            yield
        finally:
            if self.within:
                self.longest = max(self.longest, time.monotonic() - began)
            self.within, self.steps = False, self.steps + 1


@dataclass(frozen=True)
class World:
    """One process's place among `size` processes, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    local_size: int = 1  # ranks on this machine
    pulse: Pulse = field(default_factory=Pulse, repr=False, compare=False)

    @classmethod
    def start(cls, device: str = "auto") -> World:
        """Read torchrun's variables, choose the device and, when there is more than one rank, join the group.

        `device` is auto (cuda, then mps, then cpu), cpu, cuda or mps. Groups speak nccl on cuda, else gloo.
        Raises UserError for a device this machine lacks, or for variables that do not make sense together.
        """
        import torch
        import torch.distributed as dist

        rank, size, local_rank = _variable("RANK", 0), _variable("WORLD_SIZE", 1), _variable("LOCAL_RANK", 0)
        local_size = _variable("LOCAL_WORLD_SIZE", 1)
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
            store = join(rank, size)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE, device_id=bound)
        return cls(rank, size, local_rank, place, local_size)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the user."""
        return self.rank == 0

    def sum(self, value: float | torch.Tensor) -> Any:
        """Return the sum of `value` over all ranks: a new tensor for a tensor, a float for a number.

        Numbers travel as float64, exact for whole numbers below 2^53 (token counts). Every rank must call it.
        """
        import torch

        tensor = isinstance(value, torch.Tensor)
        if self.size == 1:
            return value.clone() if tensor else float(value)
        import torch.distributed as dist

        self.pulse.exchanges += 1
        total = value.clone() if tensor else torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total if tensor else total.item()

    def gather(self, thing: Any) -> list[Any]:
        """Return every rank's `thing` (anything small that pickles), in order of rank."""
        if self.size == 1:
            return [thing]
        import torch.distributed as dist

        self.pulse.exchanges += 1
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def exchange(self, sent: torch.Tensor) -> Pending:
        """Piece j of `sent` (size x chunk,) goes to rank j; in the result (size x chunk,) piece j is rank j's."""
        import torch

        if self.size == 1:
            return Pending(lambda: sent)
        import torch.distributed as dist

        received = torch.empty_like(sent)
        return Pending(lambda: received, [dist.all_to_all_single(received, sent, async_op=True)], (sent,))

    def reduce_scatter(self, sent: torch.Tensor, exact: bool = True) -> Pending:
        """Sum `sent` (size x chunk,) over ranks; the result is this rank's chunk (chunk,), a tensor of its own.

        exact: add in a binary tree over the ranks, the same bits for any way to deal 2^k things to them. gloo always
        does (all_to_all and a sum here are eight times as fast as its own reduce_scatter); NCCL, not asked to, sums
        along its ring.
        """
        import torch

        if self.size == 1:
            return Pending(lambda: sent)
        import torch.distributed as dist

        self.pulse.exchanges += 1
        chunk = sent.numel() // self.size
        if self.device.type == "cuda" and not exact:
            own = torch.empty(chunk, dtype=sent.dtype, device=sent.device)
            return Pending(lambda: own, [dist.reduce_scatter_tensor(own, sent, async_op=True)], (sent,))
        received = torch.empty_like(sent)
        work = dist.all_to_all_single(received, sent, async_op=True)
        return Pending(lambda: tree_sum(received.view(self.size, chunk).unbind()), [work], (sent,))

    def all_gather(self, own: torch.Tensor, into: torch.Tensor | None = None) -> Pending:
        """Every rank's `own` (chunk,) one after another: (size x chunk,), in `into` where that is given.

        `own` may be its place in `into`. On gloo every rank broadcasts: half the time of its own all_gather.
        """
        import torch

        if self.size == 1:
            return Pending(lambda: own)
        import torch.distributed as dist

        self.pulse.exchanges += 1
        out = torch.empty(self.size * own.numel(), dtype=own.dtype, device=own.device) if into is None else into
        if self.device.type == "cuda":
            return Pending(lambda: out, [dist.all_gather_into_tensor(out, own, async_op=True)], (own,))
        pieces = out.view(self.size, -1).unbind()
        pieces[self.rank].copy_(own)
        works = [dist.broadcast(piece, src=rank, async_op=True) for rank, piece in enumerate(pieces)]
        return Pending(lambda: out, works)

    def mesh(self) -> Any:
        """All ranks in a row, as PyTorch's DeviceMesh: what `fully_shard` shards over."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.size,))

    def collect(self, own: torch.Tensor) -> torch.Tensor | None:
        """Every rank's equal-shaped `own` stacked (size, ...) on the main rank; None on the others."""
        import torch

        if self.size == 1:
            return own[None]
        import torch.distributed as dist

        self.pulse.exchanges += 1
        out = torch.empty(self.size, *own.shape, dtype=own.dtype, device=own.device) if self.is_main else None
        dist.gather(own.contiguous(), list(out.unbind()) if out is not None else None, dst=0)
        return out

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            import torch.distributed as dist

            self.pulse.exchanges += 1
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Within it the main rank works alone; the others follow when it is done, and find what it made.

        After a UserError of the main rank, which it tells, the others leave with exit code 1.
        """
        if not self.is_main:
            if self.gather(False)[0]:
                raise SystemExit(1)
            yield
            return
        try:
            yield
        except UserError:
            self.gather(True)
            raise
        self.gather(False)

    @contextmanager
    def each_machine_first(self) -> Iterator[None]:
        """Within it the main rank works alone, then the first rank of every other machine, then the rest.

        On a shared disk the later ones find what the main one made; where machines have disks of their own, each makes
        its copy. After a UserError of one of them, which it tells, the others leave with exit code 1.
        """
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2

        def wait() -> None:
            if any(self.gather(False)):
                raise SystemExit(1)

        for _ in range(turn):
            wait()
        try:
            yield
        except UserError:
            if turn < 2:
                self.gather(True)
            raise
        for _ in range(turn, 2):
            wait()

    def close(self) -> None:
        """Leave the group, so that the process ends without a warning; the world is then spent."""
        if self.size > 1:
            leave()


def launched() -> bool:
    """Whether torchrun, or `fledgling --gpus`, started this process as one of its ranks."""
    return "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this process is the one that talks to the user, before or after there is a World."""
    return _variable("RANK", 0) == 0


def restarts() -> int:
    """How often an agent has started the ranks again after a fault."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0)


def join(rank: int, size: int) -> Any:
    """Meet all ranks that were started together; the store that they, and no others before them, share.

    An agent that starts ranks again keeps its store, with the addresses of the dead in it, and agents of several
    machines may count their restarts differently. So every process brings a name of its own; rank 0 writes down who is
    there until all have signed the same list, and the list names the store. Raises TimeoutError naming who is missing.
    """
    import torch.distributed as dist

    shared, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
    own, deadline = secrets.token_hex(8), time.monotonic() + JOINING.total_seconds()
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
        time.sleep(0.02 if time.monotonic() < deadline - JOINING.total_seconds() + 5 else 0.5)
    who = f"ranks {', '.join(map(str, missing))} are" if rank == 0 else "not all ranks are"
    raise TimeoutError(f"{who} missing after {JOINING}: look at their output, and start the run again")


def own_store(name: str, timeout: timedelta) -> Any:
    """A connection of one's own to the store that all ranks share, for the keys under `name`."""
    import torch.distributed as dist

    shared, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    shared.set_timeout(timeout)
    return dist.PrefixStore(name, shared)


def leave() -> None:
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


def _variable(name: str, default: int) -> int:
    """Return an environment variable as a whole number, or the default where it is unset."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text}: expected a whole number, as torchrun sets it; unset it to run alone") from None
