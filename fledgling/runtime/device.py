"""What a stage runs on: threads, dtype, compiler, and how fast this machine multiplies.

Each choice is made once and said once. Nothing here knows of data or losses.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from fledgling.config import RunConfig, UserError
from fledgling.runtime.world import World

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class DeviceSetup:
    """How this process computes: dtype of the products, whether kernels are compiled, measured peak FLOP/s, and bytes
    of memory that a rank may fill."""

    dtype: torch.dtype
    compiled: bool
    peak_flops: float
    memory_limit: int = 1 << 62

    @property
    def dtype_name(self) -> str:
        """As recipes say it: float32, bfloat16."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def summary(self) -> str:
        """The choices in one line."""
        how = "compiled" if self.compiled else "not compiled (no compiler found, or switched off)"
        return f"{self.dtype_name}, {how}, peak {self.peak_flops / 1e9:,.0f} GFLOP/s measured"


def set_up_device(table: RunConfig, world: World) -> DeviceSetup:
    """Fix threads (the ranks of a machine share its cores) and allocator, choose dtype and compiler as [run] says, and
    measure the peak."""
    device = world.device
    if device.type == "cpu":
        torch.set_num_threads(table.threads or max(1, (os.cpu_count() or 1) // world.local_size))
        keep_freed_memory()
    dtype = DTYPES[table.dtype] if table.dtype != "auto" else choose_dtype(device)
    compiled = should_compile(table.compile, device)
    return DeviceSetup(
        dtype,
        compiled,
        measure_peak_flops(device, dtype),
        get_usable_memory(device) // count_ranks_sharing_memory(world),
    )


def get_usable_memory(device: torch.device) -> int:
    """Bytes of the GPU, or half of the machine's memory: the other half is for what is not tensors, and others."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if os.name == "posix" else 1 << 62


def count_ranks_sharing_memory(world: World) -> int:
    """How many ranks share the memory of `memory_of`: on a GPU each has its own."""
    return 1 if world.device.type == "cuda" else world.local_size


def choose_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, fp32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return torch.float32


def should_compile(setting: str, device: torch.device) -> bool:
    """Whether torch.compile will be used: on a CPU it needs a C++ compiler, on CUDA Triton and a C compiler."""
    if setting == "off":
        return False
    found = any(shutil.which(name) for name in ("g++", "clang++"))
    if device.type == "cuda":  # Triton builds a C stub that launches each kernel
        names = filter(None, (os.environ.get("CC"), "gcc", "clang", "cc"))
        found = find_spec("triton") is not None and any(shutil.which(name) for name in names)
    if setting == "on" and not found:
        needed = "Triton, and gcc or clang" if device.type == "cuda" else "g++ or clang++"
        raise UserError(f'run.compile is "on" but it needs {needed}, not found here; install them or use "off"')
    return bool(found)


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks: activations of one step are those of the next (elsewhere: nothing)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    except (OSError, AttributeError):
        return


def measure_peak_flops(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.3) -> float:
    """FLOP/s of the best of several size x size matrix products, what MFU is a share of."""
    size = size if device.type == "cpu" else 8192
    draw = torch.Generator(device).manual_seed(0)  # its own: the run's random numbers are not touched
    a, b = (torch.randn(size, size, device=device, generator=draw).to(dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
