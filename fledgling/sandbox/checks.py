"""Checks of the sandbox on this machine, for `fledgling doctor`."""

from __future__ import annotations

from fledgling.config import UserError
from fledgling.runtime.machine_checks import Finding
from fledgling.sandbox import interpreter, process


def check_sandbox() -> list[Finding]:
    """Checks which layers of the process sandbox hold, by running a probe behind them, and the interpreter."""
    findings = []
    try:
        layers = ", ".join(f"{name} {state}" for name, state in process.get_layers().items())
        findings.append(Finding("sandbox", True, layers))
    except UserError as error:
        advice = "HumanEval and RL on code need Linux 5.13 or newer with Landlock and seccomp"
        findings.append(Finding("sandbox", False, str(error).removeprefix("sandbox: "), advice))
    try:
        version = f"pydantic-monty {interpreter.import_monty().__version__}"
        findings.append(Finding("interpreter", True, version))
    except UserError as error:
        findings.append(Finding("interpreter", False, "no pydantic-monty", str(error).rpartition(": ")[2]))
    return findings
