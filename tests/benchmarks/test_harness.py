"""The harness: an experiment becomes a command that prints its table or its values and leaves a result file."""

import json

import pytest

from benchmarks import harness
from benchmarks.__main__ import main
from fledgling.config import UserError


@pytest.fixture(scope="module", autouse=True)
def registered():
    @harness.experiment(lambda values: f"two of it: {values['twice']}")
    def doubling(*, number: int = 4):
        """Double a number."""
        if number < 0:
            raise UserError(f"--number {number}: expected at least 0")
        return {"twice": 2 * number}


def test_a_result_file_holds_command_date_environment_and_values(tmp_path, capsys):
    assert main(["doubling", "--number", "21", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "two of it: 42\n"
    written = json.loads((tmp_path / "doubling.json").read_text())
    assert written["experiment"] == "doubling" and written["result"] == {"twice": 42}
    assert written["command"].startswith("python -m benchmarks") and written["date"] and written["environment"]


def test_json_prints_the_values_and_writes_the_file_too(tmp_path, capsys):
    assert main(["doubling", "--json", "--results", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"twice": 8} and (tmp_path / "doubling.json").is_file()


def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys):
    assert main(["doubling", "--number", "-1", "--results", str(tmp_path / "r")]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: --number -1: expected at least 0\n") and not (tmp_path / "r").exists()


def test_every_experiment_has_a_help_text(capsys):
    for name in ("tokenizer", "sandbox", "core", "sparsity", "norms", "prompt-lookup", "scaling", "comm", "optim",
                 "memory", "published", "save", "rollouts"):  # fmt: skip
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--results" in shown and "--json" in shown, name
