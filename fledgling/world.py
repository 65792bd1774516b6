"""The ranks of a run and what they say to each other: one sum, one gather, one barrier.

The one idea: a single process is a world of size 1 that takes the same path, so no caller asks whether it is
distributed. This is the only file that reads the variables torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK).

What it is not: it shards nothing. The optimizer's collectives are in `fledgling.optim.optimizer`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fledgling.config import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class World:
    """One process's place among `size` processes, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @classmethod
    def start(cls, device: str = "auto") -> World:
        """Read torchrun's variables, choose the device and, when there is more than one rank, join the group.

        `device` is auto (cuda, then mps, then cpu), cpu, cuda or mps. Groups speak nccl on cuda, else gloo.
        Raises UserError for a device this machine lacks, or for variables that do not make sense together.
        """
        import torch
        import torch.distributed as dist

        rank, size, local_rank = _variable("RANK", 0), _variable("WORLD_SIZE", 1), _variable("LOCAL_RANK", 0)
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
            if kind == "cuda":
                dist.init_process_group("nccl", device_id=place)
            else:
                dist.init_process_group("gloo")
        return cls(rank, size, local_rank, place)

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

        total = value.clone() if tensor else torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total if tensor else total.item()

    def gather(self, thing: Any) -> list[Any]:
        """Return every rank's `thing` (anything small that pickles), in order of rank."""
        if self.size == 1:
            return [thing]
        import torch.distributed as dist

        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def close(self) -> None:
        """Leave the group, so that the process ends without a warning; the world is then spent."""
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
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
