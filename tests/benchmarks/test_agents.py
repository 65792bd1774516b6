"""The learning curves of environments are read from the runs' records, finished or not."""

import json
import shutil
import subprocess
import xml.etree.ElementTree

import pytest

from benchmarks.__main__ import main
from benchmarks.agents import collect_agents, draw_agents, format_agents, run_agents
from fledgling.config import UserError


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluation(step, kind, value):
    return {"step": step, "name": f"env:guessing_{kind}", "value": value, "low": 0.0, "high": 1.0, "n": 100}


def write_run(folder, seed, finished):
    run = folder / f"guessing-{seed}"
    write_lines(run / "sft" / "evals.jsonl", [evaluation(9, "dev", 0.1), evaluation(9, "test", 0.125)])
    write_lines(run / "sft" / "done.json", [{}])
    write_lines(run / "sft" / "metrics.jsonl", [{"step": 1, "seconds": 30.0}])
    write_lines(run / "rl" / "metrics.jsonl", [{"step": i, "seconds": 10.0, "tool_calls": 3.0} for i in (1, 2, 3)])
    evaluations = [evaluation(0, "dev", 0.1), evaluation(3, "dev", 0.9), evaluation(3, "test", 0.95)]
    write_lines(run / "rl" / "evals.jsonl", evaluations[: 3 if finished else 1])
    if finished:
        write_lines(run / "rl" / "done.json", [{}])


def test_a_copied_run_is_no_other_seed(tmp_path):
    write_run(tmp_path, 1, True)
    write_lines(tmp_path / "guessing-1/sft/metrics.jsonl", [{"step": 1, "seconds": 3.0, "loss": 2.5, "time": 17.25}])
    for name in ("guessing-2", "guessing-1 (copy)"):
        shutil.copytree(tmp_path / "guessing-1", tmp_path / name)
    assert [run["seed"] for run in collect_agents(tmp_path)] == [1]


def test_a_finished_and_an_interrupted_run_are_rows_and_lines(tmp_path, capsys):
    write_run(tmp_path, 1, True)
    write_run(tmp_path, 2, False)
    runs = collect_agents(tmp_path)
    assert [run["curve"] for run in runs] == [[[0, 0.1], [3, 0.9]], [[0, 0.1]]]
    table = format_agents(runs).splitlines()[2:]
    assert table[0] == "| guessing | 1 | 100 | 0.125 [0.000, 1.000] | 0.950 [0.000, 1.000] | 3.0 | 3 | 1.0 |"
    assert "not finished" in table[1]
    drawing = xml.etree.ElementTree.fromstring(draw_agents(runs))
    assert [node.tag.rpartition("}")[2] for node in drawing.iter()].count("polyline") == 2
    options = ["--runs", str(tmp_path), "--seeds", "0", "--plot", str(tmp_path / "agents.svg")]
    assert main(["agents", *options, "--results", str(tmp_path / "results")]) == 0
    assert (tmp_path / "agents.svg").read_text().startswith("<svg xmlns=")
    assert "| guessing | 1 |" in capsys.readouterr().out


def test_each_run_is_a_speedrun_of_its_environment_in_a_folder_of_its_own(tmp_path, monkeypatch):
    commands, codes = [], iter([0, 0, 0, 0, 130])

    def run(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(subprocess, "run", run)
    run_agents(tmp_path, ["guessing", "database"], [1, 2], ["rl.steps=3"])
    places = [tmp_path / f"{name}-{seed}" for seed in (1, 2) for name in ("guessing", "database")]
    assert [f"run.out={place}" in command for place, command in zip(places, commands, strict=True)] == [True] * 4
    assert 'rl.tasks={"env:database" = 1.0}' in commands[1] and "rl.max_new_tokens=224" in commands[1]
    assert "rl.steps=40" in commands[1] and "rl.steps=40" not in commands[0]
    assert all(command[3:5] == ["speedrun", "guessing"] and command[-1] == "rl.steps=3" for command in commands)
    with pytest.raises(UserError, match="guessing, seed 3: exit code 130; the same command resumes"):
        run_agents(tmp_path, ["guessing"], [3], [])
