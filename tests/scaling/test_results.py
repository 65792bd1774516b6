"""Tests reading the runs of a sweep."""

import json
from dataclasses import replace

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.scaling.results import format_flops, load_sweep, read_sweep_run
from tests.scaling.synthetic_sweep import make_run, make_sweep


def test_an_unfinished_run_is_none_and_a_broken_one_is_named(tmp_path):
    run = make_run(tmp_path / "d1-1e13", 1, 1e13)
    assert read_sweep_run(run).depth == 1
    (run / "plan.json").write_text('{"parameters": {}}')
    with pytest.raises(UserError, match="d1-1e13"):
        read_sweep_run(run)
    (run / "pretrain/done.json").unlink()
    assert read_sweep_run(run) is None


def test_budgets_are_formatted_as_on_the_command_line():
    assert [format_flops(C) for C in (2e13, 1.6e14, 250e9)] == ["2e13", "1.6e14", "2.5e11"]
    assert load_recipe("scaling").stages == ("pretrain",)


def test_a_run_is_measured_by_what_it_read_and_over_all_rows(tmp_path):
    """Planned tokens, and the value over the first rows only, are other numbers."""
    run = make_run(tmp_path / "d1-1e13", 1, 1e13)
    before = read_sweep_run(run)
    done = json.loads((run / "pretrain/done.json").read_text())
    (run / "pretrain/done.json").write_text(json.dumps({**done, "tokens": before.tokens - 4096}))
    with open(run / "pretrain/evals.jsonl", "a") as file:
        first_rows = {"stage": "pretrain", "step": done["step"], "name": "bits_per_byte", "value": 9.0, "n": 64}
        file.write(json.dumps({**first_rows, "low": 8.0, "high": 10.0}) + "\n")
    after = read_sweep_run(run)
    assert after.tokens == before.tokens - 4096 and after.flops < before.flops
    assert after.bits_per_byte == before.bits_per_byte


def test_epochs_are_unknown_where_the_data_does_not_say_its_length(tmp_path):
    """Divided by one token they were millions."""
    sweep = load_sweep(make_sweep(tmp_path, depths=(1,), budgets=(1e13,)))
    assert sweep.epochs == pytest.approx(sweep.runs[0].tokens / 40_000_000)
    assert replace(sweep, train_tokens=0).epochs is None
