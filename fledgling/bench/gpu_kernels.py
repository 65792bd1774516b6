"""Parts of the GPU check that time single kernels: the peaks, attention, the head with its loss, Muon's products.

Shapes are those of depth 20: 32 rows of 2,048 tokens, 10 heads of 128, 65,536 entries. Times are medians of device
events. Each candidate runs separately: one that this machine cannot run gives a row with its error.

B rows, T tokens, H heads, D head width, C width, V vocabulary.
"""

from __future__ import annotations

import inspect
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.bench.gpu import get_device, report_attempt, report_result
from fledgling.model import logprob
from fledgling.model.head_chunk import CHUNK_LOGITS
from fledgling.optim.rules import orthogonalize
from fledgling.runtime.device import choose_dtype, name_dtype

Result = TypeVar("Result")
PROFILED_KERNELS = 25  # longest kernels of a step that are listed


def measure_ms(function: Callable[[], object], repeats: int = 7, warmup: int = 2) -> float:
    """Returns the median milliseconds of a call, by device events on a GPU."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start_time = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start_time))
    return statistics.median(times)


def synchronize_device() -> None:
    """Waits until the device has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_steps(queue: Callable[[], Callable[[], Result]], steps: int, warmup: int) -> tuple[float, float, Result]:
    """Returns the seconds of the first step and of a later one, and the result of the last.

    Args:
        queue: queues a step, and returns what waits for its result.
        steps: timed steps, after `warmup` steps that are not timed.
        warmup: at least 1.
    """
    first, start_time = 0.0, time.perf_counter()
    reads: deque[Callable[[], Result]] = deque()
    for number in range(warmup + steps):
        if number == warmup:
            synchronize_device()
            start_time = time.perf_counter()
        reads.append(queue())
        if len(reads) > 1:
            reads.popleft()()  # one step late, as in training
        if number == 0:
            synchronize_device()
            first = time.perf_counter() - start_time
    synchronize_device()  # once at the end: in training nothing waits between steps either
    return first, (time.perf_counter() - start_time) / steps, reads.popleft()()


def profile_step(step: Callable[[], object], path: Path) -> dict[str, Any]:
    """Profiles one step, and writes its longest kernels to `path`.

    Returns:
        The number of kernels and copies, and their time in milliseconds: {"kernels", "device_ms"}.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda = torch.cuda.is_available()
    with profiler(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profile:
        step()
        synchronize_device()
    rows = sorted(
        ((e.self_device_time_total if cuda else e.self_cpu_time_total, e.count, e.key) for e in profile.key_averages()),
        reverse=True,
    )
    rows = [row for row in rows if row[0] > 0]  # the rest are calls of the host, such as those that launch a kernel
    whole, count = sum(row[0] for row in rows), sum(row[1] for row in rows)
    lines = [f"{count:,} kernels and copies, {whole / 1e3:,.1f} ms in all", "      ms  share   calls  kernel"]
    for spent, calls, name in rows[:PROFILED_KERNELS]:
        lines.append(f"{spent / 1e3:8,.2f} {spent / max(whole, 1):6.1%} {calls:7,}  {name[:150]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"kernels": count, "device_ms": whole / 1e3}


def report_candidate(name: str, measure: Callable[[], dict]) -> None:
    """Reports what a candidate's measurement returns, or its error, and frees the cached memory."""
    report_attempt(name, measure)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_peaks(tiny: bool) -> None:
    """Reports the GPU's name, and the measured peak rates to which other results are compared."""
    device = get_device()
    report_result(
        torch=torch.__version__, device=device.type, compilers=[n for n in ("gcc", "g++", "nvcc") if shutil.which(n)]
    )
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        report_result(
            name=about.name, memory_gib=about.total_memory / 2**30, multiprocessors=about.multi_processor_count
        )
    size = 64 if tiny else 8192
    dtype = choose_dtype(device)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def rate(product: Callable[[], object]) -> dict:
        return {"tflops": 2 * size**3 / measure_ms(product, 20, 5) / 1e9}

    report_candidate(f"{name_dtype(dtype)} product", lambda: rate(lambda: a @ b))

    def fp8() -> dict:
        one = torch.ones((), device=device)
        x, y = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()  # the second by columns
        return rate(lambda: torch._scaled_mm(x, y, scale_a=one, scale_b=one, out_dtype=dtype))

    report_candidate("fp8 product", fp8)

    def copy() -> dict:
        source = torch.randn((1 << 20) if tiny else (1 << 30), device=device)  # 4 GiB
        target = torch.empty_like(source)
        return {"gb_per_second": 2 * source.nbytes / measure_ms(lambda: target.copy_(source)) / 1e6}

    report_candidate("copy", copy)

    def launch() -> dict:
        x = torch.zeros(8, device=device)
        return {"microseconds": measure_ms(lambda: [x.add_(1) for _ in range(1000)])}

    report_candidate("1,000 tiny operations, each", launch)


