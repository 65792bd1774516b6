"""The tables of the stages: what all have, in one run each, and what text and pairs have alone."""

import math
from pathlib import Path
from typing import Any

import pytest

from fledgling.config import load_recipe
from fledgling.optim.optimizer import Optimizer
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.record import checkpoint, read_jsonl
from fledgling.train import run
from fledgling.train.source_sizes import count_source_sizes
from tests.fast_run import write_pairs
from tests.made_up_core import write_core_bundle
from tests.made_up_sets import write_public_sets

from .outcomes import differ, final_weights, recipe_of

LOOP = {
    "steps": 3,
    "micro_batch_size": 2,
    "learning_rate": 0.5,
    "warmup_steps": 2,
    "decay_fraction": 0.5,
    "final_lr_fraction": 0.1,
    "mixture": {"arithmetic": 0.4, "counting": 0.6},
    "eval_every": 2,
    "eval_questions": 2,
    "sample_every": 1,
    "save_every": 1,
    "keep_checkpoints": 2,
}
EPOCHS = ("num_epochs",)  # test_epochs_multiply_the_steps_that_a_table_leaves_open
OPEN_BATCH = ("examples_per_step", "mixture_unit")  # test_what_an_open_batch_and_a_mixture_are_measured_in
WARMUP = ("batch_warmup_steps", "context_warmup_steps")  # tests/data/test_batch_warmup.py
MTP = ("mtp_targets", "mtp_decay_steps")  # tests/data/test_multi_token_prediction.py
STAGE = {"batch_tokens": 256, "train_on": "assistant", "core_every": 3, "core_max_per_task": 1}
STAGE["quantization_aware"] = "int8"
DPO = {"pairs": "{folder}/others.jsonl", "beta": 0.5, "batch_size": 2, "objective": "simpo", "target_margin": 0.5}
DPO_ELSEWHERE = ("desirable_weight", "undesirable_weight")  # tests/train/test_objectives.py


def stage_settings(stage: str, folder: Path) -> list[str]:
    """Every setting of a stage's table, but those of RL alone."""
    values = {**LOOP, **({"dpo": DPO, "rl": {}}.get(stage, STAGE))}
    if stage == "sft":
        values["train_on"] = "all"

    def toml(value: Any) -> str:
        inner = ", ".join(f"{k} = {v}" for k, v in value.items()) if isinstance(value, dict) else ""
        return f"{{{inner}}}" if inner else str(value).replace("{folder}", str(folder))

    return [f"{stage}.{key}={toml(value)}" for key, value in values.items()]


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "dpo", "rl"])
def test_every_setting_that_stages_share_has_its_effect(stage, folder, tmp_path, monkeypatch):
    rates: list[float] = []

    class RecordingOptimizer(Optimizer):
        def __init__(self, model, config, world, lr_multiplier, *others) -> None:
            rates.append(lr_multiplier)
            super().__init__(model, config, world, lr_multiplier, *others)

    monkeypatch.setattr(run, "Optimizer", RecordingOptimizer)
    write_core_bundle(tmp_path / "data")
    write_pairs(folder / "others.jsonl", 5)
    out, before = tmp_path / "run", ["pretrain"] if stage != "pretrain" else []
    settings = [f"run.out={out}", f"run.data_dir={tmp_path / 'data'}", f"stages={[*before, stage]}".replace("'", '"')]
    if before:
        (out / "tokenizer").mkdir(parents=True)
        for name in ("tokenizer", "pretrain"):
            for source in (folder / "run" / name).rglob("*"):
                if source.is_file():
                    target = out / source.relative_to(folder / "run")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(source.read_bytes())
    assert run.run_stage(recipe_of(folder, *settings, *stage_settings(stage, folder)), stage, quiet=True)
    metrics, evals = (read_jsonl(out / stage / f"{name}.jsonl") for name in ("metrics", "evals"))
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert rates == [0.5]
    # two steps of warm-up; over the last half of three steps the rate falls from 1 to 0.1
    falls = 0.1 + 0.9 * (1 - 2 / 3) / 0.5
    assert [line["lr_multiplier"] for line in metrics] == pytest.approx([0.5, 1.0, falls])
    exams = {line["name"]: line for line in evals if line["name"] in ("arithmetic", "counting")}
    assert exams.keys() == {"arithmetic", "counting"} and {line["n"] for line in exams.values()} == {2}
    assert {line["step"] for line in evals if line["name"] == "counting"} == {0, 2, 3}
    assert {line["step"] for line in read_jsonl(out / stage / "samples.jsonl")} == {0, 1, 2, 3}
    kept = sorted(path.name for path in (out / stage / "checkpoints").glob("step-*"))
    assert [int(name[5:]) for name in kept] == [2, 3]
    assert checkpoint.load_checkpoint(out / stage / "checkpoints" / kept[-1]).state["micro_batch"] == 2
    if stage in ("pretrain", "midtrain", "sft"):
        assert {line["tokens"] - 256 * line["step"] for line in metrics} == {0}
        assert any("rounded to int8" in line["text"] for line in read_jsonl(out / stage / "notices.jsonl"))
        core = [line for line in evals if line["name"].startswith("core")]
        assert {line["step"] for line in core} == {3}
        items = [line["n"] for line in evals if line["name"] == "core_choice"]
        assert items in ([1], []), items
    if stage == "dpo":
        first = metrics[0]
        assert first["accuracy"] in (0.0, 0.5, 1.0), "two pairs a step"
        assert first["loss"] != pytest.approx(math.log(2), abs=1e-2), "SimPO has no reference that it begins at"
    if stage == "rl":
        assert {"reward", "length"} <= metrics[0].keys()


