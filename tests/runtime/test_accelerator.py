"""Accelerators by torch's device type: which there are, and a processor where a GPU is asked for nothing."""

import sys

import torch

from fledgling.runtime.accelerator import (
    PendingRead,
    allow_expandable_segments,
    count_devices,
    is_available,
    synchronize,
    total_memory,
)


def test_a_processor_is_always_there_and_counts_as_one(monkeypatch):
    assert is_available("cpu") and count_devices("cpu") == count_devices("mps") == 1
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert is_available("cuda") is available
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert count_devices("cuda") == 3


def test_values_are_read_as_they_were():
    values = torch.tensor([1.0, 2.0])
    pending = PendingRead(values)
    values.zero_()
    synchronize(values.device)
    assert pending.read().tolist() == [1.0, 2.0]


def test_memory_is_that_of_the_kind_of_device(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 7)
    assert total_memory(torch.device("mps")) == 7


def test_what_the_user_has_set_of_the_allocator_stays(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    environment = {"PYTORCH_ALLOC_CONF": "backend:native"}
    monkeypatch.setattr("os.environ", environment)
    allow_expandable_segments()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in environment
    environment.clear()
    allow_expandable_segments()
    assert environment == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
