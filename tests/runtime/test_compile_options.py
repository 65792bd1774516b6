"""Compiled code stays when the number of threads falls, where its loops are right for fewer."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from fledgling.runtime import compile_options as module
from fledgling.runtime.compile_options import compile_options
from fledgling.runtime.compiler import find_cxx_compiler

CPU = torch.device("cpu")
CORES = os.cpu_count()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch._dynamo.reset()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def scaled_sums(x):
    return (x * 2 + 1).tanh().sum(dim=1), x.square().sum()


def count_compilations(function, x):
    counters.clear()
    return function(x), counters["frames"]["total"]


@pytest.mark.skipif(not find_cxx_compiler() or CORES == 1, reason="needs a compiler and two cores")
@pytest.mark.skipif(torch.__version__ < module.LEAVES_THREADS_TO_OPENMP, reason="its loops have a number of threads")
def test_code_for_all_cores_is_not_compiled_again_for_fewer_and_code_for_fewer_is_for_all(threads):
    x = torch.randn(513, 777)
    compiled, found = torch.compile(scaled_sums, dynamic=False, **compile_options(CPU)), []
    for number in (1, CORES, 1, CORES):
        threads(number)
        values, compilations = count_compilations(compiled, x)
        found.append(compilations)
        for value, expected in zip(values, scaled_sums(x), strict=True):
            torch.testing.assert_close(value, expected)
    assert found == [1, 1, 0, 0], "code for one thread keeps its guard"
    for options, again in ((compile_options(CPU), 0), ({}, 1)):
        torch._dynamo.reset()
        compiled = torch.compile(scaled_sums, dynamic=False, **options)
        threads(CORES)
        compiled(x)
        threads(1)
        assert count_compilations(compiled, x)[1] == again


def test_where_loops_have_a_number_of_threads_all_guards_stay(threads, monkeypatch):
    assert compile_options(torch.device("cuda")) == {}
    guards = [SimpleNamespace(guard_type=kind) for kind in ("GLOBAL_STATE", "TENSOR_MATCH")]
    threads(CORES)
    assert module.keep_guards(guards) == [False, True]
    monkeypatch.setattr(module.os, "cpu_count", lambda: CORES + 1)  # as in a container with fewer cores
    assert module.keep_guards(guards) == [True, True]
