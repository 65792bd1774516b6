"""The hook for commit messages wants a subject and a body."""

import pytest
import yaml

from tests.invariants.commit_message import find_fault
from tests.invariants.structure import ROOT


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("Names are standard\n\nBecause readers search for them.\n", ""),
        ("Names are standard\n", "there is no body"),
        ("Names are standard\n\n# Please enter the commit message\n#\n", "there is no body"),
        ("Names are standard\n\n# ------------------------ >8 ----\ndiff --git a b\n+x\n", "there is no body"),
        ("Names are standard\nand more\n", "expected an empty one"),
        ("\n", "it is empty"),
        ("Merge branch 'a'\n", ""),
        ("fixup! Names are standard\n", ""),
    ],
)
def test_a_message_without_a_body_is_rejected(message, fault):
    found = find_fault(message)
    assert fault in found and bool(found) == bool(fault)


def test_the_hooks_check_messages_and_types():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    assert hooks["commit-message"]["stages"] == ["commit-msg"] == config["default_install_hook_types"][1:]
    assert hooks["mypy"]["entry"].endswith("mypy fledgling benchmarks") and not hooks["mypy"]["pass_filenames"]
