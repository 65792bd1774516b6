"""Measures the native products alone: one row against a read of as many bytes, more rows against a matrix product.

Matrices of one shape and width are multiplied in turn. A set of a few MB comes from a cache, one of several hundred MB
from memory. Every figure is the best of its repetitions: another process on a core halves single ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fledgling.bench.infer import measure_stream_bandwidth
from fledgling.config import UserError
from fledgling.kernels import native
from fledgling.kernels.format import DEFAULT_GROUP_SIZES
from fledgling.runtime.cores import count_cores
from fledgling.runtime.device import measure_peak_flops

SHAPES = ((768, 768), (3072, 768), (768, 3072))  # rows, columns: the matrices of a block of width 768
BITS = (16, 8, 4)
ARITHMETIC_BYTES = 24 << 20  # of the matrices that several rows multiply


def measure_products(megabytes: Sequence[int], rows: Sequence[int], repeats: int) -> dict[str, Any]:
    """Returns the shares of the measured limits that products reach.

    Args:
        megabytes: of the matrices that one row multiplies.
        rows: of x, several.
        repeats: of each product of a whole set.

    Raises:
        UserError: no native kernels here, or a number below 1.
    """
    if native.load_native_library() is None:
        raise UserError("no native kernels here: they need a C++ compiler or a compiled wheel (docs/quantization.md)")
    if not megabytes or not rows or min(*megabytes, *rows, repeats) < 1 or max(rows) > native.MAX_ROWS:
        raise UserError(f"megabytes, rows and repeats: expected at least 1, and at most {native.MAX_ROWS} rows")
    device = torch.device("cpu")
    torch.set_num_threads(count_cores())
    reads = []
    for size in megabytes:
        limit = measure_stream_bandwidth(device, size << 20)
        for bits in BITS:
            speeds = [_best_speed(bits, shape, 1, size << 20, repeats)[0] for shape in SHAPES]
            reads.append({"megabytes": size, "limit": limit, "bits": bits, "speeds": speeds})
    peak = max(measure_peak_flops(device, torch.bfloat16) for _ in range(3))
    products = []
    for count in rows:
        for bits in BITS:
            flops = [_best_speed(bits, shape, count, ARITHMETIC_BYTES, repeats)[1] for shape in SHAPES]
            products.append({"rows": count, "bits": bits, "flops": flops})
    return {"threads": torch.get_num_threads(), "reads": reads, "peak": peak, "products": products}


def _best_speed(bits: int, shape: tuple[int, int], rows: int, size: int, repeats: int) -> tuple[float, float]:
    """Returns bytes and FLOP a second of a product of `rows` rows with matrices that have `size` bytes together."""
    matrices, total = make_matrices(bits, shape, size)
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()

    def multiply_all() -> None:
        for matrix, *_ in matrices:
            native.multiply_matrix(x, matrix)

    seconds = _time_best(multiply_all, repeats)
    return total / seconds, 2 * rows * shape[0] * shape[1] * len(matrices) / seconds


def make_matrices(bits: int, shape: tuple[int, int], size: int) -> tuple[list[tuple[native.NativeMatrix, Any]], int]:
    """Returns as many matrices as have about `size` bytes, at least two, with their tensors; and the bytes."""
    rows, columns = shape
    matrices: list[tuple[native.NativeMatrix, Any]] = []
    total = 0
    while len(matrices) < 2 or total < size:
        values: Tensor
        scales: Tensor | None = None
        if bits == 16:
            values = torch.full(shape, 1.0 + len(matrices), dtype=torch.bfloat16)
        else:
            dtype = torch.int8 if bits == 8 else torch.uint8
            values = torch.full((rows, columns * bits // 8), len(matrices) % 100, dtype=dtype)
            scales = torch.full((rows, columns // DEFAULT_GROUP_SIZES[bits]), 0.01, dtype=torch.bfloat16)
        total += values.nbytes + (0 if scales is None else scales.nbytes)
        matrices.append((native.describe_matrix(values, scales, bits), (values, scales)))
    return matrices, total


def _time_best(function: Callable[[], None], repeats: int) -> float:
    """Returns the seconds of the fastest of several calls, after one that is not timed."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def format_products(result: dict[str, Any]) -> str:
    """Returns the result of `measure_products` as two tables."""
    names = "".join(f"{f'{rows} x {columns}':>20}" for rows, columns in SHAPES)
    lines = [f"{result['threads']} threads; one row, GB/s and share of a read of as many bytes", f"{'':<26}{names}"]
    for row in result["reads"]:
        cells = "".join(f"{speed / 1e9:>12.1f} {speed / row['limit']:>7.0%}" for speed in row["speeds"])
        lines.append(f"{row['megabytes']:>4} MiB ({row['limit'] / 1e9:5.1f}), {row['bits']:>2} bits{cells}")
    lines.append(f"several rows, GFLOP/s and share of a matrix product in bf16 ({result['peak'] / 1e9:,.0f} GFLOP/s)")
    for row in result["products"]:
        cells = "".join(f"{flops / 1e9:>12.0f} {flops / result['peak']:>7.0%}" for flops in row["flops"])
        lines.append(f"{row['rows']:>10} rows, {row['bits']:>2} bits {cells}")
    return "\n".join(lines)
