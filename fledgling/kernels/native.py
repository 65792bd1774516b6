"""`native.cpp`, compiled on this machine when it is first needed, and called through ctypes.

The compiler that training uses (torch.compile needs one) also makes decoding fast. The library is stored in a cache
folder of the user under the hash of its source, its flags and the processor. Where there is no compiler or no AVX-512
with bf16, `load_library` returns None and PyTorch computes everything, more slowly and with equal results up to
rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fledgling.record.durable import make_directory, replace_file
from fledgling.runtime.compiler import find_cxx_compiler

SOURCE = Path(__file__).with_name("native.cpp")
COMPILER_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
MAX_ROWS = 64  # with more rows the product is bound by arithmetic, and PyTorch's is as fast
ENV_SWITCH = "FLEDGLING_NATIVE"  # "0": PyTorch computes everything


class NativeMatrix(ctypes.Structure):
    """`Matrix` of native.cpp. It holds addresses: the caller must keep the tensors."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "scales", "bias", "levels")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "bits", "group")),
    )


def is_supported() -> bool:
    """Whether this processor has the instructions that native.cpp needs."""
    features = torch.cpu.get_capabilities()
    return all(features.get(name, False) for name in ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16"))


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Returns the compiled library, or None where it is not possible; a failing compiler is reported once on stderr."""
    compiler = find_cxx_compiler()
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
        print(f"decoding without native kernels: {compiler} or its library failed ({problem})", file=sys.stderr)
        return None


def _compile_library(compiler: str) -> Path:
    """Returns the library's file; compiles it if it does not exist."""
    inputs = (SOURCE.read_bytes(), *map(str.encode, (*COMPILER_FLAGS, compiler, platform.machine(), _cpu_features())))
    name = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledgling"
    path = folder / f"native-{name}.so"
    if not path.is_file():
        make_directory(folder, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / path.name
            subprocess.run(
                [compiler, *COMPILER_FLAGS, "-o", built, SOURCE], check=True, capture_output=True, timeout=300
            )
            replace_file(built, path)  # flushed: an empty library under this name would never be built again
    return path


def _cpu_features() -> str:
    """Returns the processor's features by name, as a part of the hash."""
    return ",".join(sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True))


@functools.cache
def _make_levels() -> Tensor:
    """Returns the 16 levels of 4 bits, twice, bf16 (32,); native.cpp holds their address."""
    from fledgling.kernels.format import LEVELS_4BIT

    return torch.tensor(LEVELS_4BIT * 2, dtype=torch.bfloat16)


def describe_matrix(values: Tensor, scales: Tensor | None, bits: int, bias: Tensor | None = None) -> NativeMatrix:
    """Describes a matrix to native.cpp: values of `format.quantize_matrix`, or bf16 (N, K); bias fp32 (N,)."""
    for tensor in (values, scales, bias):
        assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    rows, columns = values.shape[0], values.shape[1] * (2 if bits == 4 else 1)
    group = columns // scales.shape[1] if scales is not None else columns
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (values, scales, bias)]
    return NativeMatrix(*addresses, _make_levels().data_ptr(), rows, columns, bits, group)


def multiply_matrix(x: Tensor, matrix: NativeMatrix) -> Tensor:
    """Computes x (..., K) bf16 -> (..., N) fp32, for at most MAX_ROWS rows."""
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], matrix.rows)
    count = ctypes.c_int64(x.numel() // matrix.columns)
    library = load_library()
    assert library is not None
    library.fledgling_linear(
        ctypes.byref(matrix),
        ctypes.c_void_p(x.data_ptr()),
        count,
        ctypes.c_void_p(out.data_ptr()),
        ctypes.c_int64(torch.get_num_threads()),
    )
    return out


def widen_matrix(matrix: NativeMatrix) -> Tensor:
    """Dequantizes a matrix: returns (N, K) bf16."""
    out = torch.empty(matrix.rows, matrix.columns, dtype=torch.bfloat16)
    threads = ctypes.c_int64(torch.get_num_threads())
    library = load_library()
    assert library is not None
    library.fledgling_widen(ctypes.byref(matrix), ctypes.c_void_p(out.data_ptr()), threads)
    return out
