"""The watcher's view of a run is the report's, follows the files, and stays bounded."""

import json
import shutil

import pytest

from fledgling.record import Recorder, write_json
from fledgling.report.prediction_pairs import pair_predictions
from fledgling.report.run_data import load_run_data
from fledgling.watch import run_watch
from fledgling.watch.run_watch import RunWatch
from tests.report.synthetic_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("watched") / "run", scale=0.1)


def test_it_shows_what_the_report_shows(run):
    watched = RunWatch(run)
    watched.update()
    described = watched.describe()
    data = load_run_data(run)
    assert described["order"] == ["pretrain", "midtrain", "sft", "rl"] and described["name"] == "quickstart"
    assert not described["is_running"]
    for stage, expected in zip(described["stages"], data.stages, strict=True):
        assert stage["steps"] == [line["step"] for line in expected.metrics]
        assert stage["series"]["loss"] == expected.metric_series("loss")[1]
        assert [(e["name"], e["step"], e["low"]) for e in stage["evals"]] == [
            (e.name, e.step, e.low) for e in expected.evals
        ]
        assert len(stage["samples"]) == len(expected.samples) and stage["notices"] == expected.notices
    assert [(p["key"], p["measured"]) for p in described["pairs"]] == [
        (p.key, p.measured) for p in pair_predictions(data)
    ]
    json.dumps(described, allow_nan=False)


def test_only_what_has_changed_is_repeated(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain", "midtrain"), scale=0.02)
    watched = RunWatch(run)
    watched.update()
    before = watched.version
    watched.update()
    assert watched.describe(before)["stages"] == []
    with Recorder(run / "midtrain", "midtrain", 9, quiet=True) as recorder:
        recorder.log_metrics(10, loss=float("nan"), seconds=0.5)
    watched.update()
    (stage,) = watched.describe(before)["stages"]
    assert stage["name"] == "midtrain" and stage["step"] == 10 and stage["series"]["loss"][-1] is None
    with Recorder(run / "midtrain", "midtrain", 9, quiet=True) as recorder:
        recorder.rewind(4)
    watched.update()
    assert watched.describe(before)["stages"][0]["step"] == 4


def test_a_stage_that_is_shortened_to_end_in_time_has_its_new_length(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain",), scale=0.02)
    (run / "pretrain" / "done.json").unlink()
    watched = RunWatch(run)
    watched.update()
    (before,) = watched.describe()["stages"]
    with Recorder(run / "pretrain", "pretrain", 9, quiet=True) as recorder:
        recorder.log_notice("fewer steps", total_steps=before["step"] + 3)
    watched.update()
    (after,) = watched.describe()["stages"]
    assert after["total_steps"] == after["step"] + 3 != before["total_steps"]
    assert after["notices"][-1] == "fewer steps"


def test_a_run_that_has_not_started_is_shown_when_it_has(tmp_path):
    watched = RunWatch(tmp_path / "run")
    watched.update()
    assert watched.describe()["stages"] == [] and watched.describe_batch() is None
    make_run(tmp_path / "run", stages=("pretrain",), scale=0.02)
    watched.update()
    assert [stage["name"] for stage in watched.describe()["stages"]] == ["pretrain"]


def test_a_stage_that_was_deleted_is_shown_no_more_and_a_missing_run_says_so(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain", "midtrain"), scale=0.02)
    watched = RunWatch(run)
    watched.update()
    assert watched.describe()["begun"] == ["pretrain", "midtrain"] and watched.describe()["exists"]
    shutil.rmtree(run / "midtrain")
    watched.update()
    assert [stage["name"] for stage in watched.describe()["stages"]] == watched.describe()["begun"] == ["pretrain"]
    shutil.rmtree(run)
    watched.update()
    described = watched.describe()
    assert described["stages"] == described["order"] == [] and not described["exists"]


def test_memory_is_bounded_and_the_newest_lines_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run_watch, "MAX_LINES", 100)
    monkeypatch.setattr(run_watch, "KEPT_LINES", 20)
    (tmp_path / "pretrain").mkdir()
    values = {"loss": 1.0, "text": "t" * 99999, "name": "n", "value": 1}
    long = "\n".join(json.dumps({"step": step, "prompt": str(step), **values}) for step in range(150))
    for name in ("evals", "samples", "notices"):
        (tmp_path / "pretrain" / f"{name}.jsonl").write_text(f"{long}\n")
    short = "\n".join(json.dumps({"step": step}) for step in range(900))
    (tmp_path / "pretrain" / "metrics.jsonl").write_text(f"{short}\n")
    watched = RunWatch(tmp_path)
    for _ in range(20):
        watched.update()
    stage = watched.stages["pretrain"]
    steps = [line["step"] for line in stage.metrics]
    assert len(steps) <= 100 and steps[-20:] == list(range(880, 900)) and steps[0] == 0 and steps == sorted(steps)
    assert len(stage.samples) == run_watch.MAX_SAMPLES and len(stage.notices) == run_watch.MAX_NOTICES
    assert max(map(len, stage.notices)) == run_watch.MAX_TEXT
    assert len(json.dumps(watched.describe())) < 400_000


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rows": 3}', '{"rows": [{"ids": [99999], "learned": [1]}]}'])
def test_a_batch_that_cannot_be_read_is_a_line_and_no_error(run, text):
    (run / "sft" / "batch.json").write_text(text)
    watched = RunWatch(run)
    watched.update()
    batch = watched.describe_batch()
    assert batch is None or "cannot be shown" in batch["problem"]


def test_files_of_any_content_are_shown_without_an_error(tmp_path):
    (tmp_path / "sft").mkdir(parents=True)
    odd = [
        {"step": 1, "loss": "x"},
        {"step": -1},
        {"step": 2, "loss": 1e308, "tokens": True},
        {"name": 3, "value": "y"},
    ]
    for name in ("metrics", "evals", "samples", "notices"):
        (tmp_path / "sft" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, odd)))
    (tmp_path / "recipe.toml").write_text('name = 3\nstages = "all"\nsft = 4\n')
    write_json(tmp_path / "plan.json", {"stages": [1], "horizon": 3})
    write_json(tmp_path / "lock.json", [1])
    watched = RunWatch(tmp_path)
    watched.update()
    json.dumps(watched.describe(), allow_nan=False)
