"""Memory of a device: what ranks may fill, and the measured peak of live tensor bytes.

The peak is what the planner's memory estimate is compared with. On a CPU the profiler reports each allocation of the
one allocator that all CPU tensors use; tensors that existed before are counted directly. On a GPU the allocator keeps
its own peak. Memory of Python, of library workspaces and of the C library's caches is not counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fledgling.runtime.accelerator import ACCELERATORS, total_memory
from fledgling.runtime.machine_memory import get_total_memory
from fledgling.runtime.world import World

TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)  # the compiler's fake tensors have other types
UNKNOWN_MEMORY = 1 << 62  # bytes, where the system does not report its memory


def get_usable_memory(device: torch.device) -> int:
    """Returns the bytes of the GPU, or half of those that this process may use: the rest is for what is no tensor."""
    if device.type in ACCELERATORS:
        return total_memory(device)
    total = get_total_memory()
    return UNKNOWN_MEMORY if total is None else total // 2


def count_ranks_sharing_memory(world: World) -> int:
    """Returns the number of ranks that share the memory of `get_usable_memory`; each rank on a GPU has its own."""
    return 1 if world.device.type in ACCELERATORS else world.local_size


def release_memory(device: torch.device) -> None:
    """Frees what a model that is gone still holds of an accelerator.

    A compiled block refers to itself, and Python collects such a cycle late: a next stage or trial would not fit.
    """
    if device.type in ACCELERATORS:
        torch.compiler.reset()  # what it has compiled stays on the disk
        gc.collect()
        torch.get_device_module(device).empty_cache()


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks, since each step allocates the same activations. No-op elsewhere."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        return


@dataclass
class PeakMemory:
    """The most tensor bytes that were alive at once; 0 where nothing was measured."""

    bytes: int = 0


@contextlib.contextmanager
def measure_peak_memory(device: torch.device, enabled: bool = True) -> Iterator[PeakMemory]:
    """Measures the peak of live tensor bytes on `device` during the block; the value is set when the block ends.

    The block runs a little slower on a CPU. On Apple GPUs the value stays 0.
    """
    peak = PeakMemory()
    if not enabled or device.type not in ("cpu", "cuda", "xpu"):
        yield peak
    elif device.type != "cpu":
        module = torch.get_device_module(device.type)
        module.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = module.max_memory_allocated(device)
    else:
        bytes_before = count_live_tensor_bytes()
        with _silence_stderr(), torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profiler:
            yield peak
        peak.bytes = bytes_before + _peak_of_allocations(profiler)


def count_live_tensor_bytes() -> int:
    """Returns the bytes of all CPU tensors that Python can reach, each storage once.

    Storages that another library owns (memory-mapped files, numpy arrays) are not counted.
    """
    tensors = [item for item in gc.get_objects() if type(item) in TENSOR_TYPES]
    # A gradient that Python has not accessed yet has no Python object.
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storage_bytes = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            with contextlib.suppress(RuntimeError):  # the compiler's stand-ins for tensors have no memory
                if storage.resizable():
                    storage_bytes[storage.data_ptr()] = storage.nbytes()
    return sum(storage_bytes.values())


def _peak_of_allocations(profiler: Any) -> int:
    """Returns the highest running sum of the profiler's allocations, in the order of their time.

    Memory that was allocated before the block, or that an unprofiled thread frees, counts until the block's end.
    """
    from torch._C._profiler import _EventType

    pending, allocations = list(profiler.kineto_results.experimental_event_tree()), []
    while pending:
        event = pending.pop()
        if event.tag == _EventType.Allocation:
            allocations.append((event.start_time_ns, event.extra_fields.alloc_size, event.extra_fields.ptr))
        pending += event.children
    current = highest = 0
    live_sizes: dict[int, int] = {}
    for _, size, address in sorted(allocations):
        if size > 0:
            current += size - live_sizes.pop(address, 0)  # an address allocated twice was freed by another thread
            live_sizes[address] = size
        else:
            current -= live_sizes.pop(address, 0)
        highest = max(highest, current)
    return highest


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discards what the process writes to stderr: the profiler prints a banner and warns of older allocations."""
    sys.stderr.flush()
    saved_descriptor = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved_descriptor, 2)
        os.close(saved_descriptor)
