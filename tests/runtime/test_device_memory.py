"""The peak of live tensor bytes: new allocations and tensors that existed before."""

import gc

import pytest
import torch

from fledgling.runtime.device_memory import count_live_tensor_bytes, measure_peak_memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_garbage():
    """Nothing that earlier tests have left is freed while a test counts."""
    gc.collect()


def test_the_peak_is_the_highest_level_and_not_the_sum():
    before = torch.ones(1_000)
    live_before = count_live_tensor_bytes()
    assert live_before >= before.nbytes
    with measure_peak_memory(CPU) as peak:
        for _ in range(3):
            large = torch.ones(500_000)
            del large
        small = torch.ones(10_000)
    assert small.nbytes < peak.bytes - live_before - 2_000_000 + 100_000 < 200_000, "one large tensor at a time"


def test_temporaries_inside_an_operation_are_counted():
    x = torch.ones(1_000, 1_000)
    live_before = count_live_tensor_bytes()
    with measure_peak_memory(CPU) as peak:
        x.t().softmax(0).sum()
    assert peak.bytes - live_before >= x.nbytes


def test_gradients_that_python_never_accessed_are_counted():
    weight = torch.zeros(1_000, 100, requires_grad=True)
    before = count_live_tensor_bytes()
    torch.autograd.backward((weight * 2).sum())
    assert count_live_tensor_bytes() - before == weight.nbytes


def test_views_and_memory_of_other_libraries_are_not_counted():
    before = count_live_tensor_bytes()
    views = [torch.frombuffer(bytearray(1 << 20), dtype=torch.uint8)]
    assert count_live_tensor_bytes() == before
    own = torch.zeros(1 << 18)
    views += [own[:10], own.view(2, -1)]
    assert count_live_tensor_bytes() - before == own.nbytes and len(views) == 3


def test_nothing_is_measured_where_disabled():
    with measure_peak_memory(CPU, enabled=False) as peak:
        torch.ones(1_000)
    assert peak.bytes == 0


def test_the_compilers_fake_tensors_are_not_counted():
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = count_live_tensor_bytes()
    with FakeTensorMode():
        fake = torch.ones(1_000_000)
    assert count_live_tensor_bytes() == before and fake.shape == (1_000_000,)
