"""Checks a commit message: `python -m tests.invariants.commit_message FILE`, the commit-msg hook of pre-commit.

A commit has a subject, an empty line, and a body that says why. Messages that git writes
(merges, reverts) and those that a rebase will join (fixup!, squash!) pass.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

WRITTEN_BY_GIT = re.compile(r"(Merge |Revert |fixup! |squash! |amend! )")
SCISSORS = re.compile(r"^# -+ >8 -+$.*", re.MULTILINE | re.DOTALL)


def find_fault(message: str) -> str:
    """Returns why a commit message is rejected, "" if it is not. Comments of git are left out."""
    lines = [line.rstrip() for line in SCISSORS.sub("", message).split("\n") if not line.startswith("#")]
    subject, *rest = "\n".join(lines).strip().split("\n")
    if WRITTEN_BY_GIT.match(subject):
        return ""
    if not subject:
        return "it is empty"
    if not rest:
        return "there is no body: after an empty line, say why the change was made and what was measured"
    return f'the line after the subject is "{rest[0][:40]}", expected an empty one' if rest[0] else ""


def main() -> None:
    """Ends with a line and exit code 1 for a message that is rejected."""
    if fault := find_fault(Path(sys.argv[1]).read_text(encoding="utf-8")):
        raise SystemExit(f"commit message: {fault}")


if __name__ == "__main__":
    main()
