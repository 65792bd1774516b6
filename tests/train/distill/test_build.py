"""A stage that learns from a teacher: each way resumes exactly, and what does not fit is one line before any step."""

import shutil
from pathlib import Path

import pytest
import torch

from fledgling.config import Recipe, UserError, load_recipe
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.runtime.device import set_up_device
from fledgling.runtime.world import World
from fledgling.train import loop, run
from fledgling.train.check_recipe import check_recipe
from fledgling.train.distill import build
from fledgling.train.distill.teacher import load_teacher, read_teacher_config, require_same_vocabulary
from fledgling.train.hooks import NO_EVALS
from fledgling.train.read_files import OtherFileError
from fledgling.train.source_sizes import count_source_sizes
from tests.bad_steps import make_steps_bad
from tests.fast_run import write_recipe
from tests.ranks import on_ranks, one_thread
from tests.stop_request import StopRequest

WAYS = {
    "live": [],
    "every second step": ["distill.every=2", "distill.top_k=6"],
    "the first steps": ["distill.until=0.7"],
    "the first steps, stored": ["distill.until=0.7", "distill.top_k=6", "distill.temperature=3.0"],
    "stored": ["distill.top_k=6", "distill.temperature=2.0"],
    "text": ['distill.match="text"', "distill.teacher={folder}/other"],
    "rounded": ["sft.quantization_aware=int4", "distill.weight=0.5"],
}
ON_POLICY = ["rl.algorithm=distill", 'stages=["pretrain", "rl"]', "rl.steps=3", "rl.epochs=2", "rl.save_every=1"]


pytestmark = pytest.mark.usefixtures("one_thread_known_peak")


