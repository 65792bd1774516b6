"""A run with a budget, by a clock that steps move: it forecasts, keeps its time, is resumed, and compares."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fledgling.config import AdapterConfig, UserError, load_recipe
from fledgling.plan.amount import Budget
from fledgling.plan.budget import TrainingSpeed
from fledgling.plan.budgeted_run import dump_without_place, read_budgeted_run
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.forecast_text import format_budgeted_run
from fledgling.plan.past_runs import load_past_runs, user_file
from fledgling.record import checkpoint, read_jsonl
from fledgling.report import build_report
from fledgling.report.forecasts import forecast_rows
from fledgling.report.run_data import load_run_data
from fledgling.runtime import device
from fledgling.runtime.device import choose_setup
from fledgling.runtime.world import World
from fledgling.speedrun import budgeted
from fledgling.speedrun.continued import continue_run
from fledgling.speedrun.stages import run_stages
from fledgling.tasks.skills import WORDINGS
from fledgling.train import loop, queued_step, training_speed
from fledgling.train import run as train_run
from fledgling.train.loop import TrainingStopped
from fledgling.train.run_directory import require_done
from fledgling.verify.figures import check_recorded_settings
from tests.fast_run import write_recipe
from tests.ranks import one_thread
from tests.stop_request import StopRequest

OPTIONS = ['stages=["pretrain", "sft"]', "pretrain.steps=20", "sft.steps=20"]
BUDGET = Budget(60.0, "--minutes 1")


class StepClock:
    """A clock that a training step moves by `step` seconds, and nothing else."""

    def __init__(self):
        self.time, self.step = 0.0, 1.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock(monkeypatch):
    clock, queue_step = StepClock(), loop.queue_step

    def make_step(*arguments):
        clock.time += clock.step
        return queue_step(*arguments)

    monkeypatch.setattr(loop, "queue_step", make_step)
    for module in (loop, queued_step):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    return clock


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The smallest recipe, on a machine that is measured at one second a step."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e15)

    def measure(recipe, world, setup, seconds):
        per_token = training_flops_per_token(recipe.resolve_model())
        return TrainingSpeed(per_token * 128 / 1.0, per_token, "measured here")

    monkeypatch.setattr(budgeted, "measure_training_speed", measure)
    shares = iter([2.0, 1.5, 3.0, 3.0])
    monkeypatch.setattr(budgeted, "measure_core_share", lambda: next(shares))
    for name, value in (("FASTEST", 0.0), ("SLOWEST", 0.0), ("LAST_ROWS", 2), ("FIRST_ROWS", 2)):
        monkeypatch.setattr(f"fledgling.plan.stage_seconds.{name}", value)  # a test starts in no time
    with one_thread():
        yield load_recipe(write_recipe(tmp_path), OPTIONS)


def go(recipe, clock, budget=BUDGET, **options):
    return budgeted.run_budgeted(recipe, budget, True, quiet=True, now=clock, **options)


def read_steps(recipe, stage):
    return read_jsonl(Path(recipe.run.out) / stage / "metrics.jsonl")


def test_a_run_within_a_budget_forecasts_keeps_its_time_and_compares(recipe, clock, tmp_path, monkeypatch):
    """It is interrupted too: it is resumed within what is left, and the pause does not count."""
    run_dir, shown = Path(recipe.run.out), []
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped):
        patch.setattr(train_run, "catch_stop_signals", StopRequest(6))
        go(recipe, clock, show=lambda run, is_resumed: shown.append((run, is_resumed)))
    assert 0 < budgeted.read_spent(run_dir) < BUDGET.seconds / 2
    clock.time = 1e6  # a long pause
    assert go(recipe, clock, None, show=lambda run, is_resumed: shown.append((run, is_resumed))) == ["pretrain", "sft"]
    assert shown[0][0].speed.core_share == 1.5, "the less of before and after the steps"
    assert shown[0] == (read_budgeted_run(run_dir), False) and shown[1] == (shown[0][0], True)
    text = format_budgeted_run(shown[0][0])
    later = replace(shown[0][0], planned=shown[0][0].planned | {"seconds": shown[0][0].planned["seconds"] + 42})
    assert "measuring" not in text and "\nmeasuring 0:42; pretrain" in format_budgeted_run(later)
    assert "--minutes 1: depth 1 x 64" in text and "90 % interval" in text and "time in all" in text
    of_other_depth = replace(shown[0][0].speed, flops_per_token=0.5 * shown[0][0].speed.flops_per_token)
    for run in (shown[0][0], replace(shown[0][0], speed=of_other_depth)):
        assert "at 128 tokens/s" in format_budgeted_run(run), "of the model that is made, not of the one measured"
    for plan in (run_dir / "plan.json", run_dir / "sft" / "plan.json"):
        planned = json.loads(plan.read_text())["stages"]["pretrain"]
        assert planned["tokens_per_second"] == pytest.approx(128, rel=0.01)
    spent = json.loads((run_dir / "spent.json").read_text())
    assert "spent.json" in json.loads((run_dir / "seal.json").read_text())["files"]
    assert spent["finished"] and 0.9 * BUDGET.seconds <= spent["seconds"] <= 1.02 * BUDGET.seconds
    assert [line["step"] for line in read_steps(recipe, "pretrain")][:8] == list(range(1, 9))
    (past,) = load_past_runs((user_file(),))
    assert past.measured["seconds"] == spent["seconds"] and past.budget == BUDGET.seconds
    assert past.data == shown[0][0].planned["data"] and past.data.startswith("text ")
    assert past.wordings == WORDINGS == shown[0][0].planned["wordings"]
    assert past.sources == ", ".join(sorted(recipe.pretrain.mixture))
    assert past.measured["pretrain bits_per_byte"] > 0 and "identity_test" in past.measured
    (source,) = json.loads((run_dir / "pretrain" / "done.json").read_text())["sources"]
    assert past.passes == source["read"] / source["rows"] > 0 and read_budgeted_run(run_dir).planned["passes"] > 0
    rows = forecast_rows(load_run_data(run_dir))
    assert rows[0][0] == "time in all" and all(row[3] != "-" for row in rows[:3])
    assert "Expected before it began" in build_report(run_dir).read_text()
    assert go(recipe, clock) == [] and load_past_runs((user_file(),)) == [past], "a finished run is not counted again"
    (run_dir / "sft/done.json").unlink()
    os.truncate(run_dir / "sft/checkpoints" / max(os.listdir(run_dir / "sft/checkpoints")) / "model.safetensors", 9)
    assert go(recipe, clock) == ["sft"], "a stage of a finished run is trained again"
    assert json.loads((run_dir / "spent.json").read_text()) == spent and load_past_runs((user_file(),)) == [past]
    other = (
        r"has begun within --minutes 1 with other settings: seed is 3 there, 2 now; give those, or .* --set run.out=DIR"
    )
    with pytest.raises(UserError, match=other):
        go(load_recipe(tmp_path / "fast.toml", [*OPTIONS, "seed=2"]), clock)
    with pytest.raises(UserError, match=r"has begun within --minutes 1, and --minutes 5 is given: leave it out"):
        go(recipe, clock, Budget(300.0, "--minutes 5"))
    for text, reason in (("[]", "not a JSON object"), ("{}", "it has no 'recipe'"), ('{"recipe": 1}', "")):
        (run_dir / "forecast.json").write_text(text)
        with pytest.raises(UserError, match=rf"forecast.json is corrupt \({reason}.*\): delete the run, or choose"):
            go(recipe, clock)


def test_a_recipe_is_mended_in_its_directory(recipe, clock, tmp_path, capsys, monkeypatch):
    run_dir, file = tmp_path / "run", tmp_path / "fast.toml"
    wrong = load_recipe(file, [*OPTIONS, 'sft.mixture={"chat:gone.jsonl"=1.0}'])
    with pytest.raises(UserError, match=r"cannot read gone.jsonl"):
        go(wrong, clock)
    assert not (run_dir / "forecast.json").exists(), "nothing is written of a run that cannot end"
    monkeypatch.setattr(budgeted, "run_stages", lambda *arguments, **options: [])
    go(recipe, clock)  # planned, and killed before its first step
    known = read_budgeted_run(run_dir)
    assert continue_run(known, recipe, None, run_dir, print) == (known, {})
    (run_dir / "recipe.toml").write_text("seed = 7\n")
    assert continue_run(known, load_recipe(file, [*OPTIONS, "seed=2"]), BUDGET, run_dir, print) == (None, {})
    assert continue_run(known, recipe, Budget(300.0, "--minutes 5"), run_dir, print) == (None, {})
    assert "has made no step of what was planned within --minutes 1: it is planned again" in capsys.readouterr().out
    (run_dir / "recipe.toml").unlink()
    (run_dir / "pretrain").mkdir()
    (run_dir / "pretrain" / "metrics.jsonl").write_text("")
    mended = load_recipe(file, [*OPTIONS, "sft.eval_questions=3"])
    again, changed = continue_run(known, mended, None, run_dir, print)
    assert changed == {"sft.eval_questions": 3} and again.recipe.sft.eval_questions == 3
    assert again.recipe.sft.steps == known.recipe.sft.steps, "the budget's"
    assert "taken for stages that have not begun: sft.eval_questions is 1 before, 3 now" in capsys.readouterr().out
    assert continue_run(again, mended, None, run_dir, print) == (again, {})
    deeper = replace(known, recipe=replace(known.recipe, model=replace(known.recipe.model, depth=2)))
    assert continue_run(deeper, recipe, None, run_dir, print) == (deeper, {}), "the budget has chosen the depth"
    with pytest.raises(UserError, match=r"model.depth is 2 there, 1 now"):
        continue_run(deeper, recipe, None, run_dir, print, is_pinned=True)
    as_made = replace(recipe, model=replace(recipe.model, depth=2))
    assert continue_run(deeper, as_made, None, run_dir, print, is_pinned=True) == (deeper, {}), "as the line says"
    with pytest.raises(UserError, match=r"within --minutes 1, and --minutes 5 is given"):
        continue_run(deeper, as_made, Budget(300.0, "--minutes 5"), run_dir, print, is_pinned=True)
    given = replace(recipe, run=replace(recipe.run, init_from="weights"))
    known_given = replace(deeper, given=dump_without_place(given))
    assert continue_run(known_given, given, None, run_dir, print, is_pinned=True) == (known_given, {})
    for fixed in ("sft.steps=9", "pretrain.eval_questions=3", "model.width=32"):
        with pytest.raises(UserError, match=rf"with other settings: {fixed.partition('=')[0]} is .* there, .* now"):
            continue_run(known, load_recipe(file, [*OPTIONS, fixed]), None, run_dir, print)


def test_a_compiled_run_within_a_budget_has_the_memory_of_one_without(recipe, clock, tmp_path, monkeypatch):
    """At full size only: kernels are really compiled. `test_trial_step.py` has what this once failed for."""
    options = [*OPTIONS, "run.compile=on", "pretrain.batch_tokens=2048", "pretrain.micro_batch_size=32"]
    options.append("pretrain.save_every=20")  # a budget saves within a stage, and the copy to be saved is memory too
    sizes, assumed = [], budgeted.measure_training_speed
    for name in ("without", "within"):
        sized = load_recipe(tmp_path / "fast.toml", [*options, f"run.out={tmp_path / name}"])

        def measure(recipe, world, setup, seconds):
            training_speed.measure_training_speed(recipe, world, setup, 0.0)
            speed = assumed(recipe, world, setup, seconds)
            return replace(speed, flops=16 * speed.flops)  # a step has 16 times the tokens

        monkeypatch.setattr(budgeted, "measure_training_speed", measure)
        go(sized, clock) if name == "within" else run_stages(sized, quiet=True)
        sizes.append([line["memory"] for line in read_steps(sized, "pretrain") if "memory" in line])
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01) and len(sizes[0]) == 1


@pytest.mark.parametrize(("busy", "again"), [(2e9, 5e9), (2e9, 2e9), (2e9, 1e9)])
def test_a_speed_far_below_the_estimate_is_measured_again(recipe, monkeypatch, busy, again):
    """Another process computed while a depth was measured, and twelve minutes became 427 steps of a deeper model."""
    setup = replace(choose_setup(recipe.run, World.start("cpu")), compiled=True, peak_flops=1e15)
    monkeypatch.setattr(budgeted, "set_up_device", lambda *arguments: setup)
    monkeypatch.setattr(budgeted, "measure_core_share", lambda: 1.0)
    rates, chosen = iter([5e9, busy, again]), []

    def measure(sized, world, setup, *least):
        return TrainingSpeed(next(rates), training_flops_per_token(sized.resolve_model()), "measured here")

    def choose(recipe, budget, device, ranks, speeds, spent, is_pinned):
        chosen.append([speed.flops for speed in speeds])
        return SimpleNamespace(recipe=recipe)

    monkeypatch.setattr(budgeted, "measure_training_speed", measure)
    monkeypatch.setattr(budgeted, "choose_budgeted_run", choose)
    monkeypatch.setattr(
        budgeted, "replace", lambda value, **changes: value if "given" in changes else replace(value, **changes)
    )
    budgeted.measure_and_choose(recipe, BUDGET, SimpleNamespace(spent=0.0), False)
    assert chosen[-1] == [max(busy, again)] and next(rates, None) is None


def test_the_depth_that_is_measured_is_the_one_that_a_few_steps_without_compiling_lead_to(recipe, monkeypatch):
    """Compiling takes most of a measurement: the recipe's own depth is measured where it is likely to stay."""
    setup = replace(choose_setup(recipe.run, World.start("cpu")), compiled=True, peak_flops=1e15)
    monkeypatch.setattr(budgeted, "set_up_device", lambda *arguments: setup)
    monkeypatch.setattr(budgeted, "measure_core_share", lambda: 1.0)
    measured, speed = [], [5e9]

    def measure(sized, world, setup, *least):
        measured.append((sized.model.depth, setup.compiled))
        return TrainingSpeed(speed[0], training_flops_per_token(sized.resolve_model()), "measured here")

    def choose(recipe, budget, device, ranks, speeds, spent, is_pinned):
        if speeds[0].flops < 4e9:
            raise UserError("too slow")
        depth = 1 if is_pinned or speeds[-1].flops > 6e9 else 2
        return SimpleNamespace(recipe=replace(recipe, model=replace(recipe.model, depth=depth)), speeds=speeds)

    monkeypatch.setattr(budgeted, "measure_training_speed", measure)
    monkeypatch.setattr(budgeted, "choose_budgeted_run", choose)
    monkeypatch.setattr(
        budgeted, "replace", lambda value, **changes: value if "given" in changes else replace(value, **changes)
    )
    clock = SimpleNamespace(spent=0.0)
    for rate, is_pinned, expected in (
        (4e9, False, [(1, False), (2, True)]),  # an estimate of 5.2e9: depth 2, which is measured first
        (5e9, False, [(1, False), (1, True), (2, True)]),  # an estimate of 6.5e9: depth 1, until that is measured
        (5e9, True, [(1, True)]),
        (3e9, False, [(1, False), (1, True)]),  # an estimate has not the last word
    ):
        measured.clear()
        speed[0] = rate
        with pytest.raises(UserError) if rate == 3e9 else nullcontext():
            budgeted.measure_and_choose(recipe, BUDGET, clock, is_pinned)
        assert measured == expected


