"""The peak of live tensor bytes while a block of code runs: what the planner's memory is held against.

The one idea: every CPU tensor comes from one allocator, which tells the profiler of each block it gives and takes; what
was there before is counted from the tensors themselves. On a GPU the allocator keeps the peak by itself.

What it is not: the memory of the process. Python, libraries' workspaces and what the C library keeps are not tensors.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)  # the compiler's fake tensors are of other types


@dataclass
class PeakMemory:
    """The most bytes of tensors that were alive at once; 0 where nothing was watched."""

    bytes: int = 0


@contextlib.contextmanager
def measure_peak_memory(device: torch.device, enabled: bool = True) -> Iterator[PeakMemory]:
    """Within it the peak of live tensor bytes on `device` is measured; it is known when the block has ended.

    On a CPU the block runs a little slower; on Apple GPUs nothing is known.
    """
    seen = PeakMemory()
    if not enabled or device.type not in ("cpu", "cuda"):
        yield seen
    elif device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield seen
        seen.bytes = torch.cuda.max_memory_allocated(device)
    else:
        held = count_live_tensor_bytes()
        with _silence_stderr(), torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profiler:
            yield seen
        seen.bytes = held + _peak_of_allocations(profiler)


def count_live_tensor_bytes() -> int:
    """Bytes of all CPU tensors that Python can see, each storage once; memory that others own (files, numpy) is not."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in TENSOR_TYPES]
    tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]  # Python may not have seen it yet
    storages = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            with contextlib.suppress(RuntimeError):  # the compiler's stand-ins for tensors have no memory
                if storage.resizable():
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _peak_of_allocations(profiler: torch.autograd.profiler.profile) -> int:
    """The highest sum of the allocations that the profiler saw, in the order of their time.

    What was there before the block, and what another thread frees, counts to the block's end.
    """
    from torch._C._profiler import _EventType

    waiting, events = list(profiler.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.ptr))
        waiting += event.children
    level = highest = 0
    alive: dict[int, int] = {}
    for _, size, address in sorted(events):
        if size > 0:
            level += size - alive.pop(address, 0)  # an address given twice was freed by a thread that is not watched
            alive[address] = size
        else:
            level -= alive.pop(address, 0)
        highest = max(highest, level)
    return highest


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Within it the process's stderr goes nowhere: the profiler greets, and warns of blocks older than itself."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
