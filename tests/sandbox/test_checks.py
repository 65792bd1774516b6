"""Checks of the sandbox for `fledgling doctor`: what holds, and what to do where something is missing."""

from types import SimpleNamespace

from fledgling.config import UserError
from fledgling.sandbox import interpreter, process
from fledgling.sandbox.checks import check_sandbox


def fail(message):
    def raise_error():
        raise UserError(message)

    return raise_error


def test_layers_and_interpreter_are_described(monkeypatch):
    monkeypatch.setattr(process, "get_layers", lambda: {"landlock": "version 4", "seccomp": "on"})
    monkeypatch.setattr(interpreter, "import_monty", lambda: SimpleNamespace(__version__="1.4"))
    sandbox, monty = check_sandbox()
    assert sandbox.ok and sandbox.detail == "landlock version 4, seccomp on"
    assert monty.ok and monty.detail == "pydantic-monty 1.4"


def test_what_is_missing_says_what_to_do(monkeypatch):
    monkeypatch.setattr(process, "get_layers", fail("sandbox: no Landlock"))
    monkeypatch.setattr(interpreter, "import_monty", fail("no interpreter: pip install 'fledgling[sandbox]'"))
    sandbox, monty = check_sandbox()
    assert (sandbox.ok, sandbox.detail) == (False, "no Landlock") and "Linux 5.13" in sandbox.advice
    assert (monty.ok, monty.advice) == (False, "pip install 'fledgling[sandbox]'")
