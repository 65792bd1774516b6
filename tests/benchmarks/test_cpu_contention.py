"""The speed with a core taken is a share of the idle speed of the same round; what cannot be measured is one line."""

import os

import pytest

from benchmarks import cpu_contention
from fledgling.config import UserError


def report(speed, threads):
    return {"tokens_per_second": speed, "threads": threads}


def test_ratios_are_of_the_same_round_and_the_median_counts():
    row = cpu_contention.summarize(
        "training",
        "adapting",
        [(report(10, 2), report(5, 1)), (report(20, 2), report(12, 1)), (report(4, 2), report(1, 1))],
    )
    assert row["ratio"] == 0.5 and (row["low"], row["high"]) == (0.25, 0.6)
    assert row["idle"] == 10 and row["busy"] == 5 and row["threads"] == [[2], [1]]
    assert "50%" in cpu_contention.format_cpu_contention({"cores": 2, "seconds": 1, "rows": [row]})


def test_one_core_cannot_be_taken_from_one(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(UserError, match="got 1 cores, expected at least 2"):
        cpu_contention.measure_cpu_contention(["training"], ["fixed"], 1, 1.0)


def test_kinds_and_modes_are_checked(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(UserError, match="--kind sleeping"):
        cpu_contention.measure_cpu_contention(["sleeping"], ["fixed"], 1, 1.0)


def test_work_is_repeated_for_as_long_as_it_is_asked():
    counts = iter(range(1, 100))
    assert cpu_contention.run_for(0.0, lambda: next(counts)) > 0 and next(counts) == 2
