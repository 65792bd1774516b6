"""Tests the stored speeds of this machine."""

import json

import pytest

from fledgling.cli import main
from fledgling.config import RunConfig, load_recipe
from fledgling.plan import cost, measured_speed
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.text import format_plan
from tests.unwritable_cache import fail_cache_writes

QUICKSTART = 24_379_392  # FLOPs of a token; 16 rows of 256 tokens


def save(device, mfu, peak, flops_per_token=QUICKSTART, tokens=4096, model="a model"):
    date = "2026-01-02"
    compiled = not model.endswith(measured_speed.NOT_COMPILED)
    speed = measured_speed.MeasuredSpeed(device, mfu, peak, 9_000.0, model, date, flops_per_token, tokens, compiled)
    return measured_speed.save_speed(speed)


def load(device):
    return measured_speed.load_speed(device, QUICKSTART, 4096)


def test_the_mfu_is_given_measured_or_from_the_table(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    recipe = load_recipe("quickstart")
    table = make_plan(recipe)
    assert table["flops"]["per_token"] == QUICKSTART
    assert table["time"]["mfu_source"] == "table" and table["time"]["mfu"] == cost.ASSUMED_MFU["cpu"]
    save("cpu-bf16", 0.5, 4e11, model="fledgling 4 x 256")
    time = make_plan(recipe)["time"]
    assert (time["mfu"], time["mfu_source"]) == (0.5, "measured") and "2026-01-02" in time["mfu_of"]
    total_flops = make_plan(recipe)["flops"]["total"]
    assert time["hours"] == pytest.approx(total_flops / 2e11 / 3600), "its own peak, not the table's"
    other = make_plan(recipe, PlanSettings(gpu="h100"))
    assert other["time"]["mfu_source"] == "table", "another device was not measured"
    assert make_plan(recipe, PlanSettings(mfu=0.4))["time"]["mfu_source"] == "given"
    measured_speed.speed_file().write_text("[broken")
    assert make_plan(recipe)["time"]["mfu_source"] == "table"
    save("cpu", 0.5, 4e11)
    assert load("cpu") and load("cpu-bf16") is None
    save("l4", 1.2, 4e11)
    assert load("l4") is None, "more than its own peak"
    save("l4", 0.5, 3e12)
    assert measured_speed.discard_exceeded("l4", 2e12) == "" and load("l4"), "not exceeded"
    assert "it is deleted" in measured_speed.discard_exceeded("l4", 4e12) and not load("l4")
    assert load("cpu") and measured_speed.discard_exceeded(None, 4e12) == ""
    old = {"cpu": {"device": "cpu", "mfu": 0.5, "peak_flops": 1e9, "tokens_per_second": 1, "model": "x", "date": "y"}}
    measured_speed.speed_file().write_text(json.dumps(old))
    assert load("cpu") is None, "an entry of an earlier version has no shape"


def test_a_cache_that_cannot_be_written_keeps_a_speed_that_is_too_low_and_says_so(monkeypatch, tmp_path):
    """It stopped a stage in the middle, with the advice to choose another run.out."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    save("l4", 0.5, 3e12)
    fail_cache_writes(monkeypatch)
    line = measured_speed.discard_exceeded("l4", 4e12)
    assert (
        f"too low: it is kept, since {tmp_path / 'speed.json'} cannot be written (Permission denied); set FLED" in line
    )
    assert load("l4") and "Permission denied" in save("l4", 0.5, 5e12)


def test_a_measured_speed_is_that_of_its_shape(monkeypatch, tmp_path):
    """A toy's utilization says nothing of a large model's."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    save("h100", 0.05, 8e14, flops_per_token=10**7, tokens=4096, model="toy")
    d20 = load_recipe("d20-8xh100")
    assert make_plan(d20)["time"]["mfu_source"] == "table"
    per_token = make_plan(d20)["flops"]["per_token"]
    save("h100", 0.65, 7.9e14, flops_per_token=per_token, tokens=65_536, model="d20")
    time = make_plan(d20)["time"]
    assert time["mfu_of"].startswith("d20") and len(measured_speed.list_speeds("h100")) == 2
    assert time["mfu_product"] == time["mfu"] == 0.65
    assert time["mfu_datasheet"] == pytest.approx(0.65 * 7.9e14 / 989e12)
    text = format_plan(make_plan(d20))
    assert "65% MFU" in text and "52% of the datasheet's 989" in text
    save("h100", 0.1, 7.9e14, flops_per_token=per_token * 3, tokens=65_536, model="three times")
    assert make_plan(d20)["time"]["mfu"] == 0.65, "the nearest"
    table = make_plan(load_recipe("d12-1gpu"))["time"]
    assert table["mfu_datasheet"] == cost.ASSUMED_MFU["gpu"] and table["mfu_product"] is None


def test_a_run_and_its_plan_have_one_peak(monkeypatch, tmp_path):
    """Shares that a run records are of the peak that it measured, so its plan's share must be of the same."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    recipe = load_recipe("quickstart")
    table, run = make_plan(recipe), make_plan(recipe, PlanSettings(peak_flops=6e11))
    assert table["time"]["peak_source"] == "table" and run["time"]["peak_source"] == "run"
    assert run["hardware"]["peak_flops"] == 6e11 and run["time"]["mfu"] == table["time"]["mfu"]
    assert "MFU of 0.6 TFLOP/s, the peak of the run" in format_plan(run)
    save("cpu-bf16", 0.5, 4e11)
    benchmark, rebased = make_plan(recipe), make_plan(recipe, PlanSettings(peak_flops=8e11))
    assert rebased["time"]["mfu"] == pytest.approx(0.25), "2e11 of 8e11"
    assert rebased["time"]["hours"] == pytest.approx(benchmark["time"]["hours"]), "the speed is the same"
    too_low = make_plan(recipe, PlanSettings(peak_flops=1e11))
    assert too_low["time"]["mfu"] == 0.5 and too_low["time"]["peak_source"] == "benchmark"


def test_a_recipe_of_a_processor_is_planned_for_the_one_that_was_measured(monkeypatch, tmp_path, capsys):
    """A recipe says `cpu-bf16`, and this machine may be one that trains in float32."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    run = RunConfig(hardware="cpu-bf16")
    assert measured_speed.name_planned_device(run) == "cpu-bf16"
    save("cpu-bf16", 0.7, 1.6e11)
    save("cpu-mixed", 0.6, 3.2e11)
    assert (
        measured_speed.name_planned_device(run) == "cpu-mixed"
        and measured_speed.name_planned_device(RunConfig(hardware="t4")) == "t4"
    )
    main(["plan", "quickstart", "--json"])
    assert json.loads(capsys.readouterr().out)["hardware"]["name"] == "cpu-mixed"
    main(["plan", "quickstart", "--json", "--set", "run.dtype=bfloat16"])
    assert json.loads(capsys.readouterr().out)["hardware"]["name"] == "cpu-bf16"


def test_a_step_that_is_not_compiled_is_planned_slower_and_its_speed_says_nothing_of_others(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    hours = {
        (compile, method): make_plan(
            load_recipe("quickstart", [f"run.compile={compile}", "run.dtype=bfloat16", f"adapter.method={method}"])
        )["stages"]["sft"]["hours"]
        for compile in ("auto", "off")
        for method in ("none", "lora")
    }
    assert hours["off", "none"] == pytest.approx(hours["auto", "none"] / cost.EAGER_SHARE)
    assert hours["off", "lora"] == pytest.approx(hours["auto", "lora"]), "blocks with an adapter are not compiled here"
    assert hours["off", "lora"] > 1.2 * hours["off", "none"], "an adapter's step is the slower one without compiling"
    save("cpu-bf16", 0.4, 4e11, model="fledgling 4 x 256, not compiled")
    assert load("cpu-bf16") is None
    saved = json.loads(measured_speed.speed_file().read_text())
    measured_speed.speed_file().write_text(json.dumps({k: v for k, v in saved.items() if v.pop("compiled") is False}))
    assert load("cpu-bf16") is None, "an entry of an earlier version, whose description alone says so"
    recipe = load_recipe("quickstart", ["run.compile=off"])
    assert make_plan(recipe)["time"]["mfu"] == 0.4
    assert make_plan(load_recipe("quickstart"))["time"]["mfu_source"] == "table"


def test_a_stage_that_trains_an_adapter_is_planned_with_the_measured_speed_of_one(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    settings = ["run.dtype=bfloat16", "run.hardware=cpu-bf16", "adapter.method=lora", "sft.steps=10"]
    recipe, peak = load_recipe("quickstart", settings), 4e11

    def hours(**given):
        return make_plan(recipe, PlanSettings(**given))["stages"]["sft"]["hours"]

    save("cpu-bf16", 0.4, peak)
    slower, given = hours(), hours(mfu=0.4)
    save("cpu-bf16", 0.04, peak, 18_546_688, model="fledgling 4 x 256, lora of rank 16, not compiled")
    assert hours() == pytest.approx(slower * 0.4 * cost.ADAPTER_EAGER_SHARE / 0.04)
    assert hours(mfu=0.4) == given, "a given utilization is that of pretraining"
