"""The end of a training command: its exit code and its line on stderr."""

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.runtime import exit_codes
from fledgling.train import loop, run


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (None, exit_codes.DONE, ""),
        (loop.TrainingStopped(7), exit_codes.STOPPED, "stopped after step 7; the same command resumes from there\n"),
        (UserError("no such file"), exit_codes.FAILED, "error: no such file\n"),
        (SystemExit(exit_codes.FAILED), exit_codes.FAILED, ""),
    ],
)
def test_every_outcome_has_a_code_and_at_most_one_line(monkeypatch, capsys, raised, code, message):
    def run_stage(*arguments):
        if raised:
            raise raised
        return True

    monkeypatch.setattr(run, "run_stage", run_stage)
    try:
        exit_code = main(["train", "pretrain"])
    except SystemExit as error:
        exit_code = error.code
    assert (exit_code, capsys.readouterr().err) == (code, message)


def test_a_bug_shows_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(run, "run_stage", lambda *arguments: {}["nothing"])
    assert main(["train", "pretrain"]) == exit_codes.FAULT
    assert "KeyError: 'nothing'" in capsys.readouterr().err


def test_codes_are_distinct():
    codes = [value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)]
    assert len(codes) == len(set(codes)) and exit_codes.FAULT not in exit_codes.NO_RESTART_CODES
