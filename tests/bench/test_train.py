"""The peak that a training benchmark gives shares of."""

import pytest
import torch

from fledgling.bench.sized_recipe import load_sized_recipe
from fledgling.bench.train import TABLES, measure_peak_above, measure_training
from fledgling.config import UserError, load_recipe
from fledgling.plan.measured_speed import list_speeds
from fledgling.runtime import device
from fledgling.runtime.device import DeviceSetup
from tests.unwritable_cache import fail_cache_writes

CPU = torch.device("cpu")


def peak_above(monkeypatch, first: float, further: list[float], achieved: float) -> tuple[float | None, str]:
    measured = iter(further)
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: next(measured))
    monkeypatch.setattr("fledgling.bench.train.measure_peak_flops", lambda device, dtype: next(measured))
    return measure_peak_above(DeviceSetup(torch.float32, False, first), CPU, achieved)


def test_the_peak_is_the_higher_of_the_measurements_before_and_after(monkeypatch):
    assert peak_above(monkeypatch, 5e9, [7e9], 4e9) == (7e9, "")
    assert peak_above(monkeypatch, 9e9, [7e9], 7e9) == (9e9, "")


def test_a_step_that_comes_near_to_the_peak_has_it_measured_again(monkeypatch):
    """120 GFLOP/s were measured once where 166 can be reached, and a step had a share of 95 %."""
    peak, notice = peak_above(monkeypatch, 120e9, [110e9, 160e9, 166e9, 150e9], 114e9)
    assert peak == 166e9 and "114.0 GFLOP/s were reached, 95 % of the measured peak of 120.0: it was" in notice
    peak, notice = peak_above(monkeypatch, 120e9, [110e9, 119e9, 121e9, 118e9], 114e9)
    assert peak == 121e9 and notice.endswith("95 % of the measured peak of 120.0: measured again, it is as high")


def test_a_step_above_both_has_the_peak_measured_again_and_reported(monkeypatch):
    peak, notice = peak_above(monkeypatch, 1e9, [2e9, 2e9, 8e9, 3e9], 4e9)
    assert peak == 8e9 and "4.0 GFLOP/s were reached, more than the measured peak of 2.0" in notice


def test_a_step_above_every_measurement_has_no_share(monkeypatch):
    peak, notice = peak_above(monkeypatch, 1e9, [2e9, 2e9, 2e9, 3e9], 4e9)
    assert peak is None and "still too low" in notice


def test_no_step_is_an_error():
    with pytest.raises(UserError, match="--steps 0, --batch 8: expected at least 1 of each"):
        measure_training(load_recipe("quickstart"), 8, steps=0)


def test_a_step_of_an_adapter_is_measured_as_such_and_kept_apart(monkeypatch, tmp_path):
    """`--set adapter.method=lora` measured a step of all weights, whose speed a plan of adapters does not use."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    monkeypatch.setattr("fledgling.bench.train.measure_peak_above", lambda *_: (1e15, ""))
    monkeypatch.setattr("fledgling.bench.train.name_device", lambda *_: "cpu")
    plain = ["run.device=cpu", "run.dtype=float32", "run.compile=off"]
    found = [
        measure_training(load_sized_recipe([*plain, *own], TABLES, 1, 64, 16), 1, steps=1, warmup=0)
        for own in ([], ["adapter.method=lora", "adapter.rank=2"])
    ]
    whole, adapted = sorted(list_speeds("cpu"), key=lambda speed: "lora" in speed.model)
    assert (
        found[1]["parameters"] > found[0]["parameters"] and adapted.model.replace(", lora of rank 2", "") == whole.model
    )
    assert adapted.flops_per_token < 0.9 * whole.flops_per_token
    fail_cache_writes(monkeypatch)
    result = measure_training(load_sized_recipe(plain, TABLES, 1, 64, 16), 1, steps=1, warmup=0)
    assert not result["saved_for"] and result["notice"].startswith(f"{tmp_path / 'speed.json'} cannot be written (")
