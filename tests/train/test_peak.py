"""What the planner takes for the device that training computes on."""

import torch

from fledgling.plan.hardware import DEVICES, OWN
from fledgling.runtime.device import DeviceSetup
from fledgling.train import peak


def test_a_gpu_that_the_table_lacks_is_planned_as_a_gpu_by_its_measured_figures(monkeypatch):
    """It was planned as the recipe's processor: other micro-batches, and no memory for its allocator."""
    setup = DeviceSetup(torch.bfloat16, True, 4e13, 12 << 30)
    monkeypatch.setattr(peak, "describe_gpu", lambda device: ("NVIDIA GeForce RTX 4070", 12 << 30))
    spec = peak.find_spec(setup, torch.device("cuda"))
    assert (spec.name, spec.kind, spec.memory, spec.peaks) == (OWN, "cuda", 12 << 30, {"bfloat16": 4e13})
    monkeypatch.setattr(peak, "describe_gpu", lambda device: ("NVIDIA GeForce RTX 4090", 24 << 30))
    assert peak.find_spec(setup, torch.device("cuda")) == DEVICES["rtx4090"]
    assert peak.find_spec(DeviceSetup(torch.float32, True, 1e11), torch.device("cpu")) == DEVICES["cpu"]
