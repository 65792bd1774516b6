"""How a process computes: dtype, threads, compiler, and the measured peak of its matrix products."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from fledgling.config import RunConfig, UserError
from fledgling.runtime.accelerator import synchronize
from fledgling.runtime.compiler import find_cxx_compiler
from fledgling.runtime.cores import count_cores
from fledgling.runtime.device_memory import (
    UNKNOWN_MEMORY,
    count_ranks_sharing_memory,
    get_usable_memory,
    keep_freed_memory,
)
from fledgling.runtime.known_peaks import compare_with_known_peak
from fledgling.runtime.system_environment import collect_environment, read_cpu_name
from fledgling.runtime.world import World

PEAK_TRIES = 3  # further measurements of a peak that real work has exceeded
PEAK_CONFIRMED = 0.03  # between the two fastest products of a measurement
PEAK_PATIENCE = 4.0  # times as long as it takes otherwise, for a product as fast as the fastest
RECOMPILE_LIMIT = 64  # kinds of blocks (windows, value embeddings) times shapes of batches; shapes of parameters
SUSPICIOUS_SHARE = 0.85  # of a measured peak, in training: more is rather a peak that is too low
FP8_CAPABILITY = (8, 9)  # of CUDA devices that multiply fp8: Ada and Hopper
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def name_dtype(dtype: torch.dtype) -> str:
    """Returns a dtype as recipes name it: float32, bfloat16 or float16."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class DeviceSetup:
    """How this process computes.

    dtype: of the matrix products in training. compiled: whether torch.compile is used. peak_flops: measured FLOP/s.
    memory_limit: bytes that this rank may fill. fp8: whether the blocks' products in training are. peak_note: why the
    peak is not what was measured first, or "". answer_dtype: of the products of the engine; None: `dtype`.
    not_compiled: why, where it is not.
    """

    dtype: torch.dtype
    compiled: bool
    peak_flops: float
    memory_limit: int = UNKNOWN_MEMORY
    fp8: bool = False
    peak_note: str = ""
    answer_dtype: torch.dtype | None = None
    not_compiled: str = "no compiler found"

    @property
    def engine_dtype(self) -> torch.dtype:
        """The dtype of the engine's products, in exams, samples and rollouts."""
        return self.answer_dtype or self.dtype

    @property
    def dtype_name(self) -> str:
        """The dtype as recipes name it: float32, bfloat16 or float16."""
        return name_dtype(self.dtype)

    @property
    def summary(self) -> str:
        """The choices in one line."""
        compile_state = "compiled" if self.compiled else f"not compiled ({self.not_compiled})"
        products = ", products of the blocks in fp8" if self.fp8 else ""
        note = f" ({self.peak_note})" if self.peak_note else ""
        if self.engine_dtype != self.dtype:
            products += f" (answers in {name_dtype(self.engine_dtype)})"
        return f"{self.dtype_name}{products}, {compile_state}, peak {self.peak_flops / 1e9:,.0f} GFLOP/s measured{note}"