def test_a_machine_that_slows_down_makes_fewer_steps_and_ends_in_time(recipe, clock):
    planned = []
    recipe = replace(recipe, sft=replace(recipe.sft, mtp_targets=1, mtp_decay_steps=10))
    go(recipe, clock, show=lambda run, is_resumed: (planned.append(run), setattr(clock, "step", 2.0)))
    made = {name: len(read_steps(recipe, name)) for name in ("pretrain", "sft")}
    wanted = {stage.name: stage.steps for stage in planned[0].stages}
    assert all(made[name] < 0.7 * wanted[name] for name in made), (made, wanted)
    assert json.loads((Path(recipe.run.out) / "spent.json").read_text())["seconds"] <= 1.04 * BUDGET.seconds
    assert all(read_steps(recipe, name)[-1]["lr_multiplier"] < 0.5 for name in made), "the schedule's end is made"
    notices = [line["text"] for line in read_jsonl(Path(recipe.run.out) / "sft" / "notices.jsonl")]
    assert any("steps instead of the planned" in text and text.startswith("sft: ") for text in notices)
    assert not any("settings differ" in text for text in notices), "no user has changed them"
    recorded = load_recipe(recipe.run.out)
    assert {name: recorded.stage_config(name).steps for name in made} == made, "recipe.toml says what ran"
    assert 1 <= recorded.sft.mtp_decay_steps < planned[0].recipe.sft.mtp_decay_steps, "it keeps its share"
    assert check_recorded_settings(Path(recipe.run.out)).problems == []
    lines: list[str] = []
    for name in made:
        done = json.loads((Path(recipe.run.out) / name / "done.json").read_text())
        planned_steps = done.get("planned_steps", made[name])  # as an earlier version wrote it
        table = replace(recorded.stage_config(name), steps=planned_steps)
        for given in (recorded, replace(recorded, **{name: table})):
            require_done(given, name, Path(recipe.run.out), lines.append)
    assert lines == [] and go(recorded, clock, None) == []
    changed = replace(recorded, pretrain=replace(recorded.pretrain, steps=made["pretrain"] - 1))
    require_done(changed, "pretrain", Path(recipe.run.out), lines.append)
    assert len(lines) == 1 and "pretrain.steps" in lines[0] and "ignored: pretrain is done" in lines[0]


