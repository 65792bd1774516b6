"""Tests reading the runs of a sweep."""

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.scaling.results import format_flops, read_run
from tests.scaling.synthetic_sweep import make_run


def test_an_unfinished_run_is_none_and_a_broken_one_is_named(tmp_path):
    run = make_run(tmp_path / "d1-1e13", 1, 1e13)
    assert read_run(run).depth == 1
    (run / "plan.json").write_text('{"parameters": {}}')
    with pytest.raises(UserError, match="d1-1e13"):
        read_run(run)
    (run / "pretrain/done.json").unlink()
    assert read_run(run) is None


def test_budgets_are_formatted_as_on_the_command_line():
    assert [format_flops(C) for C in (2e13, 1.6e14, 250e9)] == ["2e13", "1.6e14", "2.5e11"]
    assert load_recipe("scaling").stages == ("pretrain",)
