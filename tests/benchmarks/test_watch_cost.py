"""The cost of an open page: steps are counted from the run's own record, and ratios are those of a round."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import watch_cost
from benchmarks.watch_cost import count_speed, format_watch_cost, measure_watch_cost, summarize
from fledgling.config import UserError


def test_steps_are_counted_after_the_change_has_settled(tmp_path, monkeypatch):
    """A run that makes a step each 0.04 s, by a clock of the test."""
    metrics, now = tmp_path / "metrics.jsonl", [0.0]

    def sleep(seconds):
        now[0] += seconds
        steps = range(1 + min(6, int(now[0] / 0.04)))
        metrics.write_text("".join(f"{json.dumps({'step': step})}\n" for step in steps))

    monkeypatch.setattr(watch_cost, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(watch_cost, "time", SimpleNamespace(sleep=sleep, perf_counter=lambda: now[0]))
    assert count_speed(metrics, 0.4) == pytest.approx(10)  # the steps at 0.12, 0.16, 0.2 and 0.24 s


def test_a_ratio_is_that_of_its_round():
    row = summarize("client", [(10.0, 9.0), (20.0, 20.0), (5.0, 4.9)])
    assert row["ratio"] == pytest.approx(0.98) and row["alone"] == 10 and row["watched"] == 9
    assert "0.980    0.900 to 1.000" in format_watch_cost({"rows": [row]})


def test_a_viewer_that_is_not_one_is_one_line():
    with pytest.raises(UserError, match="expected some of client, chromium"):
        measure_watch_cost(["firefox"], 1, 1.0)
