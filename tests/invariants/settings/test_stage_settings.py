"""The tables of the stages: what all have, in one run each, and what text and pairs have alone."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from fledgling.config import Recipe
from fledgling.optim.optimizer import Optimizer
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.record import checkpoint, read_jsonl
from fledgling.train import run
from fledgling.train.hooks import NO_EVALS
from fledgling.train.source_sizes import count_source_sizes
from tests.fast_run import write_pairs
from tests.made_up_core import write_core_bundle
from tests.made_up_sets import write_public_sets, write_rows

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
STAGE = {"batch_tokens": 256, "train_on": "assistant", "core_every": 3, "core_max_per_task": 1}
STAGE["quantization_aware"] = "int8"
DPO = {"pairs": "{folder}/others.jsonl", "beta": 0.5, "batch_size": 2, "objective": "simpo", "target_margin": 0.5}
DPO_ELSEWHERE = ("desirable_weight", "undesirable_weight")  # tests/train/test_objectives.py
TEXT, STAGES = ("pretrain", "midtrain", "sft"), ("pretrain", "midtrain", "sft", "dpo", "rl")
LENGTHS = {"num_epochs": ("1", "2"), "examples_per_step": ("2", "4"), "mixture_unit": ("tokens", "examples")}
LENGTH_CASES = [(stage, "num_epochs") for stage in STAGES]
LENGTH_CASES += [(stage, key) for stage in TEXT for key in ("examples_per_step", "mixture_unit")]
PHASES: dict[str, tuple[str, ...]] = {  # a setting of text, with what it needs before it
    "batch_warmup_steps": ("batch_warmup_steps=2",),
    "context_warmup_steps": ("context_warmup_steps=2",),
    "mtp_targets": ("mtp_targets=1",),
    "mtp_decay_steps": ("mtp_targets=1", "mtp_decay_steps=2"),
}
PHASE_CASES = [(stage, key) for stage in TEXT for key in PHASES]


def covered_keys(stage: str) -> set[str]:
    """The settings of a stage's table that a test here sets for this very stage; those of RL alone are not here."""
    own = {"dpo": {*DPO, *DPO_ELSEWHERE}, "rl": set()}.get(stage, {*STAGE})
    return {*LOOP, *own, *(key for each, key in (*LENGTH_CASES, *PHASE_CASES) if each == stage)}


def copy_pretrained(folder: Path, out: Path) -> None:
    """Copies tokenizer and pretraining of the run in `folder` to `out`."""
    for name in ("tokenizer", "pretrain"):
        shutil.copytree(folder / "run" / name, out / name)


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
        copy_pretrained(folder, out)
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


def write_conversations(file: Path, count: int, words: int) -> None:
    """Writes conversations; one of 90 words fills a row of 64 tokens by its characters and by its tokens."""
    answers = [f"number {n} " + "river " * words for n in range(count)]
    write_rows(
        file,
        [
            {"messages": [{"role": "user", "content": "Say."}, {"role": "assistant", "content": answer}]}
            for answer in answers
        ],
    )


def read_lengths(recipe: Recipe, stage: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (rows of a step, 0 for pairs and prompts, steps) of a stage: as it is planned, and as it is trained."""
    planned = make_plan(recipe, PlanSettings(sizes=count_source_sizes(recipe)))["stages"][stage]
    assert run.run_stage(recipe, stage, resume="never", quiet=True, hooks=NO_EVALS)
    lines = read_jsonl(Path(recipe.run.out) / stage / "metrics.jsonl")
    context = recipe.resolve_model().context if stage in TEXT else 0
    rows = (planned["rows_per_step"], lines[0]["tokens"] // context) if context else (0, 0)
    return (rows[0], planned["steps"]), (rows[1], len(lines))


@pytest.mark.parametrize(("stage", "key"), LENGTH_CASES)
def test_a_setting_of_the_length_counts_in_the_plan_as_in_training(stage, key, folder, tmp_path):
    """`pretrain.num_epochs` ended in a traceback, and the plan did not read `pretrain.examples_per_step`."""
    write_conversations(tmp_path / "long.jsonl", 16, 90)
    write_conversations(tmp_path / "short.jsonl", 64, 0)
    long, short = (f'"chat:{tmp_path / name}.jsonl"' for name in ("long", "short"))
    base = {
        "num_epochs": ["steps=none", "batch_tokens=256", f"mixture={{{long} = 1.0}}"],
        "examples_per_step": ["steps=2", "batch_tokens=none", f"mixture={{{long} = 1.0}}"],
        "mixture_unit": ["steps=2", "batch_tokens=none", "examples_per_step=32", f"mixture={{{long}=3.0,{short}=1.0}}"],
    }[key]
    out, before = tmp_path / "run", [] if stage == "pretrain" else ["pretrain"]
    settings = [f"run.out={out}", f"stages={[*before, stage]}".replace("'", '"')]
    if stage == "dpo":
        base = ["steps=none", "batch_size=4"]  # of 8 pairs
    elif stage == "rl":
        settings.append(f"run.data_dir={write_public_sets(tmp_path / 'data')}")
        base = ["steps=none", "tasks={gsm8k = 1.0}", "prompts_per_round=20"]  # of 40
    copy_pretrained(folder, out)
    few, many = (
        read_lengths(recipe_of(folder, *settings, *(f"{stage}.{text}" for text in (*base, f"{key}={value}"))), stage)
        for value in LENGTHS[key]
    )
    if key == "mixture_unit":
        assert all(by_tokens != by_examples for by_tokens, by_examples in zip(few, many, strict=True))
        return
    assert few[0] == few[1] and many[0] == many[1], "planned, and trained"
    (rows, steps), (more_rows, more_steps) = few[0], many[0]
    expected = (rows, 2 * steps) if key == "num_epochs" else (2 * rows, steps)
    assert (more_rows, more_steps) == expected and steps > 1


@pytest.mark.parametrize("stage", TEXT)
def test_a_phase_of_a_stage_changes_what_is_learned(stage, folder, tmp_path):
    out, before = tmp_path / "run", [] if stage == "pretrain" else ["pretrain"]
    base = [f"run.out={out}", f"stages={[*before, stage]}".replace("'", '"'), f"{stage}.steps=3"]
    base += [f"{stage}.batch_tokens=512", f"{stage}.mixture={{identity = 1.0}}"]
    copy_pretrained(folder, out)
    cases: dict[str, tuple[str, ...]] = {"": (), **PHASES}
    found = {
        key: final_weights(recipe_of(folder, *base, *(f"{stage}.{setting}" for setting in settings)), stage)
        for key, settings in cases.items()
    }
    assert all(differ(found["mtp_targets" if key == "mtp_decay_steps" else ""], found[key]) for key in PHASES)