def recipe_of(folder: Path, name: str, *settings: str) -> Recipe:
    """A student of half the teacher's width with three steps of fine-tuning."""
    base = [
        *('stages=["pretrain", "sft"]', f"run.out={folder / name}", "sft.steps=3", "sft.save_every=1"),
        *("model.width=64", "model.heads=1", f"distill.teacher={folder / 'teacher'}", 'distill.stages=["sft"]'),
    ]
    return load_recipe(folder / "fast.toml", [*base, *(text.replace("{folder}", str(folder)) for text in settings)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two teachers of the smallest recipe, one with another tokenizer, and a pretrained student."""
    folder = tmp_path_factory.mktemp("distill")
    file = write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
        for name, settings in (("teacher", ["model.width=128"]), ("other", ["tokenizer.vocab_size=360"])):
            recipe = load_recipe(
                file, ["pretrain.steps=4", 'stages=["pretrain"]', f"run.out={folder / name}", *settings]
            )
            run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
        run.run_stage(recipe_of(folder, "student"), "pretrain", quiet=True, hooks=NO_EVALS)
    return folder


def copy_student(folder: Path, name: str) -> Path:
    """A run with the pretrained student, and no fine-tuning."""
    shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "student", folder / name)
    return folder / name


def learn(folder: Path, name: str, stage: str, *settings: str) -> dict[str, torch.Tensor]:
    """The weights after the stage."""
    run.run_stage(recipe_of(folder, name, *settings), stage, quiet=True, hooks=NO_EVALS)
    found = checkpoint.find_latest_checkpoint(folder / name / stage / "checkpoints")
    return checkpoint.load_checkpoint(found).tensors["model"]


@pytest.mark.parametrize("way", [*WAYS, "on policy"])
def test_a_stage_that_was_stopped_ends_with_the_same_bits(way, folder, monkeypatch):
    stage, settings = ("rl", ON_POLICY) if way == "on policy" else ("sft", WAYS[way])
    out = copy_student(folder, "whole")
    whole = learn(folder, "whole", stage, *settings)
    lines = read_jsonl(out / stage / "metrics.jsonl")
    taught = [line.get("kl", 0) > 0 for line in lines]
    assert stage == "rl" or taught == [True, not way.startswith("every"), not way.startswith("the first")]
    if way == "text":
        assert all(0.5 < line["aligned_fraction"] <= 1 for line in lines)
    out = copy_student(folder, "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(run, "catch_stop_signals", StopRequest(1))  # within a round of RL
        with pytest.raises(loop.TrainingStopped):
            learn(folder, "stopped", stage, *settings)
    again = learn(folder, "stopped", stage, *settings)
    assert [name for name, value in whole.items() if not value.equal(again[name])] == []
    assert [line["loss"] for line in read_jsonl(out / stage / "metrics.jsonl")] == [line["loss"] for line in lines]


ROLLED_BACK = ["pretrain.steps=6", "pretrain.save_every=2", "run.max_rollbacks=1", 'distill.stages=["pretrain"]']


def learn_with_rollback(folder: Path, name: str, way: list[str]) -> list[tuple[float, bool]]:
    """The loss of each of six steps, and whether it was taught: steps 3 to 6 of the data are skipped."""
    with pytest.MonkeyPatch.context() as patch:
        make_steps_bad(patch, {3, 4, 5})
        learn(folder, name, "pretrain", *ROLLED_BACK, *way)
    lines = read_jsonl(folder / name / "pretrain/metrics.jsonl")
    assert lines[-1]["rollbacks"] == 1
    return [(line["loss"], line.get("kl", 0) > 0) for line in lines]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ([], [1, 1, 1, 1, 1, 1]),
        (["distill.until=0.5"], [1, 1, 1, 0, 0, 0]),
        (["distill.top_k=6"], [1, 1, 1, 1, 1, 1]),
        (["distill.top_k=6", "distill.every=3"], [1, 0, 0, 1, 0, 0]),
    ],
)
def test_a_rollback_changes_nothing_of_which_steps_are_taught(way, expected, folder, monkeypatch):
    shutil.rmtree(folder / "back", ignore_errors=True)
    whole = learn_with_rollback(folder, "back", way)
    assert [taught for _, taught in whole] == [bool(taught) for taught in expected]
    shutil.rmtree(folder / "back")
    with monkeypatch.context() as patch, pytest.raises(loop.TrainingStopped):
        patch.setattr(run, "catch_stop_signals", StopRequest(7))  # two steps after the rollback
        learn_with_rollback(folder, "back", way)
    assert learn_with_rollback(folder, "back", way) == whole


def test_a_rollback_stores_what_is_missing_on_every_rank(folder):
    way = ["distill.top_k=6", "pretrain.batch_tokens=256"]
    for name in ("one back", "two back"):
        shutil.rmtree(folder / name, ignore_errors=True)
    one = learn_with_rollback(folder, "one back", way)
    assert on_ranks(2, learn_with_rollback, folder, "two back", way)[0] == one


def test_a_teacher_that_changed_since_the_stage_began_predicts_nothing_after_a_rollback(folder, monkeypatch):
    shutil.rmtree(folder / "back", ignore_errors=True)
    load, loaded = build.load_teacher, []

    def load_another(spec, *others):
        loaded.append(spec)
        return load(spec if len(loaded) == 1 else str(folder / "student"), *others)

    monkeypatch.setattr(build, "load_teacher", load_another)
    with pytest.raises(OtherFileError, match="has other weights than the teacher with which this stage began"):
        learn_with_rollback(folder, "back", ["distill.top_k=6"])
    assert len(loaded) == 2


def learn_in_all_ways(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    """The weights after the stage in every way, each in a run of its own."""
    return [learn(folder, f"{name} {way}", "sft", *settings) for way, settings in WAYS.items()]


def test_no_way_learns_what_another_does(folder):
    for way in (*WAYS, "plain"):
        copy_student(folder, f"alone {way}")
    plain = learn(folder, "alone plain", "sft", "distill.teacher=none")
    heads = [weights["head.weight"] for weights in (*learn_in_all_ways(folder, "alone"), plain)]
    assert all(not one.equal(two) for n, one in enumerate(heads) for two in heads[:n])


def test_two_ranks_learn_the_same_bits(folder):
    for way in WAYS:
        copy_student(folder, f"one {way}"), copy_student(folder, f"two {way}")
    one, two = learn_in_all_ways(folder, "one"), on_ranks(2, learn_in_all_ways, folder, "two")[0]
    for way, alone, together in zip(WAYS, one, two, strict=True):
        assert [name for name, value in alone.items() if not value.equal(together[name])] == [], way


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["distill.teacher={folder}/nowhere"], "distill.teacher: .*nowhere"),
        (["distill.teacher={folder}/other"], r"predicts 360 tokens, this model 330.*match=.text"),
        (["distill.top_k=330"], r"distill.top_k is 330: expected less than the vocabulary's 330 entries"),
        (["distill.top_k=3", 'distill.match="text"'], "leave distill.top_k out"),
        (["model.context=32", "distill.teacher={folder}/short"], "reads 16 tokens, and rows have 64"),
        (["sft.quantization_aware=int4", "adapter.method=lora"], r"which \[adapter\] freezes"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_step(settings, expected, folder):
    out = copy_student(folder, "rejected")
    if "short" in "".join(settings):
        settings = settings[1:]
        short = ["model.context=16", 'stages=["pretrain"]', f"run.out={folder / 'short'}"]
        recipe = load_recipe(folder / "fast.toml", short)
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    with pytest.raises(UserError, match=expected) as caught:
        learn(folder, "rejected", "sft", *settings)
    assert "\n" not in str(caught.value)
    assert not read_jsonl(out / "sft" / "metrics.jsonl") if (out / "sft" / "metrics.jsonl").exists() else True


def test_a_teacher_of_another_tokenizer_is_one_line_whatever_its_size(folder):
    teacher, student = (load_teacher(str(folder / name), "cpu", torch.float32) for name in ("other", "student"))
    expected = r"another tokenizer \(360 entries\) than this run \(330\).*match=.text"
    with pytest.raises(UserError, match=expected):
        require_same_vocabulary(teacher, student.tokenizer, student.model.config, "other")
    require_same_vocabulary(student, student.tokenizer, student.model.config, "student")


def test_a_stage_of_another_teacher_is_not_resumed(folder, monkeypatch):
    copy_student(folder, "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(run, "catch_stop_signals", StopRequest(1))
        with pytest.raises(loop.TrainingStopped):
            learn(folder, "stopped", "sft")
    other = f"distill.teacher={folder / 'student'}"
    with pytest.raises(OtherFileError, match="has other weights than the teacher with which this stage began"):
        learn(folder, "stopped", "sft", other)


@pytest.mark.parametrize("way", [*WAYS, "on policy"])
def test_a_check_before_any_step_traces_every_way_and_counts_its_teacher(way, folder):
    world, stage = World.start("cpu"), "rl" if way == "on policy" else "sft"
    settings = ON_POLICY if way == "on policy" else WAYS[way]
    recipes = [recipe_of(folder, "student", *more) for more in (settings, [*settings, "distill.teacher=none"])]
    setup = set_up_device(recipes[0].run, world)
    (found,) = check_recipe(recipes[0], [stage], setup, world)
    assert found.problems == ()
    if way == "on policy":
        assert "needs a teacher" in check_recipe(recipes[1], [stage], setup, world)[0].problems[0]
        return
    plain = check_recipe(recipes[1], [stage], setup, world)[0]
    assert found.bytes > plain.bytes
    plans = []
    for recipe in recipes:
        settings = PlanSettings(sizes=count_source_sizes(recipe), teacher=read_teacher_config(recipe))
        plans.append(make_plan(recipe, settings)["stages"]["sft"])
    assert plans[0]["hours"] > plans[1]["hours"] and plans[0]["memory"] > plans[1]["memory"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["distill.top_k=330"], "expected less than the vocabulary"),
        (["distill.teacher={folder}/nowhere"], "distill.teacher: "),
        (["sft.quantization_aware=int4", "adapter.method=lora"], "freezes"),
        (["sft.quantization_aware=int4", "model.width=96"], "expected a multiple of 64 for 4 bits"),
    ],
)
def test_a_check_before_any_step_names_what_does_not_fit(settings, expected, folder):
    world, recipe = World.start("cpu"), recipe_of(folder, "unborn", *settings)
    (found,) = check_recipe(recipe, ["sft"], set_up_device(recipe.run, world), world)
    assert len(found.problems) == 1 and expected in found.problems[0] and "\n" not in found.problems[0]


def test_settings_that_a_teacher_cannot_have_with_rl_are_rejected(folder):
    copy_student(folder, "rejected")
    for setting in ("rl.kl_weight=0.1", "rl.advantage_normalization=zscore"):
        with pytest.raises(UserError, match=setting.partition("=")[0]):
            learn(folder, "rejected", "rl", *ON_POLICY, setting)
    with pytest.raises(UserError, match="needs a teacher"):
        learn(folder, "rejected", "rl", *ON_POLICY, "distill.teacher=none")
