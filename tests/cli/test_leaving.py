"""How training ends: the exit code and what stderr says."""

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.runtime import exit_codes
from fledgling.train import loop, run


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (None, exit_codes.DONE, ""),
        (loop.TrainingStopped(7), exit_codes.STOPPED, "stopped after step 7; the same command goes on from there\n"),
        (UserError("no such file"), exit_codes.FAILED, "error: no such file\n"),
        (SystemExit(exit_codes.FAILED), exit_codes.FAILED, ""),
    ],
)
def test_what_happened_is_a_code_and_at_most_a_line(monkeypatch, capsys, raised, code, said):
    def run_stage(*arguments):
        if raised:
            raise raised
        return True

    monkeypatch.setattr(run, "run_stage", run_stage)
    try:
        found = main(["train", "pretrain"])
    except SystemExit as left:
        found = left.code
    assert (found, capsys.readouterr().err) == (code, said)


def test_a_bug_shows_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(run, "run_stage", lambda *arguments: {}["nothing"])
    assert main(["train", "pretrain"]) == exit_codes.FAULT
    assert "KeyError: 'nothing'" in capsys.readouterr().err


def test_codes_are_distinct():
    codes = [value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)]
    assert len(codes) == len(set(codes)) and exit_codes.FAULT not in exit_codes.NO_RESTART_CODES