def test_a_slow_machine_shortens_all_stages_by_the_same_share(recipe, clock):
    planned = []
    names = ("pretrain", "midtrain", "sft")
    recipe = replace(recipe, stages=names, midtrain=replace(recipe.midtrain, steps=20))
    budget = Budget(150.0, "--minutes 2.5")
    go(recipe, clock, budget, show=lambda run, is_resumed: (planned.append(run), setattr(clock, "step", 2.0)))
    steps = {stage.name: stage.steps for stage in planned[0].stages}
    shares = [read_steps(recipe, name)[-1]["step"] / steps[name] for name in names]
    assert min(shares) < 0.5 and max(shares) < 1.35 * min(shares), shares


def test_settings_that_cannot_be_run_are_an_error_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(budgeted, "measure_and_choose", lambda *_: pytest.fail("measured"))
    recipe = load_recipe(write_recipe(tmp_path), OPTIONS)
    without_stage = replace(recipe, adapter=AdapterConfig("lora", stages=("rl",)))
    without_text = replace(recipe, tokenizer=replace(recipe.tokenizer, sources=("nowhere",)))
    for wrong, problem in ((without_stage, "adapter.stages"), (without_text, "tokenizer.sources")):
        with pytest.raises(UserError, match=problem):
            budgeted.run_budgeted(wrong, BUDGET)
    assert not Path(recipe.run.out).exists()


