"""Corrupt files of a run are named by its report, each in one line, and the others are reported."""

import json

import pytest

from fledgling.cli import main
from fledgling.report import summarize_run
from fledgling.report.unreadable import STAGE_FILES

from .synthetic_run import make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", stages=("pretrain", "sft"), scale=0.05)


def test_an_intact_run_has_no_corrupt_file(run):
    assert summarize_run(run)["unreadable"] == []


@pytest.mark.parametrize(
    "name", ["recipe.toml", "environment.json", "plan.json", "pretrain/plan.json", "sft/done.json"]
)
@pytest.mark.parametrize("content", [b'{"a": ', b"[1, 2]", b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_a_corrupt_file_is_named(run, name, content):
    if name == "recipe.toml" and content == b"[1, 2]":
        content = b"a = ["
    (run / name).write_bytes(content)
    kind = "TOML document" if name == "recipe.toml" else "JSON object"
    assert summarize_run(run)["unreadable"] == [f"{name}: not a {kind}"]


@pytest.mark.parametrize("name", [name for name in STAGE_FILES if name.endswith(".jsonl")])
def test_corrupt_lines_are_counted_but_not_the_line_that_is_being_written(run, name):
    path = run / "sft" / name
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(before + b'{"step": 1\n[3]\n{"step": ')
    lines = before.count(b"\n") + 2
    assert summarize_run(run)["unreadable"] == [f"sft/{name}: 2 of {lines} lines are no JSON objects"]


def test_the_command_and_the_page_show_it(run, capsys):
    (run / "plan.json").write_text('{"pred')
    assert main(["report", str(run)]) == 0
    assert "not read: plan.json: not a JSON object" in capsys.readouterr().err
    assert "<li>plan.json: not a JSON object</li>" in (run / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unreadable"] == ["plan.json: not a JSON object"]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("forecast.json", "{}", '"budget" is null, expected a table'),
        ("forecast.json", '{"budget": 3}', '"budget" is 3, expected a table'),
        ("forecast.json", '{"budget": {}, "forecasts": "x"}', '"forecasts" is "x", expected a list'),
        ("spent.json", '{"seconds": "x"}', '"seconds" is "x", expected a number'),
        ("spent.json", '{"seconds": true}', '"seconds" is true, expected a number'),
    ],
)
def test_what_a_file_of_a_budget_lacks_is_named(run, name, text, line):
    (run / name).write_text(text)
    assert summarize_run(run)["unreadable"] == [f"{name}: {line}"]
