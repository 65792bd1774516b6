"""Tests the planner: formulas equal counted or published values, estimates stay close to measurements."""

import json
import re
import subprocess
import sys

import pytest

from fledgling.config import UserError, load_recipe, recipe_names
from fledgling.plan import hardware
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.published_sizes import PUBLISHED_EXAMPLES
from fledgling.plan.stage_length import SourceSize
from fledgling.plan.text import format_plan


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_plan_with_the_stable_keys(name):
    recipe = load_recipe(name)
    result = json.loads(json.dumps(make_plan(recipe)))
    of = {"stage": "pretrain", "in_run": "pretrain" in recipe.stages}
    assert all(of.items() <= result[section].items() for section in ("horizon", "time", "memory", "cost"))
    assert result["parameters"]["total"] == sum(v for k, v in result["parameters"].items() if k != "total")
    assert result["flops"]["total"] == result["flops"]["per_token"] * result["horizon"]["tokens"]
    assert result["memory"]["per_rank"]["total"] > 0 and result["memory"]["fits"]
    assert result["time"]["hours"] > 0 and "usd" in result["cost"]
    split = result["horizon"]
    ranks, context = result["hardware"]["ranks"], result["model"]["context"]
    assert split["micro_batch_size"] * split["grad_accumulation"] * ranks * context == split["batch_tokens"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"gpus": 17}, "pretrain: a step has 16 rows, so 1 of 17 ranks have none"),
        ({"gpus": 0}, "at least 1"),
        ({"gpu": "x100"}, "x100"),
        ({"gpu": "m1", "gpus": 2}, "got 2 of m1, expected 1: a Mac trains with one rank"),
        ({"mfu": 1.5}, "mfu"),
        ({"price": -1.0}, "price"),
        ({"layout": "odd"}, "whole-logits"),
    ],
)
def test_impossible_plans_are_rejected(arguments, word):
    with pytest.raises(UserError, match=word):
        make_plan(load_recipe("quickstart"), PlanSettings(**arguments))


@pytest.mark.parametrize(("gpus", "split", "empty"), [(16, (1, 16), 0), (24, (1, 11), 1 - 256 / 264), (64, (1, 4), 0)])
def test_more_ranks_than_a_recipe_names_are_planned(gpus, split, empty):
    plan = make_plan(load_recipe("d20-8xh100"), PlanSettings(gpus=gpus))
    stage, eight = plan["stages"]["pretrain"], make_plan(load_recipe("d20-8xh100"))["stages"]["pretrain"]
    assert plan["stages"]["sft"]["empty_share"] == pytest.approx(1 - 8 / gpus)  # 8 rows a step, whatever the ranks
    assert (stage["grad_accumulation"], stage["micro_batch_size"]) == split
    assert stage["empty_share"] == pytest.approx(empty)
    assert stage["hours"] == pytest.approx(eight["hours"] * 8 / gpus / (1 - empty))
    assert (f"{gpus} ranks do not divide 256 rows" in format_plan(plan)) == bool(empty)


@pytest.mark.parametrize("name", ["d12-1gpu", "d20-8xh100"])
def test_the_stages_of_a_recipe_end_where_it_names_no_steps(name):
    stages = make_plan(load_recipe(name))["stages"]
    assert stages["rl"]["steps"] == 7473 // 16  # one pass over the prompts of GSM8K
    assert stages["sft"]["steps"] > 300 and stages["sft"]["assumed_lengths"] and not stages["rl"]["assumed_lengths"]
    assert stages["sft"]["rows_per_step"] == 8  # 32 conversations of an assumed 512 tokens
    measured = {n: SourceSize(c, 0.125) for n, c in PUBLISHED_EXAMPLES.items()}
    known = make_plan(load_recipe(name), PlanSettings(sizes=measured))["stages"]["sft"]
    assert known["rows_per_step"] == 4 and not known["assumed_lengths"]


EPOCHS = ["pretrain.num_epochs=2", "pretrain.steps=none"]