def test_a_run_that_began_without_a_budget_gets_none(recipe, clock):
    with pytest.raises(UserError, match=r"nothing can be learned in 5 s"):
        go(recipe, clock, Budget(5.0, "--minutes 0.08"))
    assert not (Path(recipe.run.out) / "forecast.json").exists()
    metrics = Path(recipe.run.out) / "pretrain" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"has begun without a budget: leave --minutes 1 out"):
        go(recipe, clock)
    for stage in recipe.stages:
        (Path(recipe.run.out) / stage).mkdir(exist_ok=True)
        (Path(recipe.run.out) / stage / "done.json").write_text("{}")
    assert go(recipe, clock) == [], "all is done, as without a budget"


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"seconds": 1e300}', '{"seconds": "x"}', '{"seconds": -5.0}', '{"seconds": 3.0, "finished": true}'],
)
def test_the_time_spent_is_at_least_what_finished_stages_recorded(text, tmp_path):
    for stage, seconds in (("pretrain", 40.0), ("sft", 2.5)):
        (tmp_path / stage).mkdir()
        done = {"training_seconds": seconds} if stage == "sft" else {"training_seconds": 1.0, "seconds": seconds}
        (tmp_path / stage / "done.json").write_text(json.dumps(done))  # of an older version, and with its evaluations
    (tmp_path / "spent.json").write_text(text)
    notices: list[str] = []
    assert budgeted.read_spent(tmp_path, notices.append) == 42.5
    assert len(notices) == 1 and "counted as 42.5, which its stages recorded" in notices[0]
    (tmp_path / "spent.json").write_text('{"seconds": 50.0, "finished": true}')
    assert budgeted.read_spent(tmp_path, notices.append) == 50.0
    (tmp_path / "spent.json").write_text('{"seconds": 45.0, "stage": "sft"}')
    assert budgeted.read_spent(tmp_path, notices.append) == 47.5, "sft has ended since it was written"
    assert len(notices) == 1, "nothing is wrong with either"


