"""Checks of what this machine offers for training, each a `Finding`: `fledgling doctor` prints them.

`check_machine` checks what needs no torch, `check_training` the rest; `sandbox/checks.py` has those of the sandbox.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledgling.runtime.compiler import find_cxx_compiler
from fledgling.runtime.cores import count_cores
from fledgling.runtime.machine_memory import get_available_memory

GIB = 2**30
FASTER_FLOAT32 = 1.3  # times as fast as bfloat16: more than two measurements of one product differ by


@dataclass(frozen=True)
class Finding:
    """The result of one check: its name, whether it is fine, what was found and, where it is not fine, what to do."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def check_machine() -> list[Finding]:
    """Checks Python, memory and disk space, without torch."""
    return [check_python(), *check_memory_and_disk()]


def check_training() -> tuple[list[Finding], bool]:
    """Checks torch, compiler, processor and GPUs, and measures a matrix product; returns also whether torch is there.

    Without torch nothing can train, and the list has that alone.
    """
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", False, f"cannot be imported: {error}", "pip install torch")], False
    checks = [check_torch(torch), check_compiler(), check_processor(), check_gpus(torch)]
    return [*checks, *measure_matmul_speed(torch)], True


def check_python() -> Finding:
    """Checks the version of Python."""
    ok = sys.version_info >= (3, 11)
    return Finding("python", ok, platform.python_version(), "" if ok else "install Python 3.11 or newer")


def check_torch(torch: Any) -> Finding:
    """Checks the version of torch; 2.11 is the oldest supported."""
    ok = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 11)
    return Finding("torch", ok, torch.__version__, "" if ok else "pip install 'torch>=2.11'")


def check_compiler() -> Finding:
    """Checks for the C++ compiler that torch.compile calls."""
    if found := find_cxx_compiler():
        return Finding("compiler", True, found)
    missing = f"CXX={os.environ['CXX']} is not there" if os.environ.get("CXX") else "no C++ compiler"
    return Finding("compiler", False, missing, "install g++ or clang; without one nothing is compiled")


def check_processor() -> Finding:
    """Counts the cores that this process may use, and checks whether they multiply bfloat16 in hardware."""
    cores = count_cores()
    flags = set()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    bf16_units = [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")) if flag in flags]
    if bf16_units:
        return Finding("processor", True, f"{cores} cores, bfloat16 in hardware ({', '.join(bf16_units)})")
    return Finding("processor", True, f"{cores} cores, no bfloat16 in hardware: float32 is used")


def check_memory_and_disk() -> list[Finding]:
    """Checks free memory, and free disk space of the current directory; the quickstart needs about 2 GiB of each."""
    findings = []
    if (free := get_available_memory()) is not None:
        advice = "" if free >= 2 * GIB else "close other programs, or lower pretrain.micro_batch_size"
        findings.append(Finding("memory", free >= 2 * GIB, f"{free / GIB:.1f} GiB available", advice))
    free = shutil.disk_usage(".").free
    advice = "" if free >= 2 * GIB else "free space, or set run.out to another disk"
    return [*findings, Finding("disk", free >= 2 * GIB, f"{free / GIB:.1f} GiB free in this directory", advice)]


def check_gpus(torch: Any) -> Finding:
    """Checks which GPUs torch sees."""
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Finding("gpu", True, ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus))
    if torch.xpu.is_available():
        names = [torch.xpu.get_device_properties(i).name for i in range(torch.xpu.device_count())]
        return Finding("gpu", True, f"{', '.join(names)} (xpu)")
    if torch.backends.mps.is_available():
        return Finding("gpu", True, "Apple GPU (mps)")
    if Path("/proc/driver/nvidia").exists():
        return Finding("gpu", False, "an NVIDIA driver, but no CUDA in torch", "install a CUDA build of torch")
    return Finding("gpu", True, "none: training runs on the processor")


def measure_matmul_speed(torch: Any) -> list[Finding]:
    """Measures a square matrix product in float32 and bfloat16 on the device that training would choose.

    It warns where training would multiply bfloat16 and float32 is faster.
    """
    from fledgling.runtime.device import choose_training_dtype, measure_peak_flops
    from fledgling.runtime.world import choose_device

    device = torch.device(choose_device())
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    flops = {name: measure_peak_flops(device, dtype) for name, dtype in names.items()}
    ratio = flops["float32"] / flops["bfloat16"]
    advice = ""
    if choose_training_dtype(device) == torch.bfloat16 and ratio > FASTER_FLOAT32:
        advice = (
            f"float32 multiplies {ratio:.1f} times as fast here: --set run.dtype=float32 trains faster, but decodes "
            "more slowly; compare with `fledgling bench train` and `bench infer`"
        )
    return [
        Finding(
            f"{device.type} {name}",
            not (advice and name == "bfloat16"),
            f"{value / 1e9:,.0f} GFLOP/s in a matrix product",
            advice if name == "bfloat16" else "",
        )
        for name, value in flops.items()
    ]
