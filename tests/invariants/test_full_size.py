"""Every test that is left to `make test-all` exists: a renamed one would run in `make test` again, unnoticed."""

import re

from tests.conftest import FULL_SIZE
from tests.invariants.structure import ROOT


def list_tests() -> set[str]:
    """Returns "path::function" of every test."""
    return {
        f"{path.relative_to(ROOT)}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }


def dead_entries(entries: tuple[str, ...], tests: set[str]) -> list[str]:
    """Returns the entries that no test's name ends with; ids in brackets are not compared."""
    return [entry for entry in entries if not any(test.endswith(entry.partition("[")[0]) for test in tests)]


def test_every_entry_names_a_test():
    assert dead_entries(FULL_SIZE, list_tests()) == []


def test_every_entry_has_the_id_of_a_collected_case(request):
    """Cases are known for the tests that pytest has collected as a whole: all of them in `make test`."""
    if request.config.option.keyword or any("::" in argument for argument in request.config.args):
        return
    collected = [item.nodeid for item in request.session.items]
    functions = {nodeid.partition("[")[0] for nodeid in collected}
    known = [entry for entry in FULL_SIZE if not dead_entries((entry,), functions)]
    assert [entry for entry in known if not any(nodeid.endswith(entry) for nodeid in collected)] == []


def test_the_check_sees_a_name_without_a_test():
    tests = {"tests/train/test_a.py::test_b"}
    assert dead_entries(("test_a.py::test_b[1]", "train/test_a.py::test_b"), tests) == []
    assert dead_entries(("test_a.py::test_c[1]", "test_b.py::test_b"), tests) == [
        "test_a.py::test_c[1]",
        "test_b.py::test_b",
    ]
