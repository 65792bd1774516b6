"""A series of budgets is made run by run, is resumed after an interruption, and counts the intervals that held."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import budgets
from benchmarks.__main__ import main
from fledgling.record.seal import FORECAST, SPENT


def write_run(run_dir: Path, seconds: float, finished: bool = True) -> None:
    """Writes what the table reads: a forecast of a minute and of 1.5 bits per byte, and what was measured."""
    stage = run_dir / "pretrain"
    stage.mkdir(parents=True, exist_ok=True)
    forecasts = [
        {"name": "seconds", "value": 60.0, "low": 55.0, "high": 65.0, "note": ""},
        {"name": "pretrain bits_per_byte", "value": 1.5, "low": 1.4, "high": 1.6, "note": ""},
        {"name": "spelling", "value": 0.5, "low": 0.4, "high": 0.6, "note": ""},
    ]
    (run_dir / FORECAST).write_text(json.dumps({"budget": {"seconds": 60.0, "text": ""}, "forecasts": forecasts}))
    (run_dir / SPENT).write_text(json.dumps({"seconds": seconds, "finished": finished}))
    values = {"bits_per_byte": 1.55, "spelling": 0.7}
    lines = [{"stage": "pretrain", "step": 9, "name": name, "value": value, "n": 9} for name, value in values.items()]
    (stage / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (stage / "done.json").write_text('{"step": 9}')


def test_a_series_resumes_where_it_was_and_counts_what_held(tmp_path, monkeypatch, capsys):
    out, started = tmp_path / "series", []
    lengths = {"1min-seed1": 62.0, "2min-seed1": 70.0, "1min-seed2": 58.0, "2min-seed2": 61.0}

    def run(command, env, check):
        run_dir = next(Path(word.removeprefix("run.out=")) for word in command if word.startswith("run.out="))
        started.append(run_dir.name)
        assert env["FLEDGLING_CACHE"] == str(out / "cache") and command[4] == "--minutes"
        if len(started) == 3:
            return SimpleNamespace(returncode=75)
        write_run(run_dir, lengths[run_dir.name])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(budgets, "subprocess", SimpleNamespace(run=run))
    command = ["budgets", str(out), "--minutes", "1", "2", "--seeds", "2", "--results", str(tmp_path / "results")]
    assert main(command) == 1 and "run this again to resume" in capsys.readouterr().err
    assert main(command) == 0
    assert started == ["1min-seed1", "2min-seed1", "1min-seed2", "1min-seed2", "2min-seed2"], "what is done is skipped"
    printed = capsys.readouterr().out
    assert main([*command, "--set", "model.depth=2"]) == 1 and len(started) == 5, "finished runs have other settings"
    assert 'overrides is [] there, ["model.depth=2"] now' in capsys.readouterr().err
    assert "| 2min-seed1 | 60 s | 60 s | 70 s | 1.500 | 1.550 | 1 of 3 |" in printed
    assert (
        "| time | 3 of 4 |" in printed and "| bits per byte | 4 of 4 |" in printed and "| exams | 0 of 4 |" in printed
    )


@pytest.mark.parametrize("finished", [False, None])
def test_a_run_that_is_not_finished_counts_in_nothing(tmp_path, finished):
    write_run(tmp_path / "run", 60.0, finished)
    assert budgets.tabulate_budgets([tmp_path / "run"]) == {"runs": [], "quantities": {}, "copies": {}}


def test_a_copied_run_counts_once(tmp_path):
    write_run(tmp_path / "1min-seed1", 60.0)
    (tmp_path / "1min-seed1/pretrain/metrics.jsonl").write_text('{"step": 1, "loss": 5.25, "time": 17.5}\n')
    shutil.copytree(tmp_path / "1min-seed1", tmp_path / "2min-seed1")
    found = budgets.tabulate_budgets([tmp_path / "1min-seed1", tmp_path / "2min-seed1"])
    assert [row["run"] for row in found["runs"]] == ["1min-seed1"] and found["quantities"]["time"]["of"] == 1
    assert "2min-seed1 is left out: it is the same run as 1min-seed1" in budgets.format_budgets(found)
