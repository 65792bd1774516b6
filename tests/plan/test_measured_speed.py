"""Tests the stored speeds of this machine."""

import pytest

from fledgling.config import load_recipe
from fledgling.plan import cost, measured_speed
from fledgling.plan.plan import make_plan
from fledgling.plan.text import format_plan


def test_the_mfu_is_given_measured_or_from_the_table(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    recipe = load_recipe("quickstart")
    table = make_plan(recipe)["time"]
    assert table["mfu_source"] == "table" and table["mfu"] == cost.ASSUMED_MFU["cpu"]
    measured_speed.save_speed(
        measured_speed.MeasuredSpeed("cpu-bf16", 0.5, 4e11, 9_000.0, "fledgling 4 x 256", "2026-01-02")
    )
    time = make_plan(recipe)["time"]
    assert (time["mfu"], time["mfu_source"]) == (0.5, "measured") and "2026-01-02" in time["mfu_of"]
    total_flops = make_plan(recipe)["flops"]["total"]
    assert time["hours"] == pytest.approx(total_flops / 2e11 / 3600), "its own peak, not the table's"
    assert make_plan(recipe, gpu="h100")["time"]["mfu_source"] == "table", "another device was not measured"
    assert make_plan(recipe, mfu=0.4)["time"]["mfu_source"] == "given"
    measured_speed.speed_file().write_text("[broken")
    assert make_plan(recipe)["time"]["mfu_source"] == "table"
    measured_speed.save_speed(measured_speed.MeasuredSpeed("cpu", 0.5, 4e11, 9_000.0, "x", "2026-01-02"))
    assert measured_speed.load_speed("cpu") and measured_speed.load_speed("cpu-bf16") is None
    measured_speed.save_speed(measured_speed.MeasuredSpeed("l4", 1.2, 4e11, 9_000.0, "x", "2026-01-02"))
    assert measured_speed.load_speed("l4") is None, "more than its own peak"
    measured_speed.save_speed(measured_speed.MeasuredSpeed("l4", 0.5, 3e12, 9_000.0, "x", "2026-01-02"))
    assert measured_speed.discard_exceeded("l4", 2e12) == "" and measured_speed.load_speed("l4"), "not exceeded"
    assert "it is deleted" in measured_speed.discard_exceeded("l4", 4e12) and not measured_speed.load_speed("l4")
    assert measured_speed.load_speed("cpu") and measured_speed.discard_exceeded(None, 4e12) == ""
    assert measured_speed.device_name("cuda", "bfloat16", "NVIDIA H100 80GB HBM3") == "h100"
    assert measured_speed.device_name("cuda", "bfloat16", "NVIDIA GeForce RTX 4090") == "rtx4090"
    assert measured_speed.device_name("cuda", "bfloat16", "Other") is None


def test_a_run_and_its_plan_have_one_peak(monkeypatch, tmp_path):
    """Shares that a run records are of the peak that it measured, so its plan's share must be of the same."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    recipe = load_recipe("quickstart")
    table, run = make_plan(recipe), make_plan(recipe, peak_flops=6e11)
    assert table["time"]["peak_source"] == "table" and run["time"]["peak_source"] == "run"
    assert run["hardware"]["peak_flops"] == 6e11 and run["time"]["mfu"] == table["time"]["mfu"]
    assert "MFU of 0.6 TFLOP/s, the peak of the run" in format_plan(run)
    measured_speed.save_speed(measured_speed.MeasuredSpeed("cpu-bf16", 0.5, 4e11, 9_000.0, "a model", "2026-01-02"))
    benchmark, rebased = make_plan(recipe), make_plan(recipe, peak_flops=8e11)
    assert rebased["time"]["mfu"] == pytest.approx(0.25), "2e11 of 8e11"
    assert rebased["time"]["hours"] == pytest.approx(benchmark["time"]["hours"]), "the speed is the same"
    too_low = make_plan(recipe, peak_flops=1e11)
    assert too_low["time"]["mfu"] == 0.5 and too_low["time"]["peak_source"] == "benchmark"
