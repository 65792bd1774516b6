"""`native.cpp`, compiled on this machine the first time it is wanted, and called through ctypes.

The one idea: the compiler that trains (torch.compile needs one) also makes the decoding quick. The library lies under a
name that is the hash of its source, its flags and the processor, in a folder of the user's own; where there is no
compiler or no AVX-512 with bf16, `library()` is None and everything takes torch's way, slower and with equal results.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.cpp")
COMPILER_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
MAX_ROWS = 64  # rows: with more, the product is bound by arithmetic and torch's is as good
ENV_SWITCH = "FLEDGLING_NATIVE"  # "0": torch's way everywhere


class NativeMatrix(ctypes.Structure):
    """As in native.cpp. Holds addresses: whoever fills it keeps the tensors."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "scales", "bias", "levels")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "bits", "group")),
    )


def is_supported() -> bool:
    """Whether this processor has what native.cpp is written for."""
    has = torch.cpu.get_capabilities()
    return all(has.get(name, False) for name in ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16"))


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The compiled library, or None where it cannot be had; a compiler that fails is told once on stderr."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
    if (
        os.environ.get(ENV_SWITCH) == "0"
        or compiler is None
        or not sys.platform.startswith("linux")
        or not is_supported()
    ):
        return None
    try:
        return ctypes.CDLL(str(_compile_library(compiler)))
    except (OSError, subprocess.SubprocessError) as problem:
        print(f"decoding without native products: {compiler} or its result failed ({problem})", file=sys.stderr)
        return None


def _compile_library(compiler: str) -> Path:
    """The library's file, compiled if it is not there yet."""
    what = (SOURCE.read_bytes(), *map(str.encode, (*COMPILER_FLAGS, compiler, platform.machine(), _cpu_features())))
    name = hashlib.sha256(b"\0".join(what)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledgling"
    path = folder / f"native-{name}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / path.name
            subprocess.run(
                [compiler, *COMPILER_FLAGS, "-o", made, SOURCE], check=True, capture_output=True, timeout=300
            )
            os.replace(made, path)
    return path


def _cpu_features() -> str:
    return ",".join(sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True))


@functools.cache
def _make_levels() -> Tensor:
    from fledgling.kernels.format import LEVELS_4BIT

    return torch.tensor(LEVELS_4BIT * 2, dtype=torch.bfloat16)


def describe_matrix(values: Tensor, scales: Tensor | None, bits: int, bias: Tensor | None = None) -> NativeMatrix:
    """A matrix for native.cpp: values as `format.quantize` gives them, or bf16 (N, K); bias fp32 (N,)."""
    for tensor in (values, scales, bias):
        assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    rows, columns = values.shape[0], values.shape[1] * (2 if bits == 4 else 1)
    group = columns // scales.shape[1] if scales is not None else columns
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (values, scales, bias)]
    return NativeMatrix(*addresses, _make_levels().data_ptr(), rows, columns, bits, group)


def multiply_matrix(x: Tensor, matrix: NativeMatrix) -> Tensor:
    """x (..., K) bf16 -> (..., N) fp32, for few rows."""
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], matrix.rows)
    count = ctypes.c_int64(x.numel() // matrix.columns)
    load_library().fledgling_linear(
        ctypes.byref(matrix),
        ctypes.c_void_p(x.data_ptr()),
        count,
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_int64(torch.get_num_threads()),
    )
    return out


def widen_matrix(matrix: NativeMatrix) -> Tensor:
    """A quantized matrix made whole: (N, K) bf16."""
    out = torch.empty(matrix.rows, matrix.columns, dtype=torch.bfloat16)
    threads = ctypes.c_int64(torch.get_num_threads())
    load_library().fledgling_widen(ctypes.byref(matrix), ctypes.c_void_p(out.data_ptr()), threads)
    return out
