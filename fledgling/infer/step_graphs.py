"""How decoding steps run on a CUDA device: blocks compiled, and the whole captured as a CUDA graph for each shape.

A step of few rows is hundreds of kernels of a few microseconds each; launched one by one they take the host longer than
the device. A graph launches all of them with one call. It is captured by `torch.cuda.CUDAGraph` and not by
`torch.compile(mode="reduce-overhead")`: the latter runs a function whose inputs it changes (here the cache and the
tables of the rows) without a graph unless each address is marked as static, copies other inputs on every call, and
keeps a tree of graphs of which it has to know each path. Here every address is fixed by construction, the step has no
inputs, and one memory pool serves all graphs, which run one after another.

Sources: PyTorch documentation, "CUDA Graphs" (notes/cuda) and "CUDAGraph Trees" (torch.compiler).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec

import torch
from torch import Tensor

from fledgling.runtime.device import raise_recompile_limit

P = ParamSpec("P")

RUNS_BEFORE_CAPTURE = 2  # plain runs of a shape: they load and compile its kernels, which a capture must not do


class StepGraphs:
    """Runs a step's function: plainly at first, then by a graph where the device has graphs.

    Args:
        captures: whether to capture; False always runs the function.
        report: called with one line when capturing fails for the first time; steps of that shape then run plainly.
    """

    def __init__(self, captures: bool, report: Callable[[str], None] | None = None) -> None:
        self.captures = captures
        self.report = report or print_notice
        self.runs: dict[Hashable, int] = {}
        self.failed: set[Hashable] = set()
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool: Any = None  # one memory pool for all graphs, made with the first

    def run(self, key: tuple[Hashable, ...], step: Callable[[], Tensor]) -> Tensor:
        """Runs a step and returns its outputs, which the next run of any step may overwrite.

        Args:
            key: what the step's kernels and addresses depend on. Its first part is the version of the storage: with a
                new one all earlier graphs are dropped.
            step: takes its inputs from fixed addresses, and reads nothing of the device.
        """
        if not self.captures:
            return step()
        if any(other[0] != key[0] for other in self.runs):  # type: ignore[index]
            self.runs.clear()
            self.failed.clear()
            self.graphs.clear()
        if key in self.failed:
            return step()
        if key not in self.graphs:
            self.runs[key] = self.runs.get(key, 0) + 1
            if self.runs[key] <= RUNS_BEFORE_CAPTURE:
                return step()
            try:
                self.graphs[key] = self._capture(step)
            except RuntimeError as error:
                if not self.failed:
                    reason = " ".join(str(error).split())[:200]
                    self.report(f"some decoding steps run without CUDA graphs: capturing one failed: {reason}")
                self.failed.add(key)
                return step()
        graph, outputs = self.graphs[key]
        graph.replay()
        return outputs

    def _capture(self, step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Returns a graph of the step and its outputs; capturing computes nothing."""
        if self.pool is None or not self.graphs:  # a pool ends with its last graph, and its handle with it
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = step()
        return graph, outputs


def compile_or_fall_back(
    function: Callable[P, Tensor], report: Callable[[str], None] | None = None
) -> Callable[P, Tensor]:
    """Returns the function compiled; should compiling fail, it reports that once and runs as it is.

    The function may be run twice with the same arguments. Sizes that change are compiled as variables.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit  # imports the compiler, which nothing else here needs

    raise_recompile_limit()
    chosen = torch.compile(function, fullgraph=True)

    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        nonlocal chosen
        try:
            return chosen(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, FailOnRecompileLimitHit) as error:
            if chosen is function:
                raise
            chosen = function
            reason = " ".join(str(error).split())[:200]
            (report or print_notice)(f"decoding runs without the compiler: compiling a block failed: {reason}")
            return function(*args, **kwargs)

    return run


def print_notice(line: str) -> None:
    """Prints a line to stderr."""
    print(line, file=sys.stderr, flush=True)
