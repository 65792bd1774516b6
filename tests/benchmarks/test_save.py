"""The bench of saving: its figures add up, and nothing of it is left on the disk."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.save import format_saving, measure_saving
from tests.all_stages import make_all_stages_recipe


def test_its_figures_add_up(tmp_path):
    recipe = make_all_stages_recipe(tmp_path, **{"run.out": str(tmp_path / "runs" / "one")})
    before = sorted(path.name for path in tmp_path.iterdir())
    found = measure_saving(recipe, "sft", saves=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert found["interval_steps"] == 2 and found["stage"] == "sft"
    assert found["bytes"] > 4 * found["parameters"]
    assert 0 < found["stall_seconds"] <= found["stall_seconds_most"]
    whole = 2 * found["step_seconds"] + found["stall_seconds"]
    assert found["stall_share"] == pytest.approx(found["stall_seconds"] / whole)
    assert found["cost_share"] >= found["stall_share"]
    assert found["bytes_per_second"]["writer"] == pytest.approx(found["bytes"] / found["writer_seconds"])
    assert "of wall time" in format_saving(found) and json.loads(json.dumps(found)) == found


def test_no_save_is_one_line(capsys):
    assert main(["save", "--saves", "0"]) == 1
    assert capsys.readouterr().err == "error: --saves 0: expected at least 1\n"
    assert not list(Path().glob(".bench-save-*"))
