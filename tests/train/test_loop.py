"""The metrics that the loop records of a step."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fledgling.config import load_recipe
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.plan.flops import training_flops
from fledgling.plan.measured_speed import MeasuredSpeed, list_speeds, save_speed
from fledgling.record import read_jsonl
from fledgling.record.run_requests import request_action
from fledgling.runtime import device
from fledgling.runtime.world import World
from fledgling.train import loop, run
from fledgling.train.hooks import NO_EVALS
from fledgling.train.loop import TrainingStopped, agree_on_actions, change_horizon, write_rows
from fledgling.train.queued_step import StepRecord
from fledgling.train.stage_horizon import StageHorizon
from tests.all_stages import make_all_stages_recipe
from tests.fast_run import write_recipe


def run_with_peaks(tmp_path, monkeypatch, first: float, further: float) -> tuple[list[dict], list[str]]:
    """Returns the metrics and notices of three steps on a machine whose first and further peaks are these."""
    peaks = iter([first])
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: next(peaks, further))
    recipe = make_all_stages_recipe(tmp_path, **{"pretrain.steps": 3})
    run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    stage = Path(recipe.run.out) / "pretrain"
    return read_jsonl(stage / "metrics.jsonl"), [line["text"] for line in read_jsonl(stage / "notices.jsonl")]


def test_a_peak_that_a_step_exceeds_is_measured_again_and_reported(tmp_path, monkeypatch):
    """It was measured on a busy machine; silently taking the step as the peak would give a share of 100 %."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    for name in ("cpu", "cpu-bf16"):
        save_speed(MeasuredSpeed(name, 0.5, 2.0, 9_000.0, "a model", "2026-01-02", 1e9, 4096))
    lines, notices = run_with_peaks(tmp_path, monkeypatch, 1.0, 1e15)
    assert len(lines) == 3 and all(0 < line["mfu"] < 0.01 and line["peak_flops"] == 1e15 for line in lines)
    (problem,) = [text for text in notices if "measured too low" in text]
    assert "measured again: 1,000,000.0" in problem
    assert "of 2026-01-02" in problem and "it is deleted" in problem, "a stored peak that is exceeded too"
    assert [len(list_speeds("cpu")), len(list_speeds("cpu-bf16"))].count(0) == 1, "that of the dtype in use"


def test_the_share_of_the_peak_counts_the_head_for_targets(tmp_path, monkeypatch):
    lines, _ = run_with_peaks(tmp_path, monkeypatch, 1e15, 1e15)
    flops = training_flops(load_recipe(tmp_path / "run" / "recipe.toml").resolve_model())
    start, shares = {"tokens": 0, "targets": 0}, set()
    for before, line in itertools.pairwise([start, *lines]):
        tokens, targets = (line[name] - before[name] for name in start)
        shares.add(targets / tokens)
        expected = (flops["total"] * tokens - flops["head"] * (tokens - targets)) / line["seconds"] / 1e15
        assert line["mfu"] == pytest.approx(expected, rel=1e-9)
    assert 0 < min(shares) < 1


def test_without_a_peak_above_the_steps_no_mfu_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    for name in ("cpu", "cpu-bf16"):
        save_speed(MeasuredSpeed(name, 0.5, 0.5, 9_000.0, "a model", "2026-01-02", 1e9, 4096))
    lines, notices = run_with_peaks(tmp_path, monkeypatch, 1.0, 2.0)
    assert any("it is deleted" in text for text in notices), "the peak measured at the start is twice the stored one"
    assert len(lines) == 3 and not any("mfu" in line or "peak_flops" in line for line in lines)
    assert sum("MFU is not recorded" in text for text in notices) == 1


def test_a_peak_that_a_step_comes_near_to_is_measured_again_once():
    """A model reaches 60 to 75 % of a processor's products: 95 % is of a peak that was measured on a busy machine."""
    calls, notices = [], []

    def measure_again(peak, reached):
        calls.append((peak, reached))
        return 120.0, "measured again"

    record = StepRecord(
        *(World(0, 1, 0, torch.device("cpu")), SimpleNamespace(log_notice=notices.append), None, None),
        *(1.0, 0.5, 100.0, 0.0, measure_again),
    )
    shares = [record._measure_speed(tokens, tokens, 1.0)["mfu"] for tokens in (80, 95, 110, 125)]
    assert shares[:3] == [0.8, 95 / 120, 110 / 120], "doubted once: the second measurement is believed"
    assert record._measure_speed(100, 40, 1.0)["mfu"] == 70 / 120, "the head has computed 40 tokens"
    assert calls == [(100.0, 95.0), (120.0, 125.0)] and len(notices) == 2, "but not where a step exceeds it"


