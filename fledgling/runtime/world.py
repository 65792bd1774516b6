"""The ranks of a run and their collectives: all_reduce, all_gather, reduce_scatter, all_to_all, gather, barrier.

A single process is a world of size 1 that takes the same path, so no caller tests whether the run is distributed. All
communication of training goes through this file, and only this file reads the variables that torchrun sets (RANK,
WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE). `python -m benchmarks comm` measures torch.distributed's own collectives.

Which tensors are sharded, and when they travel, is decided in `fledgling.optim.gradients`. `launch.py` starts ranks,
`rendezvous.py` lets them find each other, `watchdog.py` detects lost ones.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fledgling.config import UserError
from fledgling.runtime.accelerator import ACCELERATORS, allow_expandable_segments, count_devices, is_available
from fledgling.runtime.rendezvous import COLLECTIVE_TIMEOUT, rendezvous

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", *ACCELERATORS)
BACKENDS = {"cuda": "nccl", "xpu": "xccl"}  # whose own collectives are the fastest; the CPU takes gloo


@dataclass(frozen=True)
class PendingCollective:
    """A collective that is under way.

    It holds its buffers until `wait` returns, so that none is freed while other ranks still read it.
    """

    result: Callable[[], torch.Tensor]
    works: Sequence[Any] = ()
    buffers: tuple = field(default=(), repr=False)

    def wait(self) -> torch.Tensor:
        """Waits for the collective and returns its result (on a GPU: once the current stream may read it)."""
        for work in self.works:
            work.wait()
        return self.result()


def pairwise_sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of tensors of one shape, added as a binary tree over adjacent ranks: ((0 + 1) + (2 + 3)) + ...

    For powers of two, summing the sums of the branches gives the same tree, so the result has the same bits however
    the branches are dealt to ranks. The result is a new tensor; all of `tensors` but the last may be overwritten.
    """
    tensors = list(tensors)
    while len(tensors) > 2:
        pairs = zip(tensors[0::2], tensors[1::2], strict=False)
        unpaired = tensors[len(tensors) & ~1 :]
        tensors = [left.add_(right) for left, right in pairs] + unpaired
    return tensors[0] + tensors[1] if len(tensors) == 2 else tensors[0]


@dataclass
class Progress:
    """What a rank's main thread has done, as its watchdog reports it to the other ranks.

    collectives: how many it has begun. in_step: whether it is inside a timed training step; outside of one, a rank may
    take any time. longest_step: seconds. finished_steps: the first two, which compile, are not timed.
    """

    collectives: int = 0
    in_step: bool = False
    longest_step: float = 0.0
    finished_steps: int = 0

    @contextmanager
    def track_step(self) -> Iterator[None]:
        """Marks the block as one training step."""
        began, self.in_step = time.monotonic(), self.finished_steps >= 2
        try:
            yield
        finally:
            if self.in_step:
                self.longest_step = max(self.longest_step, time.monotonic() - began)
            self.in_step, self.finished_steps = False, self.finished_steps + 1


