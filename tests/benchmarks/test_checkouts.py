"""Two checkouts do the same work in turns; the figures are of pairs of processes, and a wrong folder is one line."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import checkouts
from benchmarks.worker import start_worker
from fledgling.config import UserError


def test_the_speed_is_the_median_of_the_pairs_and_blocks_begin_in_turn(monkeypatch):
    order, seconds = [], {"before": iter([4, 4, 4, 6, 6, 6, 9, 9, 9]), "now": iter([2, 2, 8, 2, 2, 8, 3, 3, 1])}

    def start(checkout, kind):
        name = "now" if checkout == checkouts.HERE else "before"
        return nullcontext(lambda block: order.append(name) or {"step": float(next(seconds[name]))})

    monkeypatch.setattr(checkouts, "start_checkout", start)
    before = checkouts.HERE / "fledgling" / ".."
    result = checkouts.compare_checkouts(before, ["training"], pairs=3, blocks=3)
    assert order[:6] == ["before", "now", "now", "before", "before", "now"]
    (row,) = result["rows"]
    assert (row["low"], row["speed"], row["high"]) == (2, 3, 3) and (row["before"], row["now"]) == (6, 2)
    assert "3.000x  2.000 to 3.000" in checkouts.format_checkouts(result)


def test_a_folder_without_the_package_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is no checkout of fledgling"):
        checkouts.compare_checkouts(tmp_path, ["training"], 1, 1)


def test_kinds_and_numbers_are_checked():
    with pytest.raises(UserError, match="--kind sleeping --pairs 1 --blocks 1: expected some of training, answers"):
        checkouts.compare_checkouts(checkouts.HERE, ["sleeping"], 1, 1)


def test_the_worker_loads_the_other_checkout_and_no_module_of_this_folder(tmp_path, monkeypatch):
    package = tmp_path / "fledgling"
    package.mkdir()
    (package / "__init__.py").write_text("import json, sys; print(json.dumps({'path': sys.path[0]})); sys.exit()")
    monkeypatch.setattr(checkouts, "__file__", str(tmp_path / "worker.py"))
    (tmp_path / "worker.py").write_text("import fledgling")
    with checkouts.start_checkout(tmp_path, "training") as ask:
        assert Path(ask(0)["path"]) == tmp_path


def test_a_worker_that_has_ended_is_one_line():
    worker = start_worker(["-S", "-c", "raise SystemExit(3)"], dict(os.environ), "nothing")
    with worker as ask, pytest.raises(UserError, match="measures nothing ended with exit code 3"):
        ask(1)


def test_a_worker_answers_line_by_line():
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with start_worker(["-S", "-c", code], dict(os.environ), "lines") as ask:
        assert [ask(json.dumps({"n": n})) for n in (1, 2)] == [{"n": 1}, {"n": 2}]
