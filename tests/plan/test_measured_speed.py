"""Tests the stored speeds of this machine."""

import pytest

from fledgling.config import load_recipe
from fledgling.plan import cost, measured_speed
from fledgling.plan.plan import make_plan


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
    assert measured_speed.device_name("cuda", "bfloat16", "NVIDIA H100 80GB HBM3") == "h100"
    assert measured_speed.device_name("cuda", "bfloat16", "NVIDIA GeForce RTX 4090") == "rtx4090"
    assert measured_speed.device_name("cuda", "bfloat16", "Other") is None
