"""Runs of several seeds become one table of medians and ranges; runs that cannot be compared are rejected."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import seeds
from benchmarks.__main__ import main
from fledgling.plan.amount import Budget

SCORES = {1: 0.5, 2: 0.9, 3: 0.7}


def write_run(path, seed, score, **recipe):
    """Writes what the table reads of a run: its recipe and the final evaluations of one stage."""
    (path / "sft").mkdir(parents=True)
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {"seed": seed, **recipe}.items())
    (path / "recipe.toml").write_text(settings)
    lines = [
        {"stage": "sft", "step": step, "name": "spelling", "value": value, "n": 200, "baseline": 0.1}
        for step, value in ((5, 0.0), (9, score))
    ]
    lines.append({"stage": "sft", "step": 9, "name": "bits_per_byte", "value": 1 + score, "n": 40})
    (path / "sft" / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_table_has_median_and_range_of_the_last_values(tmp_path, capsys):
    runs = [write_run(tmp_path / f"{seed}", seed, score) for seed, score in SCORES.items()]
    assert main(["seeds", *map(str, runs), "--results", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr().out
    assert "| spelling | 70.0 % (50.0 % to 90.0 %) | 10.0 % | 200 |" in printed
    assert "| bits_per_byte | 1.700 (1.500 to 1.900) | - | 40 |" in printed
    assert json.loads((tmp_path / "results" / "seeds.json").read_text())["result"]["seeds"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("second", "expected"),
    [({"seed": 1}, "seeds [1, 1]"), ({"seed": 2, "name": "other"}, "expected one recipe with different seeds")],
)
def test_runs_that_cannot_be_compared_are_one_line(second, expected, tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 1, 0.5), write_run(tmp_path / "b", score=0.6, **second)]
    assert main(["seeds", *map(str, runs), "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_a_copied_run_is_no_second_seed(tmp_path, capsys):
    """The copy's recipe.toml was edited, so that its seed seems to be another one."""
    for seed in (1, 2):
        path = write_run(tmp_path / f"{seed}", seed, 0.5)
        (path / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.75, "time": 1700000000.5}\n')
    assert main(["seeds", str(tmp_path / "1"), str(tmp_path / "2"), "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / '2'} and {tmp_path / '1'} have the same first step" in error and error.count("\n") == 1


def test_a_run_that_has_not_finished_is_rejected(tmp_path, capsys):
    runs = [write_run(tmp_path / f"{seed}", seed, score) for seed, score in SCORES.items()]
    (runs[2] / "sft" / "evals.jsonl").write_text((runs[2] / "sft" / "evals.jsonl").read_text().split("\n")[0] + "\n")
    assert main(["seeds", *map(str, runs), "--results", str(tmp_path)]) == 1
    assert "expected finished runs" in capsys.readouterr().err


@pytest.mark.parametrize(("minutes", "status"), [(12, 0), (30, 1)])
def test_runs_with_the_same_budget_may_have_made_different_numbers_of_steps(minutes, status, tmp_path, monkeypatch):
    runs = [write_run(tmp_path / f"{seed}", seed, score, steps=100 + seed) for seed, score in SCORES.items()]
    given = {
        run: SimpleNamespace(given=f"seed = {seed}", budget=Budget(60.0 * amount, f"--minutes {amount}"))
        for run, seed, amount in zip(runs, SCORES, (12, 12, minutes), strict=True)
    }
    monkeypatch.setattr(seeds, "read_budgeted_run", given.get)
    assert main(["seeds", *map(str, runs), "--results", str(tmp_path / "results")]) == status
