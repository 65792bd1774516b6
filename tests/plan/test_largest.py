"""Tests the table of devices: the largest depth that trains, and the largest within some hours."""

import json

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.plan.hardware import find_device, make_own_device
from fledgling.plan.largest import describe_devices, find_largest, load_depths_recipe, plan_depth
from fledgling.plan.plan import PlanSettings, load_planned_recipe, make_plan

SMALL = load_depths_recipe(8192, 512, ())
NAMED = ["rtx3060", "rtx4090", "t4", "h100", "m1"]


def test_the_largest_is_found_by_bisection():
    for largest in (0, 2, 6, 40, 160):
        assert find_largest(lambda depth, largest=largest: depth <= largest) == (largest or None)


def test_every_named_device_has_a_largest_depth_that_fits_and_the_next_does_not(capsys):
    assert main(["plan", "devices", "--vocab-size", "8192", "--context", "512", "--json", "--gpu", *NAMED]) == 0
    entries = {entry["device"]["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(entries) == NAMED
    for name in ("rtx3060", "t4"):
        device, largest = find_device(name), entries[name]["largest"]
        assert plan_depth(device, largest["depth"] + 2, SMALL, None, None) is None
        assert largest["bytes"] < device.memory and largest["hours"] > 24 > entries[name]["within"]["hours"]
        assert largest["kwh"] == pytest.approx(largest["hours"] * device.watts / 1000)
    order = [entries[name]["largest"]["depth"] for name in ("m1", "rtx3060", "t4", "rtx4090", "h100")]
    assert order == sorted(order) and order[0] < order[-1], order
    assert entries["h100"]["largest"]["usd"] == pytest.approx(3 * entries["h100"]["largest"]["hours"])
    assert entries["rtx4090"]["largest"]["usd"] is None, "no price is known"


def test_another_model_or_optimizer_has_another_largest_depth(capsys):
    def largest(*settings):
        assert main(["plan", "devices", "--gpu", "rtx3060", "--json", *settings]) == 0
        return json.loads(capsys.readouterr().out)[0]["largest"]

    plain = largest("--set", "model.preset=nanochat-2025")
    assert largest()["depth"] < plain["depth"] and (plain["depth"], plain["parameters"]) == (20, 560_988_160)
    assert largest("--set", "optimizer.state=8bit")["depth"] > largest()["depth"]
    for wrong in ("model.depth=4", "model.context=512", "pretrain.steps=3"):
        assert main(["plan", "devices", "--set", wrong]) == 1
        assert "--vocab-size and --context" in capsys.readouterr().err


def test_a_t4_takes_as_long_as_a_float16_gpu(capsys):
    t4, float32 = plan_depth(find_device("t4"), 6, SMALL, 0.35, 0.4), 8.1e12
    assert t4.usd == pytest.approx(0.35 * t4.hours)
    slower = plan_depth(find_device("t4").with_dtype("float32"), 6, SMALL, None, 0.4)
    assert slower.hours == pytest.approx(t4.hours * 65e12 / float32)
    own = make_own_device(None, 65, 320, 15, 70)
    assert plan_depth(own, 6, SMALL, None, 0.4).hours == pytest.approx(t4.hours)
    options = ["--vocab-size", "8192", "--context", "512", "--peak", "65", "--memory", "15", "--price", "own=2"]
    options += ["--bandwidth", "320", "--mfu", "0.4", "--hours", "48"]
    assert main(["plan", "devices", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("own") and "$" in lines[1] and len(lines) == 5
    assert main(["plan", "--depth", "4", "--gpu", "t4", "--memory", "30", "--bandwidth", "400", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["device"] == 30 * 2**30
    for wrong, expected in (
        (["--price", "h100"], "NAME=USD"),
        (["--hours", "0"], "above 0"),
        (["--gpu", "h10"], "h100"),
    ):
        assert main(["plan", "devices", *wrong]) == 1
        assert expected in capsys.readouterr().err
    with pytest.raises(UserError, match="above 0"):
        describe_devices([], SMALL, -1.0, {})


@pytest.mark.parametrize("name", ["cpu", "cpu-mixed", "t4", "rtx3060", "m1"])
def test_the_largest_depth_of_a_device_can_be_planned_and_the_next_cannot(name):
    """A step that sums the gradients of several passes holds more than one pass: both commands count the same."""
    device = find_device(name)
    (entry,) = describe_devices([device], load_depths_recipe(65_536, 2_048, ()), 24.0, {})
    depth = entry["largest"].depth
    plan = make_plan(load_planned_recipe(None, depth, [f"model.depth={depth}"]), PlanSettings(gpu=name))
    assert entry["largest"].recompute == (name == "cpu")
    assert plan["horizon"]["micro_batch_size"] == entry["largest"].rows
    assert plan["memory"]["per_rank"]["total"] == entry["largest"].bytes
    assert plan["time"]["hours"] == pytest.approx(entry["largest"].hours)
    with pytest.raises(UserError, match=f"pretrain does not fit {name}: 1 rows of 2048 tokens need"):
        make_plan(load_planned_recipe(None, depth + 2, [f"model.depth={depth + 2}"]), PlanSettings(gpu=name))
