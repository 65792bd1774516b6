"""Tests reading a run directory: repeated steps, parameter counts, missing runs."""

import json
import re

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.report import build_report, make_evals_table, summarize_run

from .synthetic_run import make_run


def test_repeated_steps_count_once(tmp_path):
    run = tmp_path / "again"
    (run / "sft").mkdir(parents=True)
    lines = [{"step": s, "name": "x", "value": v} for s, v in ((0, 0.1), (5, 0.2), (0, 0.3))]
    (run / "sft/evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(e["step"], e["value"]) for e in summarize_run(run)["history"]] == [(0, 0.3), (5, 0.2)]
    assert [e["value"] for e in summarize_run(run)["evals"]] == [0.2]


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