def set_up_device(config: RunConfig, world: World) -> DeviceSetup:
    """Sets threads and allocator, chooses dtype and compiler as [run] requests, and measures the peak.

    On a CPU the ranks of a machine share its cores.
    """
    device = world.device
    if device.type == "cpu":
        torch.set_num_threads(config.threads or max(1, count_cores() // world.local_size))
        keep_freed_memory()
    setup = choose_setup(config, world)
    if setup.compiled:  # an update rule sees the shapes of all parameters, of a DoRA adapter more than 8
        raise_recompile_limit()
    peak, note = measure_peak_flops(device, setup.dtype), ""
    if device.type == "cpu":
        peak, note = compare_with_known_peak(
            f"{platform.node()}, {collect_environment()['cpu']}, {torch.get_num_threads()} threads, {setup.dtype_name}",
            peak,
            lambda: measure_peak_flops(device, setup.dtype),
        )
    return replace(setup, peak_flops=peak, peak_note=note)


def raise_recompile_limit() -> None:
    """Lets a compiled function have a kernel for each of RECOMPILE_LIMIT shapes; beyond PyTorch's 8 it runs eagerly."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)


def choose_setup(config: RunConfig, world: World) -> DeviceSetup:
    """Returns the setup as [run] requests it, without setting or measuring anything: its peak is 0.

    Raises UserError for a compiler that is requested and missing, and for fp8 where it cannot be.
    """
    device = world.device
    if config.fp8:
        require_fp8(device)
    is_open = config.dtype == "auto"
    dtype = choose_training_dtype(device) if is_open else DTYPES[config.dtype]
    answer_dtype = choose_dtype(device) if is_open else None
    compiled = should_compile(config.compile, device)
    memory_limit = get_usable_memory(device) // count_ranks_sharing_memory(world)
    reason = "run.compile is off" if config.compile == "off" else "no compiler found"
    reason = "not on an Apple GPU" if device.type == "mps" else reason
    return DeviceSetup(dtype, compiled, 0.0, memory_limit, config.fp8, answer_dtype=answer_dtype, not_compiled=reason)


def require_fp8(device: torch.device) -> None:
    """Raises UserError, in one line, where the device or the installed packages cannot train in fp8."""
    if device.type != "cuda":
        raise UserError(
            f"run.fp8: {device.type} multiplies no fp8; expected a CUDA device of 8.9 or later, or run.fp8=false"
        )
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < FP8_CAPABILITY:
        name, version = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise UserError(f"run.fp8: {name} has compute capability {version}; expected 8.9 or later, or run.fp8=false")
    if find_spec("torchao") is None:
        raise UserError("run.fp8 needs torchao, which is not installed: pip install 'fledgling[fp8]', or run.fp8=false")


def choose_training_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype whose products are the fastest in training: `choose_dtype`, but float32 on some Intel CPUs.

    On Intel processors with AVX-512 BF16 and without matrix units (AMX) a large product of bfloat16 takes twice as long
    as one of float32, as `fledgling doctor` measures. The engine's products of few rows are limited by memory, where
    bfloat16 is faster.
    """
    dtype = choose_dtype(device)
    if device.type != "cpu" or dtype != torch.bfloat16:
        return dtype
    has_matrix_units = torch.cpu.get_capabilities().get("amx_bf16", False)
    is_intel = "intel" in read_cpu_name().lower()
    return torch.float32 if is_intel and not has_matrix_units else dtype


def choose_dtype(device: torch.device) -> torch.dtype:
    """Returns bfloat16 where the hardware multiplies it, else float16 on CUDA and float32 on the others.

    It is the engine's dtype. float16 trains with a gradient scaler (`fledgling.optim.loss_scale`).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_bf16 = {
        "cpu": lambda: torch.cpu.get_capabilities().get("avx512_bf16", False),
        "xpu": lambda: torch.xpu.is_bf16_supported(including_emulation=False),
        "mps": lambda: torch.backends.mps.is_macos_or_newer(14, 0),  # the first Metal that multiplies it
    }
    return torch.bfloat16 if has_bf16[device.type]() else torch.float32


def should_compile(setting: str, device: torch.device) -> bool:
    """Returns whether torch.compile is used: not on an Apple GPU, for which it is a prototype.

    On a CPU it needs a C++ compiler, on CUDA and on an Intel GPU Triton and a C compiler.

    setting: "auto", "on" or "off". Raises UserError for "on" where something is missing.
    """
    if setting == "off":
        return False
    uses_triton = device.type in ("cuda", "xpu")
    if device.type == "mps":
        has_compiler = False
    elif uses_triton:  # Triton builds a C stub that launches each kernel
        names = filter(None, (os.environ.get("CC"), "gcc", "clang", "cc"))
        has_compiler = find_spec("triton") is not None and any(shutil.which(name) for name in names)
    else:
        has_compiler = find_cxx_compiler() is not None
    if setting == "on" and device.type == "mps":
        raise UserError(
            'run.compile is "on" and run.device is an Apple GPU, which does not compile; use "off" or "auto"'
        )
    if setting == "on" and not has_compiler:
        needed = "Triton, and gcc or clang" if uses_triton else "g++ or clang++ (or CXX)"
        raise UserError(f'run.compile is "on" but it needs {needed}, which was not found; install it or use "off"')
    return has_compiler


def measure_peak_flops(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.3) -> float:
    """Returns the FLOP/s of the fastest of several (size, size) matrix products: the denominator of MFU.

    On a GPU the size is 8192. Measures for about `seconds`; longer, where no other product was as fast as the fastest.
    """
    size = size if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # a separate one, so that the run's random state is untouched
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    times: list[float] = []
    began = time.perf_counter()
    while not is_peak_settled(times, time.perf_counter() - began, seconds):
        start = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def is_peak_settled(times: list[float], elapsed: float, seconds: float) -> bool:
    """Returns whether a measurement of the peak ends: its two fastest products agree, or it has taken long enough.

    On a shared machine a single one of a few products may be undisturbed, or none.
    """
    if not times or elapsed < seconds:
        return False
    fastest = sorted(times)[:2]
    agree = len(fastest) == 2 and fastest[1] <= (1 + PEAK_CONFIRMED) * fastest[0]
    return agree or elapsed >= PEAK_PATIENCE * seconds


def remeasure_peak_flops(device: torch.device, dtype: torch.dtype, peak: float, reached: float) -> tuple[float, str]:
    """Measures a peak again that real work has come near to or exceeded: it was measured on a busy machine.

    Args:
        device: whose peak it is.
        dtype: of the matrix products.
        peak: FLOP/s, as measured before.
        reached: FLOP/s of the work, more than `SUSPICIOUS_SHARE` of `peak`.

    Returns:
        The highest of `PEAK_TRIES` new measurements and `peak`, 0.0 if the work exceeds these too; and one line that
        says so.
    """
    again = max(peak, *(measure_peak_flops(device, dtype) for _ in range(PEAK_TRIES)))
    if reached > peak:
        doubt = f"more than the measured peak of {peak / 1e9:,.1f}"
    else:
        doubt = f"{100 * reached / peak:.0f} % of the measured peak of {peak / 1e9:,.1f}"
    what = f"{reached / 1e9:,.1f} GFLOP/s were reached, {doubt}"
    if again <= (1 + PEAK_CONFIRMED) * peak and reached <= peak:
        return again, f"{what}: measured again, it is as high"
    what += f": it was measured too low, and values of MFU from before are too high; measured again: {again / 1e9:,.1f}"
    return (again, what) if again >= reached else (0.0, f"{what}, still too low, so MFU is not recorded")