@dataclass(frozen=True)
class AttentionInput:
    """Queries, keys and values (B, H, T, D) of one layer, the gradient of its result, and the documents of a row.

    Attributes:
        numbers: document of each position (T,).
        causal: FLOPs of forward and backward where a row is one document.
        separate: the same where the documents are apart.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    numbers: Tensor
    causal: float
    separate: float

    def measure(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], work: float) -> dict[str, float]:
        """Times forward and backward of an implementation, of `work` FLOPs."""

        def both() -> None:
            torch.autograd.grad(function(self.q, self.k, self.v), (self.q, self.k, self.v), self.grad)

        ms = measure_ms(both)
        return {"ms": ms, "tflops": work / ms / 1e9}


def make_attention_input(rows: int, time_: int, heads: int, width: int) -> AttentionInput:
    """Returns random rows (B, T) of three documents each, with heads (H) of `width` (D)."""
    device = get_device()
    dtype = choose_dtype(device)
    q, k, v = (torch.randn(rows, heads, time_, width, device=device, dtype=dtype).requires_grad_() for _ in range(3))
    grad = torch.randn_like(q)
    numbers = (torch.arange(time_, device=device) * 3 // time_).int()
    causal = 3.5 * 4 * rows * heads * width * time_ * time_ / 2
    separate = causal * float((torch.bincount(numbers).double() / time_).square().sum())
    return AttentionInput(q, k, v, grad, numbers, causal, separate)


def measure_attention(tiny: bool) -> None:
    """Times forward and backward of one layer's attention in each implementation that training could use."""
    case = make_attention_input(*((2, 128, 2, 16) if tiny else (32, 2048, 10, 128)))
    sdpa, time_ = F.scaled_dot_product_attention, case.q.shape[2]
    visible = torch.ones(time_, time_, dtype=torch.bool, device=case.q.device).tril()
    dense = (visible & (case.numbers[:, None] == case.numbers)).expand(len(case.q), 1, -1, -1)
    added = torch.zeros(dense.shape, dtype=case.q.dtype, device=dense.device).masked_fill_(~dense, float("-inf"))
    whole = dense.contiguous()
    for name, mask in (("added", added), ("boolean", whole)):
        masked = partial(sdpa, attn_mask=mask)
        report_candidate(f"sdpa, {name} (B, 1, T, T) mask", partial(case.measure, masked, case.separate))
    causal = partial(sdpa, is_causal=True)
    report_candidate("sdpa, causal", partial(case.measure, causal, case.causal))

    def backend(name: str) -> dict:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel([getattr(SDPBackend, name)]):
            return case.measure(causal, case.causal)

    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        report_candidate(f"sdpa, causal, {name}", partial(backend, name))
    report_candidate("varlen, three documents a row", partial(_measure_varlen, case))
    report_candidate("flex, compiled, three documents a row", partial(_measure_flex, case))