def test_what_a_watcher_asks_for_is_done_after_the_step_and_changes_no_weight(tmp_path, monkeypatch):
    """The same steps with and without requests: the same data and losses; samples, evaluations, batch, and a stop."""
    file = write_recipe(tmp_path)
    options = {"pretrain.steps": 4, "pretrain.eval_every": 0, "pretrain.sample_every": 0, "pretrain.save_every": 0}
    recipe = load_recipe(file, [f"{key}={value}" for key, value in options.items()])
    stage = Path(recipe.run.out) / "pretrain"
    wanted = {1: ("sample", "batch"), 2: ("evaluate",), 3: ("stop",)}

    def ask(*arguments, step=[0], **options):  # noqa: B006 - counts the calls
        step[0] += 1
        for action in wanted.get(step[0], ()):
            request_action(Path(recipe.run.out), action)
        return queue_step(*arguments, **options)

    queue_step = loop.queue_step
    Path(recipe.run.out).mkdir()
    request_action(Path(recipe.run.out), "stop")  # of an earlier start: it is removed
    monkeypatch.setattr(loop, "queue_step", ask)
    with pytest.raises(TrainingStopped, match="after step 3"):
        run.run_stage(recipe, "pretrain", quiet=True)
    assert {line["step"] for line in read_jsonl(stage / "samples.jsonl")} == {0, 1}
    assert {line["step"] for line in read_jsonl(stage / "evals.jsonl")} == {0, 2}
    assert json.loads((stage / "batch.json").read_text())["step"] == 1
    assert run.run_stage(recipe, "pretrain", quiet=True)  # resumes from step 3
    options["run.out"] = f'"{tmp_path / "other"}"'
    other = load_recipe(file, [f"{key}={value}" for key, value in options.items()])
    monkeypatch.setattr(loop, "queue_step", queue_step)
    assert run.run_stage(other, "pretrain", quiet=True)
    values = [
        [(line["step"], line["loss"], line["data"]) for line in read_jsonl(Path(out) / "pretrain" / "metrics.jsonl")]
        for out in (recipe.run.out, other.run.out)
    ]
    assert values[0] == values[1] and len(values[0]) == 4


def test_a_request_of_any_rank_reaches_all(tmp_path):
    """Three ranks in turn: the last one sees the sum of all."""
    total = [0.0]

    def all_reduce(value: float) -> float:
        total[0] += value
        return total[0]

    def rank(actions, stops):
        for action in actions:
            request_action(tmp_path, action)
        recorder = SimpleNamespace(stage_dir=tmp_path / "sft", log_notice=notices.append)
        world = SimpleNamespace(size=3, is_main=bool(actions), all_reduce=all_reduce)
        return agree_on_actions(SimpleNamespace(world=world, recorder=recorder, should_stop=lambda: stops))

    notices: list[str] = []

    rank((), True)
    rank((), True)
    assert rank(("batch", "sample"), True) == {"stop", "batch", "sample"}
    assert notices == ["a watcher asked to sample"]
    total[0] = 0.0
    assert rank((), False) == frozenset()


def test_of_the_changes_of_a_stage_that_ends_in_time_all_are_recorded_and_large_ones_printed():
    horizon, printed, recorded = StageHorizon(100), [], []

    def log_notice(text, is_printed, total_steps):
        recorded.append(total_steps)
        printed.extend([total_steps] if is_printed else [])

    recorder = SimpleNamespace(log_notice=log_notice, total_steps=100)
    world = SimpleNamespace(is_main=True, all_gather_object=lambda value: [value])
    chosen = [99, 98, 97, 90, 91, 90, 89, 60, 95, 95]
    for step, steps in enumerate(chosen, 1):
        context = SimpleNamespace(choose_steps=lambda *_, steps=steps: steps, world=world, recorder=recorder)
        change_horizon(context, horizon, step, 1.0)
    assert recorded == chosen[:-1] and horizon.steps == recorder.total_steps == 95
    assert printed == [97, 90, 60, 95]


def test_rows_of_a_batch_mark_the_tokens_that_were_learned(tmp_path):
    targets = torch.tensor([[2, IGNORE_INDEX, 4], [IGNORE_INDEX, 7, IGNORE_INDEX]])
    write_rows(Batch(torch.tensor([[1, 2, 3], [5, 6, 7]]), targets), 9, tmp_path / "batch.json")
    rows = json.loads((tmp_path / "batch.json").read_text())["rows"]
    assert rows == [
        {"ids": [1, 2, 3, 4], "learned": [False, True, False, True]},
        {"ids": [5, 6, 7], "learned": [False, False, True]},
    ]
