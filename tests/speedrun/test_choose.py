"""What is forecast of a run with a budget."""

from dataclasses import replace

from fledgling.plan.past_runs import SHIPPED, load_past_runs
from fledgling.speedrun.choose import list_measured_exams


def test_bits_per_byte_time_and_memory_are_forecast_once_and_not_as_the_share_of_an_exam():
    (run, *_) = load_past_runs((SHIPPED,))
    measured = {"seconds": 9.0, "memory": 1e8, "pretrain bits_per_byte": 2.0, "bits_per_byte": 2.1, "counting": 0.3}
    runs = [replace(run, measured=measured)] * 4
    assert list_measured_exams(runs, run.data) == ["counting"]
    assert list_measured_exams(runs, "other data") == []
