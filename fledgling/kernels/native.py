"""The native kernels (`cpp/`), loaded in the best variant that this processor runs, and called through ctypes.

A wheel may hold compiled variants. Otherwise the compiler that training uses (torch.compile needs one) compiles one
when it is first needed, into a cache folder of the user, under a hash of sources and flags. Where there is neither, or
another processor, `load_native_library` returns None and PyTorch computes everything, more slowly and with equal
results up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fledgling.config import UserError
from fledgling.kernels.format import LEVELS_4BIT, fits_format
from fledgling.kernels.native_build import PREBUILT_FOLDER, Variant, compile_variant, is_whole, list_variants
from fledgling.record.durable import make_directory, replace_file
from fledgling.runtime.compiler import find_cxx_compiler

MAX_ROWS = 64  # with more rows the product is bound by arithmetic, and PyTorch's is as fast
MAX_GROUPS, WIDE_BITS = 1024, 5  # as in product.h
ENV_SWITCH = "FLEDGLING_NATIVE"  # "0": PyTorch computes everything; or the name of a variant
ADDRESS, COUNT = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS = {  # of the functions of step.cpp
    "fledgling_linear": (ADDRESS, ADDRESS, COUNT, ADDRESS, COUNT),
    "fledgling_widen": (ADDRESS, ADDRESS, COUNT),
    "fledgling_read": (ADDRESS, COUNT, COUNT),
    "fledgling_step": (*[ADDRESS] * 4, COUNT, *[ADDRESS] * 3, COUNT, COUNT, ADDRESS, ADDRESS, COUNT),
}


class NativeMatrix(ctypes.Structure):
    """`Matrix` of product.h. It holds addresses: the caller must keep the tensors that it gave."""

    derived: tuple[Tensor, Tensor] | None = None  # fractions and row_scales

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "scales", "bias", "levels", "fractions", "row_scales")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "bits", "group")),
    )


def list_usable_variants() -> list[Variant]:
    """Returns the variants that this processor runs, the best first."""
    features = {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    return [variant for variant in list_variants() if variant.features <= features]


@functools.cache
def load_native_library() -> ctypes.CDLL | None:
    """Returns the library of the best variant, or of the one that ENV_SWITCH names.

    Returns None where that is not possible; a failing compiler is reported once on stderr.

    Raises:
        UserError: ENV_SWITCH names no variant that this processor runs.
    """
    requested, variants = os.environ.get(ENV_SWITCH), list_usable_variants()
    if requested == "0":
        return None
    if requested:
        chosen = [variant for variant in variants if variant.name == requested]
        if not chosen:
            names = ", ".join(["0", *(variant.name for variant in variants)])
            raise UserError(f"{ENV_SWITCH}={requested}: expected one of {names} on this processor, or no such variable")
        variants = chosen
    return load_variant(variants[0]) if variants else None


def load_variant(variant: Variant) -> ctypes.CDLL | None:
    """Returns the library of one variant: a prebuilt one, one that was compiled before, or one compiled now."""
    prebuilt = PREBUILT_FOLDER / variant.file_name
    if prebuilt.is_file():
        try:
            if not is_whole(prebuilt):
                raise OSError(f"{prebuilt} was cut or changed: install the wheel again")
            return open_library(prebuilt)
        except OSError as problem:  # also where a library that it needs is missing
            print(f"the prebuilt native kernels cannot be loaded ({problem})", file=sys.stderr)
    compiler = find_cxx_compiler()
    if compiler is None:
        return None
    try:
        return open_library(_compile_library(compiler, variant))
    except (OSError, subprocess.SubprocessError) as problem:
        print(f"decoding without native kernels: {compiler} or its library failed ({problem})", file=sys.stderr)
        return None


def open_library(path: Path) -> ctypes.CDLL:
    """Opens a compiled variant. Raises OSError."""
    library = ctypes.CDLL(str(path))
    for name, types in ARGUMENTS.items():
        getattr(library, name).argtypes = types
    return library


def _compile_library(compiler: str, variant: Variant) -> Path:
    """Returns the library's file in the user's cache; compiles it if it does not exist, was cut or changed."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledgling"
    path = folder / variant.file_name
    is_there = path.is_file()
    if is_there and not is_whole(path):
        print(f"{path} was cut or changed: the native kernels are compiled again", file=sys.stderr)
        is_there = False
    if not is_there:
        make_directory(folder, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / path.name
            compile_variant(compiler, variant, built)
            replace_file(built, path)  # flushed: an empty library under this name would never be built again
    return path


@functools.cache
def _make_levels() -> Tensor:
    """Returns the 16 levels of 4 bits, int8 (16,); the library holds their address."""
    return torch.tensor(LEVELS_4BIT, dtype=torch.int8)


def can_multiply(columns: int, groups: int, bits: int) -> bool:
    """Whether the products take rows of `columns` columns with `groups` scales, in 8 or 4 bits.

    They read and write whole groups and whole interleaved columns, without a check of their own.
    """
    return groups <= MAX_GROUPS and fits_format(columns, groups, bits)


def describe_matrix(values: Tensor, scales: Tensor | None, bits: int, bias: Tensor | None = None) -> NativeMatrix:
    """Describes a matrix to the library: values of `format.quantize_matrix`, or bf16 (N, K); bias fp32 (N,)."""
    for tensor in (values, scales, bias):
        assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    rows, columns = values.shape[0], values.shape[1] * (2 if bits == 4 else 1)
    group = columns // scales.shape[1] if scales is not None else columns
    derived = None if scales is None else derive_fractions(scales)
    addresses = [None if part is None else part.data_ptr() for part in (values, scales, bias, _make_levels())]
    matrix = NativeMatrix(*addresses, *(part.data_ptr() for part in derived or ()))
    matrix.rows, matrix.columns, matrix.bits, matrix.group, matrix.derived = rows, columns, bits, group, derived
    return matrix


def derive_fractions(scales: Tensor) -> tuple[Tensor, Tensor]:
    """scales (N, groups) -> fractions int16 (N, groups) of each row's largest, and the rows' scales fp32 (N,)."""
    exact = scales.float()
    largest = exact.abs().amax(1, keepdim=True)
    fractions = (exact / largest * 32767).nan_to_num(0.0).round().to(torch.int16)
    return fractions, largest[:, 0] * (32768 / 32767 / 2**WIDE_BITS)


def refresh_matrix(matrix: NativeMatrix, scales: Tensor) -> None:
    """Derives a matrix's fractions again from scales that were changed in place.

    Args:
        matrix: whose fractions were derived from the scales.
        scales: (N, K / group).
    """
    assert matrix.derived is not None
    for kept, changed in zip(matrix.derived, derive_fractions(scales), strict=True):
        kept.copy_(changed)


def add_bias(matrix: NativeMatrix, bias: Tensor | None) -> NativeMatrix:
    """Returns the description of the same matrix with a bias fp32 (N,), which the caller keeps."""
    biased = NativeMatrix.from_buffer_copy(matrix)
    biased.bias, biased.derived = None if bias is None else bias.data_ptr(), matrix.derived
    return biased


def multiply_matrix(x: Tensor, matrix: NativeMatrix) -> Tensor:
    """Computes x (..., K) bf16 on the CPU -> (..., N) fp32, for at most MAX_ROWS rows."""
    assert x.shape[-1] == matrix.columns and x.dtype == torch.bfloat16 and x.device.type == "cpu"
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], matrix.rows)
    count, threads = x.numel() // matrix.columns, torch.get_num_threads()
    library = load_native_library()
    assert library is not None
    library.fledgling_linear(ctypes.byref(matrix), x.data_ptr(), count, out.data_ptr(), threads)
    return out


def read_memory(vector: Tensor) -> bool:
    """Reads a vector (n,) int64 once, as a product of one row reads its weights; False without native kernels."""
    library = load_native_library()
    if library is None:
        return False
    library.fledgling_read(vector.data_ptr(), vector.numel(), torch.get_num_threads())
    return True


def widen_matrix(matrix: NativeMatrix) -> Tensor:
    """Dequantizes a matrix: returns (N, K) bf16."""
    out = torch.empty(matrix.rows, matrix.columns, dtype=torch.bfloat16)
    library = load_native_library()
    assert library is not None
    library.fledgling_widen(ctypes.byref(matrix), out.data_ptr(), torch.get_num_threads())
    return out