@pytest.mark.parametrize("key", ["beta", "batch_size", "pairs", "learning_rate", "objective"])
def test_a_setting_of_dpo_changes_what_is_learned(key, folder):
    write_pairs(folder / "others.jsonl", 5)
    value = str({**LOOP, **DPO}[key]).replace("{folder}", str(folder))
    base = ['stages=["pretrain", "dpo"]', "dpo.steps=2", "optimizer.head_lr=0.1"]
    plain, other = (
        final_weights(recipe_of(folder, *base, *settings), "dpo") for settings in ([], [f"dpo.{key}={value}"])
    )
    assert differ(plain, other)


@pytest.mark.parametrize("setting", ["sft.train_on=all", "sft.batch_tokens=256", "sft.learning_rate=0.5"])
def test_a_setting_of_text_changes_what_is_learned(setting, folder):
    base = ['stages=["pretrain", "sft"]', "sft.mixture={identity = 1.0}", "sft.steps=2"]
    plain, other = (final_weights(recipe_of(folder, *base, *extra), "sft") for extra in ([], [setting]))
    assert differ(plain, other)


def open_lengths(folder: Path, data: Path, *settings: str) -> dict[str, tuple[int, int]]:
    """Returns (rows of a step, steps) of fine-tuning and of RL over made-up public sets, without a run."""
    base = [f"run.data_dir={data}", "sft.steps=none", "sft.batch_tokens=none", "rl.steps=none"]
    base += ["sft.mixture={smoltalk = 0.5, arc_easy = 0.5}", "rl.tasks={gsm8k = 1.0}"]
    recipe = load_recipe(folder / "fast.toml", [*base, *settings])
    stages = make_plan(recipe, PlanSettings(sizes=count_source_sizes(recipe)))["stages"]
    return {name: (stages[name]["rows_per_step"], stages[name]["steps"]) for name in ("sft", "rl")}


def test_epochs_multiply_the_steps_that_a_table_leaves_open(folder, tmp_path):
    data = write_public_sets(tmp_path / "data")
    once, twice = (
        open_lengths(folder, data, f"sft.num_epochs={epochs}", f"rl.num_epochs={epochs}") for epochs in (1.0, 2.0)
    )
    assert once["rl"][1] == 20 and twice["rl"][1] == 40  # 40 prompts, two a round
    assert twice["sft"][1] in (2 * once["sft"][1], 2 * once["sft"][1] + 1) and twice["sft"][0] == once["sft"][0]


def test_what_an_open_batch_and_a_mixture_are_measured_in(folder, tmp_path):
    data = write_public_sets(tmp_path / "data")
    few, many, by_examples = (
        open_lengths(folder, data, *extra)["sft"]
        for extra in (["sft.examples_per_step=4"], ["sft.examples_per_step=32"], ["sft.mixture_unit=examples"])
    )
    assert few[0] * 8 == many[0] and few[1] > many[1]
    assert by_examples != many