def test_a_pretraining_by_epochs_has_no_length_before_its_text_is_prepared():
    """It was a KeyError in `plan`, in `speedrun --minutes` and in every stage that trains."""
    plan = make_plan(load_recipe("quickstart", EPOCHS))
    assert plan["unknown_stages"] == ["pretrain"] and list(plan["stages"]) == ["midtrain", "sft", "rl"]
    assert plan["horizon"]["batch_tokens"] == 4096 and plan["memory"]["in_run"] and plan["memory"]["fits"]
    unknown = [plan["horizon"][key] for key in ("steps", "tokens", "tokens_per_parameter")]
    unknown += [plan["time"]["hours"], plan["cost"]["kwh"], plan["flops"]["total"], plan["data"]["bytes_text"]]
    assert unknown == [None] * 7 and json.dumps(plan)
    text = format_plan(plan)
    assert "its steps are known once its data are prepared" in text and "energy of the known stages" in text
    assert "tokens of pretraining" not in text and "energy of all stages" not in text
    counted = make_plan(
        load_recipe("quickstart", [*EPOCHS, "pretrain.mixture={gsm8k = 1.0}"]),
        PlanSettings(sizes={"gsm8k": SourceSize(80, 1.0)}),
    )
    assert counted["horizon"]["steps"] == counted["stages"]["pretrain"]["steps"] == 10  # 2 x 80 rows, 16 a step


@pytest.mark.parametrize(
    "unused", [EPOCHS, ["pretrain.micro_batch_size=16", "pretrain.batch_tokens=4096", "run.hardware=t4"]]
)
def test_a_pretraining_that_the_recipe_leaves_out_rejects_nothing(unused):
    """A large model that an adapter tunes was rejected for the memory that training all of it would take."""
    tuned = ["sft.batch_tokens=256", "sft.micro_batch_size=1", "run.init_from=elsewhere"]
    tuned += ["adapter.method=lora", "adapter.quantization=int4", "model={depth=34, context=256}"]
    plan = make_plan(load_recipe("quickstart", ['stages=["sft"]', *tuned, *unused]))
    assert list(plan["stages"]) == ["sft"] and plan["unknown_stages"] == [] and not plan["horizon"]["in_run"]
    assert "of pretraining" not in format_plan(plan)


BLANK = ("pretrain={}", "midtrain={}", "sft={}", "rl={}", "model={}", 'stages=["pretrain"]')


@pytest.mark.parametrize(
    ("overrides", "printed"),
    [
        (
            ["model.depth=30", "model.context=2048"],
            r"pretrain does not fit t4: 1 rows .* need .* GiB .*use .*or a larger device",
        ),
        (
            ["model.depth=12", "model.context=2048", "pretrain.micro_batch_size=64", "run.recompute=off"],
            "use a micro-batch of ",
        ),
        (["model.width=100", "model.heads=3"], "try heads = "),
    ],
)
def test_an_impossible_plan_names_settings_that_would_work(overrides, printed):
    settings = [*BLANK, "run.hardware=t4", "tokenizer.vocab_size=32768", *overrides]
    with pytest.raises(UserError, match=printed) as caught:
        make_plan(load_recipe("quickstart", settings))
    assert "\n" not in str(caught.value)
    if "width" not in overrides[0]:
        assert not make_plan(load_recipe("quickstart", settings), PlanSettings(strict=False))["memory"]["fits"]