def _measure_varlen(case: AttentionInput) -> dict[str, float]:
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, time_, width = case.q.shape
    lengths = torch.bincount(case.numbers)
    ends = torch.cat([lengths.new_zeros(1), lengths.repeat(rows).cumsum(0)]).int()
    longest = int(lengths.max())
    known = inspect.signature(varlen_attn).parameters
    attend: Any = varlen_attn  # its signature differs between torch 2.11 and 2.13
    how: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = (t.transpose(1, 2).reshape(-1, heads, width) for t in (q, k, v))
        y: Any = attend(*flat, ends, ends, longest, longest, **how)
        return y.view(rows, time_, heads, width).transpose(1, 2)

    return case.measure(run, case.separate)


def _measure_flex(case: AttentionInput) -> dict[str, float]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows, _, time_, _ = case.q.shape

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (case.numbers[i] == case.numbers[j])

    start_time = time.perf_counter()
    blocks = create_block_mask(mask_mod, rows, None, time_, time_, device=case.q.device.type)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    timing = case.measure(partial(compiled, block_mask=blocks), case.separate)
    return {**timing, "compile_seconds": time.perf_counter() - start_time}


def measure_head(tiny: bool) -> None:
    """Times forward and backward of the head with the loss, for several numbers of tokens in a chunk."""
    device = get_device()
    tokens, width, vocabulary = (256, 32, 512) if tiny else (65536, 1280, 65536)
    hidden = torch.randn(tokens, width, device=device, dtype=choose_dtype(device)).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=device) * width**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=device)
    flops = 6 * tokens * width * vocabulary

    def chunked(chunk: int, compiled: bool) -> dict:
        kernels = logprob.EAGER
        if compiled:
            torch._dynamo.reset()  # each size of a chunk is compiled separately
            kernels = logprob.compile_logprob_kernels(device)
        CHUNK_LOGITS[device.type] = chunk * vocabulary

        def both() -> None:
            loss = logprob.cross_entropy_sum(hidden, weight, targets, 15.0, 0.0, kernels=kernels)
            torch.autograd.grad(loss, (hidden, weight))

        ms = measure_ms(both, repeats=3, warmup=1 if chunk < 1024 else 2)
        return {"ms": ms, "tflops": flops / ms / 1e9}

    for chunk in (16, 64) if tiny else (4096, 16384, 1024, 64):
        report_candidate(f"chunks of {chunk:,} tokens", partial(chunked, chunk, not tiny))
    report_candidate("chunks of 4,096 tokens, not compiled", lambda: chunked(4096, False))


def measure_muon(tiny: bool) -> None:
    """Times Muon's orthogonalization of a model's matrices: one by one and stacked by shape, eager and compiled."""
    device = get_device()
    depth, width = (2, 32) if tiny else (20, 1280)
    shapes = {(width, width): 4 * depth, (4 * width, width): depth, (width, 4 * width): depth}
    stacks = [torch.randn(count, *shape, device=device) for shape, count in shapes.items()]
    # Five iterations of three products; the Gram matrix is C x C in all shapes.
    work = sum(5 * (4 * width * width * max(shape) + 2 * width**3) * count for shape, count in shapes.items())

    def measured(function: Callable[[], object]) -> dict:
        ms = measure_ms(function, repeats=3)
        return {"ms": ms, "tflops": work / ms / 1e9}

    one = [matrix[None] for stack in stacks for matrix in stack]
    run = partial(orthogonalize, dtype=choose_dtype(device))
    report_candidate("one by one", lambda: measured(lambda: [run(matrix) for matrix in one]))
    report_candidate("stacked by shape", lambda: measured(lambda: [run(stack) for stack in stacks]))
    if not tiny:
        fused = torch.compile(run, dynamic=False)
        report_candidate("one by one, compiled", lambda: measured(lambda: [fused(matrix) for matrix in one]))
        report_candidate("stacked by shape, compiled", lambda: measured(lambda: [fused(stack) for stack in stacks]))
