"""`fledgling verify`: a table, one line for each problem, and the exit status."""

import json

import pytest

from fledgling import cli, verify
from fledgling.verify import Check


@pytest.fixture
def result(monkeypatch):
    check = Check("steps replayed", "steps", 3, 9, notes=["drawn after pretrain step 0: 2"])
    values = {"run": "runs/a", "root": "ab12", "seed": 5, "machine": {"torch": ["1", "2"]}, "tolerance": 0.02}
    values |= {"checks": [check.to_json()], "holds": True, "verdict": "holds"}
    monkeypatch.setattr(verify, "verify_run", lambda *_, **__: values)
    return values


def test_what_holds_is_a_table_with_its_notes(result, capsys):
    assert cli.main(["verify", "runs/a"]) == 0
    out = capsys.readouterr().out
    assert "steps replayed" in out and "holds" in out and "drawn after pretrain step 0: 2" in out
    assert "torch was 1, is 2" in out and "within 0.02" in out and "root ab12" in out and "--seed 5" in out


def test_what_fails_is_named_and_the_status_is_1(result, capsys):
    result["checks"][0] |= {"problems": ["pretrain step 3: loss [a] differs"], "verdict": "FAILS"}
    result |= {"holds": False, "verdict": "FAILS"}
    assert cli.main(["verify", "runs/a"]) == 1
    assert "FAILS  steps replayed: pretrain step 3: loss [a] differs" in capsys.readouterr().out


def test_many_problems_of_one_check_do_not_hide_those_of_another(result, capsys):
    many = Check("settings", "settings", 300, 300, problems=[f"setting {n}" for n in range(280)])
    other = Check("stages", "stages", 1, 1, problems=["rl has no record"])
    result |= {"checks": [many.to_json(), other.to_json()], "holds": False, "verdict": "FAILS"}
    assert cli.main(["verify", "runs/a"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILS")]
    assert len(lines) == 12 and lines[-1] == "FAILS  stages: rl has no record"
    assert lines[0] == "FAILS  settings: setting 0"
    assert lines[10] == "FAILS  settings: and 270 more, which --json lists"


def test_another_root_than_the_stated_one_fails(result, capsys):
    assert cli.main(["verify", "runs/a", "--root", "ab12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"] is True
    assert cli.main(["verify", "runs/a", "--root", "cd34"]) == 1
    assert "stated was cd34" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"],
        ["--steps", "-1"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--evals=-1"],
    ],
)
def test_nothing_to_replay_is_rejected(result, capsys, options):
    assert cli.main(["verify", "runs/a", *options]) == 1
    assert "expected at least 1 step, more than 0 seconds, and 0 or more scores" in capsys.readouterr().err


def test_a_run_whose_steps_could_not_be_replayed_is_not_reported_to_hold(result, capsys):
    result |= {"holds": False, "verdict": "steps not checked"}
    assert cli.main(["verify", "runs/a"]) == 1
    assert "runs/a: steps not checked" in capsys.readouterr().out