def test_the_advised_settings_fit():
    """The context, the depth or the micro-batch size that an error names is one that works."""
    settings = [*BLANK, "run.hardware=t4", "tokenizer.vocab_size=32768"]
    advised = set()
    for depth, pinned in (
        (24, "run.recompute=auto"),
        (26, "run.recompute=off"),
        (12, "pretrain.micro_batch_size=64"),
    ):
        with pytest.raises(UserError) as caught:
            make_plan(load_recipe("quickstart", [*settings, f"model.depth={depth}", "model.context=4096", pinned]))
        for kind, value in re.findall(r"(context=|depth=|micro-batch of )(\d+)", str(caught.value)):
            width = [f"model.width={64 * depth}", f"model.heads={depth // 2}"]
            key = {"context=": "model.context", "depth=": "model.depth"}.get(kind, "pretrain.micro_batch_size")
            batch = [] if kind.startswith("micro") else ["pretrain.batch_tokens=131072"]
            changed = [f"model.depth={depth}", "model.context=4096", *width, *batch, f"{key}={value}"]
            assert make_plan(load_recipe("quickstart", [*settings, *changed]))["memory"]["fits"], (depth, kind, value)
            advised.add(kind)
    assert "micro-batch of " in advised and len(advised) >= 2


@pytest.mark.parametrize(("ranks", "passes", "empty", "reason"), [(1, 3, 0.0, ""), (2, 2, 1 / 3, "micro-batches of 6")])
def test_a_micro_batch_that_does_not_divide_the_rows_is_planned_as_it_trains(ranks, passes, empty, reason):
    """Training makes micro-batches of 6, 6 and 4 of 16 rows; a plan expected a divisor of 16."""
    plan = make_plan(load_recipe("quickstart", ["pretrain.micro_batch_size=6"]), PlanSettings(gpus=ranks))
    stage, text = plan["stages"]["pretrain"], format_plan(plan)
    assert (stage["micro_batch_size"], stage["grad_accumulation"], stage["rows_per_step"]) == (6, passes, 16)
    assert stage["empty_share"] == pytest.approx(empty)
    assert (f"{reason} rows do not divide the 8 rows of each of 2 ranks" in text) if reason else "on no row" not in text


def test_every_stage_is_planned_with_its_own_split():
    stages = make_plan(load_recipe("quickstart", ["sft.micro_batch_size=4"]), PlanSettings(price=2.0))["stages"]
    assert list(stages) == ["pretrain", "midtrain", "sft", "rl"]
    assert stages["sft"]["micro_batch_size"] == 4 and stages["sft"]["grad_accumulation"] == 4
    assert stages["sft"]["memory"] < stages["midtrain"]["memory"]
    assert stages["midtrain"]["usd"] == pytest.approx(2 * stages["midtrain"]["hours"])
    assert stages["rl"]["kwh"] == pytest.approx(stages["rl"]["hours"] * hardware.find_device("cpu-bf16").watts / 1000)


def test_a_policy_with_a_reference_model_holds_both():
    without, both = (make_plan(load_recipe("quickstart", [f"rl.kl_weight={kl}"])) for kl in (0.0, 0.04))
    assert both["stages"]["rl"]["memory"] - without["stages"]["rl"]["memory"] == 4 * both["parameters"]["total"]


def test_preference_tuning_is_planned_with_its_reference_model():
    settings = ['stages=["pretrain", "sft", "dpo"]', "dpo.steps=10", "dpo.batch_size=8"]
    plan = make_plan(load_recipe("quickstart", settings))
    dpo = plan["stages"]["dpo"]
    assert dpo["tokens"] == 10 * 8 * 2 * plan["model"]["context"] and dpo["steps"] == 10
    assert dpo["memory"] > 4 * 2 * plan["parameters"]["total"]


def test_a_plan_is_fast_and_needs_no_torch():
    """The values are the published run's."""
    script = (
        "import sys, time\nfrom fledgling.cli import main\n"
        "code = main(['plan', '--depth', '20', '--set', 'model.preset=nanochat-2025', '--json'])\n"
        "print(time.process_time(), 'torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, torch = process.stderr.split()
    assert torch == "False" and float(seconds) < 10, "a bound of processor time: .3 s where it was measured"
    result = json.loads(process.stdout)
    assert result["parameters"]["total"] == 560_988_160
    assert result["flops"]["per_token"] == 3_491_758_080
    assert result["horizon"]["tokens"] == 11_219_763_200
    assert result["flops"]["total"] == pytest.approx(3.9177e19, rel=1e-5)
