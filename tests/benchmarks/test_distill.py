"""The bench of distillation: both students take the same time, and an interrupted measurement is resumed."""

import json

import pytest

from benchmarks import distill
from benchmarks.__main__ import main
from benchmarks.distill import format_distillation, measure_distillation
from fledgling.config import load_recipe
from fledgling.runtime import device
from fledgling.train import run
from fledgling.train.hooks import NO_EVALS
from tests.fast_run import write_recipe
from tests.ranks import one_thread


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
        recipe = load_recipe(write_recipe(folder), ['stages=["pretrain"]', f"run.out={folder / 'run'}"])
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    return folder / "run"


def test_both_students_take_the_same_time_and_a_second_call_trains_nothing(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(distill, "TURNS", 1)
    half = ("distill.until=0.5",)
    found = measure_distillation(teacher, tmp_path / "out", 2, (1,), 8, half)
    (row,) = found["rows"]
    assert row["distilled"]["steps"] == 2 and row["distilled"]["seconds"] > row["distilled"]["seconds_of_storing"] > 0
    of_step = found["seconds_of_a_step"]
    seconds = sum(of_step.values()) + row["distilled"]["seconds_of_storing"]
    assert row["alone"]["steps"] == max(1, round(seconds / of_step["alone"])) > 0
    assert of_step["alone"] > 0 < of_step["distilled"]
    assert row["distilled"]["evals"].keys() == row["alone"]["evals"].keys() >= {"bits_per_byte"}
    table = format_distillation(found)
    assert "| steps | 2 |" in table and "bits_per_byte" in table and json.loads(json.dumps(found)) == found
    assert measure_distillation(teacher, tmp_path / "out", 2, (1,), 8, half) == found


def test_a_teacher_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["distill", str(tmp_path)]) == 1
    assert "is no run directory" in capsys.readouterr().err
