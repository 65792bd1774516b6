"""`fledgling doctor`: what this machine offers for training, and what to do about the rest."""

from __future__ import annotations

import json
from dataclasses import asdict

from fledgling.cli.options import Json


def doctor(*, as_json: Json = False) -> int:
    """Check Python, torch, compiler, processor, memory, disk, sandbox and GPUs, and measure a matrix product.

    Each line starts with `ok`, or with `warn` and ends with what to do. Exits with 1 only when training cannot work.
    """
    from fledgling.runtime.machine_checks import check_machine, check_training
    from fledgling.sandbox.checks import check_sandbox

    training_findings, can_train = check_training()
    findings = [*check_machine(), *check_sandbox(), *training_findings]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            advice = f" - {finding.advice}" if finding.advice else ""
            print(f"{'ok  ' if finding.ok else 'warn'}  {finding.name:<{width}}  {finding.detail}{advice}")
    return 0 if can_train else 1
