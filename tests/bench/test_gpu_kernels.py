"""Timings of single kernels: the median of a call, and a candidate that fails is a result."""

import json
import time

import pytest

from fledgling.bench.gpu import RESULT_MARK
from fledgling.bench.gpu_kernels import measure_head, measure_ms, measure_peaks, report_candidate, time_steps


def read_results(capsys):
    return [
        json.loads(line[len(RESULT_MARK) :]) for line in capsys.readouterr().out.splitlines() if RESULT_MARK in line
    ]


def test_the_median_call_is_reported_in_milliseconds(monkeypatch):
    times = iter([0.0, 0.005, 1.0, 1.002, 2.0, 2.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    calls = []
    assert measure_ms(lambda: calls.append(0), repeats=3, warmup=2) == pytest.approx(5.0)
    assert len(calls) == 5


def test_steps_are_read_one_late_and_timed_after_the_warm_up(monkeypatch):
    now, order = iter([0.0, 5.0, 10.0, 14.0]), []

    def queue():
        number = len([each for each in order if each.startswith("queue")])
        order.append(f"queue {number}")
        return lambda: order.append(f"read {number}") or number

    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    assert time_steps(queue, steps=2, warmup=1) == (5.0, 2.0, 2)  # the first step, a timed one, the last result
    assert order == ["queue 0", "queue 1", "read 0", "queue 2", "read 1", "read 2"]


def test_a_candidate_that_fails_is_a_result_with_its_error(capsys):
    report_candidate("good", lambda: {"ms": 1.5})
    report_candidate("bad", lambda: 1 / 0)
    assert read_results(capsys) == [
        {"what": "good", "ms": 1.5},
        {"what": "bad", "error": "ZeroDivisionError: division by zero"},
    ]


@pytest.mark.parametrize("measure", [measure_peaks, measure_head])
def test_a_part_reports_rates_of_small_shapes(measure, capsys):
    measure(tiny=True)
    rows = [row for row in read_results(capsys) if "what" in row]
    assert len(rows) >= 3 and rows[0]["tflops"] > 0