def test_the_time_spent_of_a_stage_that_is_half_done_is_counted_without_spent_json(tmp_path):
    assert budgeted.read_spent(tmp_path) == 0.0
    stage_dir = tmp_path / "pretrain"
    stage_dir.mkdir()
    lines = [{"step": step, "elapsed": 10.0 * step} for step in (1, 2, 3)]
    (stage_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoint.save_checkpoint(stage_dir / "checkpoints", 2, {"model": {"w": torch.zeros(1)}}, {"step": 2})
    notices: list[str] = []
    assert budgeted.read_spent(tmp_path, notices.append) == 20.0
    assert len(notices) == 1 and "spent.json is gone; counted as 20.0, which its stages recorded" in notices[0]


def test_the_passes_of_a_run_are_those_over_its_largest_source_and_not_known_without_a_record():
    text = {"source": "text", "rows": 640, "read": 1440, "passes": 2.25}
    tasks = {"source": "pretrain tasks", "rows": 1860, "read": 1500, "passes": 0.8}
    assert budgeted.count_source_passes([tasks, text], "text") == 2.25
    assert budgeted.count_source_passes([tasks, text], "arithmetic") == 1500 / 1860
    for reading in (None, [], [7], [{"source": "text", "rows": 0, "read": 0}], "text"):
        assert budgeted.count_source_passes(reading, "text") is None


def test_a_finished_run_whose_end_was_not_recorded_is_recorded_by_the_next_start(recipe, clock, monkeypatch, capsys):
    def fail(past):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(budgeted, "append_past_run", fail)
        assert go(recipe, clock) == ["pretrain", "sft"]
    assert "not kept for later forecasts: " in capsys.readouterr().err and not user_file().exists()
    spent = Path(recipe.run.out) / "spent.json"
    spent.write_text(json.dumps({"seconds": json.loads(spent.read_text())["seconds"], "stage": "sft"}))  # killed
    assert go(recipe, clock) == [] and json.loads(spent.read_text())["finished"]
    assert len(load_past_runs((user_file(),))) == 1
