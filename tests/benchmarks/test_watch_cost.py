"""The cost of an open page: steps are counted from the run's own record, and ratios are those of a round."""

import json
import threading
import time

import pytest

from benchmarks import watch_cost
from benchmarks.watch_cost import count_speed, format_watch_cost, measure_watch_cost, summarize
from fledgling.config import UserError


def test_steps_are_counted_after_the_change_has_settled(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_cost, "SETTLE_SECONDS", 0.1)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n')

    def train():
        for step in range(2, 8):
            time.sleep(0.04)
            with metrics.open("a") as file:
                print(json.dumps({"step": step}), file=file)

    thread = threading.Thread(target=train)
    thread.start()
    speed = count_speed(metrics, 0.4)
    thread.join()
    assert 5 <= speed <= 12.5  # 2 to 5 of the steps come after the first 0.1 s


def test_a_ratio_is_that_of_its_round():
    row = summarize("client", [(10.0, 9.0), (20.0, 20.0), (5.0, 4.9)])
    assert row["ratio"] == pytest.approx(0.98) and row["alone"] == 10 and row["watched"] == 9
    assert "0.980    0.900 to 1.000" in format_watch_cost({"rows": [row]})


def test_a_viewer_that_is_not_one_is_one_line():
    with pytest.raises(UserError, match="expected some of client, chromium"):
        measure_watch_cost(["firefox"], 1, 1.0)
