"""Steps that are newer than the end of a run with a budget: the report and the card tell them, and compare nothing."""

import json

import pytest

from fledgling.export.card_origin import describe_origin
from fledgling.record.budget_end import has_steps_after_end
from fledgling.report import build_report, make_forecasts_table
from fledgling.report.forecasts import describe_other_steps, forecast_rows
from fledgling.report.provenance import environment_rows
from fledgling.report.run_data import load_run_data


def write_run(run, last_time, spent):
    forecast = {"name": "memory", "value": 4.0, "low": 1.0, "high": 9.0}
    (run / "pretrain").mkdir(parents=True)
    lines = [{"step": step, "time": time, "memory": 5.0} for step, time in ((1, 50.0), (2, last_time))]
    (run / "pretrain/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "forecast.json").write_text(json.dumps({"budget": {"text": "--minutes 1"}, "forecasts": [forecast]}))
    (run / "spent.json").write_text(json.dumps(spent))


@pytest.mark.parametrize(("last_time", "outside"), [(100.5, False), (200.0, True)])
def test_steps_after_the_end_are_outside_of_the_budget(tmp_path, last_time, outside):
    write_run(tmp_path, last_time, {"seconds": 9.0, "finished": True, "time": 100.0})
    run = load_run_data(tmp_path)
    assert has_steps_after_end(tmp_path) == outside
    since = "; steps were trained outside of it since" if outside else ""
    assert environment_rows(run)[0] == ("budget", "--minutes 1" + since)
    assert describe_origin({"stage": "pretrain"}, tmp_path) == [("budget of the run", "`--minutes 1`" + since)]
    assert [row[3] for row in forecast_rows(run)] == ["-" if outside else "0.0 KiB"]


@pytest.mark.parametrize("spent", [{}, [], {"time": "x"}, {"time": True}, {"seconds": 3.0, "finished": True}])
def test_a_run_that_does_not_say_when_it_ended_says_nothing(tmp_path, spent):
    write_run(tmp_path, 200.0, spent)
    assert not has_steps_after_end(tmp_path)


@pytest.mark.parametrize(("steps", "stages_named"), [(2, ""), (2.4, ""), (3, "pretrain 2, 3 expected")])
def test_a_run_of_another_number_of_steps_than_expected_says_so(tmp_path, steps, stages_named):
    write_run(tmp_path, 100.0, {"seconds": 9.0, "finished": True, "time": 100.0})
    forecasts = [{"name": name, "value": 2.0, "low": 1.0, "high": 9.0} for name in ("memory", "pretrain bits_per_byte")]
    stages = [{"name": "start", "steps": 0}, {"name": "pretrain", "steps": steps}, 3]
    (tmp_path / "forecast.json").write_text(json.dumps({"forecasts": forecasts, "stages": stages}))
    (tmp_path / "pretrain/done.json").write_text('{"stage": "pretrain", "step": 2}')
    line = {"step": 2, "time": 90.0, "name": "bits_per_byte", "value": 1.5, "n": 4}
    (tmp_path / "pretrain/evals.jsonl").write_text(json.dumps(line) + "\n")
    line = describe_other_steps(load_run_data(tmp_path))
    assert line.rpartition("than expected: ")[2] == stages_named
    assert (line in build_report(tmp_path).read_text()) and (make_forecasts_table(tmp_path).caption or "") == line
