"""Tests reading a run directory: repeated steps, parameter counts, missing runs."""

import json
import re

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.record import Recorder
from fledgling.report import build_report, make_evals_table, summarize_run
from fledgling.report.run_data import load_run_data
from fledgling.report.run_page import _constant_line, _eval_lines
from fledgling.report.summary import split_by_cases, value_at

from .synthetic_run import make_run


def test_repeated_steps_count_once(tmp_path):
    run = tmp_path / "again"
    (run / "sft").mkdir(parents=True)
    lines = [{"step": s, "name": "x", "value": v} for s, v in ((0, 0.1), (5, 0.2), (0, 0.3))]
    (run / "sft/evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(e["step"], e["value"]) for e in summarize_run(run)["history"]] == [(0, 0.3), (5, 0.2)]
    assert [e["value"] for e in summarize_run(run)["evals"]] == [0.2]


def test_values_over_different_numbers_of_cases_are_two_series(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain", "midtrain", "sft"), scale=0.05)
    with Recorder(run / "sft", "sft", 20, quiet=True) as recorder:
        for step, n, value in ((0, 50, 0.1), (5, 50, 0.2), (10, 50, 0.3), (10, 200, 0.4)):
            recorder.log_evaluation(step, "x", value, n=n, baseline=0.0)
    (stage,) = (stage for stage in load_run_data(run).stages if stage.name == "sft")
    evaluations = [e for e in stage.evals if e.name == "x"]
    series = split_by_cases(evaluations)
    assert [[(e.n, e.value) for e in part] for part in series] == [[(50, 0.1), (50, 0.2), (50, 0.3)], [(200, 0.4)]]
    assert [e["value"] for e in summarize_run(run)["evals"] if e["name"] == "x"] == [0.4]
    lines = [*_eval_lines(load_run_data(run), "x", is_alone=True), *_constant_line(load_run_data(run), ["x"])]
    assert [(line.label, len(line.xs)) for line in lines] == [
        ("value, n 50", 3), ("value, n 200", 1), ("best constant answer", 3)
    ]  # fmt: skip


def test_the_axis_of_tokens_follows_what_was_recorded():
    assert [value_at([1, 2, 4], [10.0, 30.0, 50.0], step) for step in (0, 1, 1.5, 3, 4, 9)] == [0, 10, 20, 40, 50, 50]


def test_parameters_are_counted_from_the_checkpoint(tmp_path):
    import torch
    from safetensors.torch import save_file

    run = make_run(tmp_path / "run", stages=("pretrain",), scale=0.05)
    directory = run / "pretrain/checkpoints/step-00000008"
    directory.mkdir(parents=True)
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, directory / "model.safetensors")
    assert summarize_run(run)["measured"]["parameters"] == 17


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_missing_run_is_one_line(tmp_path, make, capsys):
    make(tmp_path / "run")
    for look in (build_report, summarize_run, make_evals_table):
        with pytest.raises(UserError, match=r"run .*(does not exist|is a file|nothing to report yet)"):
            look(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 1
    assert re.fullmatch(r"error: run .*\n", capsys.readouterr().err)
