"""What a run came from, as the report's rows."""

import json

from fledgling.report.provenance import environment_rows
from fledgling.report.run_data import load_run_data

from .synthetic_run import make_run


def test_the_budget_of_a_run_is_named_next_to_its_machine(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain",), scale=0.05)
    without = environment_rows(load_run_data(run))
    (run / "forecast.json").write_text(json.dumps({"budget": {"text": "--minutes 12"}, "forecasts": []}))
    assert environment_rows(load_run_data(run)) == [("budget", "--minutes 12"), *without]
    for text in ("{}", '{"budget": 3}', '{"budget": {"text": []}}'):
        (run / "forecast.json").write_text(text)
        assert environment_rows(load_run_data(run)) == without