@dataclass(frozen=True)
class World:
    """This process as one rank of `size`, and the device it computes on. local_size: ranks on this machine."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    local_size: int = 1
    progress: Progress = field(default_factory=Progress, repr=False, compare=False)

    @classmethod
    def start(cls, device: str = "auto") -> World:
        """Reads torchrun's variables, chooses the device and joins the process group when there are several ranks.

        device: "auto" (cuda, then xpu, then mps, then cpu), "cpu", "cuda", "xpu" or "mps".
        Raises UserError for a device that this machine lacks and for inconsistent variables.
        """
        import torch
        import torch.distributed as dist

        rank, size = _int_from_env("RANK", 0), _int_from_env("WORLD_SIZE", 1)
        local_rank, local_size = _int_from_env("LOCAL_RANK", 0), _int_from_env("LOCAL_WORLD_SIZE", 1)
        if size < 1 or not 0 <= rank < size:
            raise UserError(f"RANK={rank} with WORLD_SIZE={size}: expected 0 <= RANK < WORLD_SIZE, as torchrun sets")
        kind = choose_device(device)
        if kind == "mps" and size > 1:
            raise UserError(f"{size} ranks on mps: Apple GPUs train with one rank; use --device cpu, or one rank")
        has_index = kind in ("cuda", "xpu")
        if kind == "cuda":
            allow_expandable_segments()
        if has_index:
            gpus = count_devices(kind)
            if local_rank >= gpus:
                raise UserError(f"LOCAL_RANK={local_rank}, but this machine shows {gpus} GPU(s): start fewer ranks")
            torch.get_device_module(kind).set_device(local_rank)
        own_device = torch.device(kind, local_rank) if has_index else torch.device(kind)
        if size > 1 and not dist.is_initialized():
            dist.init_process_group(
                choose_backend(kind, size, local_size),
                store=rendezvous(rank, size),
                rank=rank,
                world_size=size,
                timeout=COLLECTIVE_TIMEOUT,
                device_id=own_device if has_index else None,
            )
        return cls(rank, size, local_rank, own_device, local_size)

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only one that writes files and prints."""
        return self.rank == 0

    def all_reduce(self, value: float | torch.Tensor) -> Any:
        """Returns the sum of `value` over all ranks: a new tensor for one of any shape, a float for a number.

        Numbers are summed as float64, which is exact for integers below 2^53 (token counts). They travel as the 64-bit
        integers of the same bits, because no accelerator is given a float64. On one machine they stay in host memory,
        so that the host does not wait for what its device has queued, as do the objects of `all_gather_object`.
        """
        import torch

        if self.size == 1:
            return value.clone() if isinstance(value, torch.Tensor) else float(value)
        import torch.distributed as dist

        self.progress.collectives += 1
        if isinstance(value, torch.Tensor):
            total = value.clone()
            dist.all_reduce(total)
            return total
        own = torch.tensor([float(value)], dtype=torch.float64).view(torch.int64)
        own = own if has_host_backend(self.size, self.local_size) else own.to(self.device)
        values = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(values, own)
        return math.fsum(torch.cat(values).cpu().view(torch.float64).tolist())

    def all_gather_object(self, value: Any) -> list[Any]:
        """Returns every rank's `value` (any small picklable object) in order of rank. Collective."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        self.progress.collectives += 1
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def all_to_all(self, chunks: torch.Tensor) -> PendingCollective:
        """Sends chunk j of `chunks` (size x chunk,) to rank j; chunk j of the result (size x chunk,) is from rank j."""
        import torch

        if self.size == 1:
            return PendingCollective(lambda: chunks)
        import torch.distributed as dist

        received = torch.empty_like(chunks)
        work = dist.all_to_all_single(received, chunks, async_op=True)
        return PendingCollective(lambda: received, [work], (chunks,))

    def reduce_scatter(self, chunks: torch.Tensor, deterministic: bool = True) -> PendingCollective:
        """Sums `chunks` (size x chunk,) over the ranks; the result (chunk,) is this rank's chunk, a new tensor.

        deterministic: add in a binary tree over the ranks (`pairwise_sum`), so that 2^k summands give the same bits
        on any number of ranks. gloo always does: all_to_all and a local sum are eight times as fast as its own
        reduce_scatter. Otherwise NCCL sums along its ring.
        """
        import torch

        if self.size == 1:
            return PendingCollective(lambda: chunks)
        import torch.distributed as dist

        self.progress.collectives += 1
        chunk_size = chunks.numel() // self.size
        if self.device.type in BACKENDS and not deterministic:
            own = torch.empty(chunk_size, dtype=chunks.dtype, device=chunks.device)
            work = dist.reduce_scatter_tensor(own, chunks, async_op=True)
            return PendingCollective(lambda: own, [work], (chunks,))
        received = torch.empty_like(chunks)
        work = dist.all_to_all_single(received, chunks, async_op=True)
        return PendingCollective(lambda: pairwise_sum(received.view(self.size, chunk_size).unbind()), [work], (chunks,))

    def all_gather(self, chunk: torch.Tensor, out: torch.Tensor | None = None) -> PendingCollective:
        """Concatenates every rank's `chunk` (chunk,) to (size x chunk,), in `out` where that is given.

        `chunk` may be a view of its place in `out`. On gloo every rank broadcasts, which takes half the time of its
        own all_gather.
        """

        if self.size == 1:
            return PendingCollective(lambda: chunk)
        import torch.distributed as dist

        self.progress.collectives += 1
        gathered = chunk.new_empty(self.size * chunk.numel()) if out is None else out
        if self.device.type in BACKENDS:
            work = dist.all_gather_into_tensor(gathered, chunk, async_op=True)
            return PendingCollective(lambda: gathered, [work], (chunk,))
        pieces = gathered.view(self.size, -1).unbind()
        pieces[self.rank].copy_(chunk)
        works = [dist.broadcast(piece, src=rank, async_op=True) for rank, piece in enumerate(pieces)]
        return PendingCollective(lambda: gathered, works)

    def make_device_mesh(self) -> Any:
        """Returns a one-dimensional DeviceMesh of all ranks, over which `fully_shard` shards."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.size,))

    def gather_to_main(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Returns every rank's equal-shaped `tensor` stacked (size, ...) on the main rank, None on the others."""
        import torch

        if self.size == 1:
            return tensor[None]
        import torch.distributed as dist

        self.progress.collectives += 1
        out = torch.empty(self.size, *tensor.shape, dtype=tensor.dtype, device=tensor.device) if self.is_main else None
        dist.gather(tensor.contiguous(), list(out.unbind()) if out is not None else None, dst=0)
        return out

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        if self.size > 1:
            import torch.distributed as dist

            self.progress.collectives += 1
            dist.barrier()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Runs the block on the main rank, then on the others, which find the files that it made.

        When the main rank raises UserError, which it reports itself, the others exit with code 1.
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
        """Runs the block on the main rank, then on the first rank of every other machine, then on the rest.

        On a shared disk the later ranks find the files that the main rank made; machines with a disk each make their
        own copy. When one of them raises UserError, which it reports itself, the others exit with code 1.
        """
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2

        def wait_for_turn() -> None:
            if any(self.all_gather_object(False)):
                raise SystemExit(1)

        for _ in range(turn):
            wait_for_turn()
        try:
            yield
        except UserError:
            if turn < 2:
                self.all_gather_object(True)
            raise
        for _ in range(turn, 2):
            wait_for_turn()

    def close(self) -> None:
        """Leaves the process group, so that the process ends without a warning. No collective works afterwards."""
        if self.size > 1:
            leave_process_group()


def has_host_backend(size: int, local_size: int) -> bool:
    """Returns whether ranks exchange numbers and objects through host memory: where all are on one machine.

    Between machines only the GPUs' own network is known to be there.
    """
    return local_size >= size


def choose_backend(kind: str, size: int, local_size: int) -> str:
    """Returns the backends of the process group: gloo for tensors on the CPU, nccl (cuda) or xccl (xpu) for others.

    kind: the torch device type.
    """
    if kind not in BACKENDS:
        return "gloo"
    return f"cpu:gloo,{kind}:{BACKENDS[kind]}" if has_host_backend(size, local_size) else BACKENDS[kind]


def is_launched_rank() -> bool:
    """Returns whether torchrun, or `fledgling --gpus`, started this process as one of its ranks."""
    return "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Returns whether this process is rank 0, also where there is no World."""
    return _int_from_env("RANK", 0) == 0


def count_launched_ranks() -> int:
    """Returns how many ranks the launcher of this process has started, on all machines; 1 without a launcher."""
    return _int_from_env("WORLD_SIZE", 1)


def get_restart_count() -> int:
    """Returns how often the launcher has restarted the ranks after a fault."""
    return _int_from_env("TORCHELASTIC_RESTART_COUNT", 0)


def has_restart_left() -> bool:
    """Returns whether the launcher starts the ranks again after a fault."""
    return is_launched_rank() and get_restart_count() < _int_from_env("TORCHELASTIC_MAX_RESTARTS", 0)


def leave_process_group() -> None:
    """Leaves the process group, where this process is in one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def choose_device(device: str = "auto") -> str:
    """Returns "cuda", "xpu", "mps" or "cpu": the requested device, or for "auto" the first that this machine has.

    Raises UserError when the requested device is unknown or missing.
    """
    import torch

    if device not in DEVICES:
        raise UserError(f'device "{device}": expected one of {", ".join(DEVICES)}')
    if device == "auto":
        return next(kind for kind in (*ACCELERATORS, "cpu") if is_available(kind))
    if not is_available(device):
        raise UserError(f'device "{device}": torch {torch.__version__} finds none on this machine; use auto or cpu')
    return device


def _int_from_env(name: str, default: int) -> int:
    """Returns an environment variable as an integer, or `default` where it is unset."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        reason = "expected a whole number, as torchrun sets it; unset it to run one process"
        raise UserError(f"{name}={text}: {reason}") from None
