"""Identifiers are the field's words: none of the retired ones is left in the package, its benchmarks or its tests."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RETIRED = frozenset(
    [
        "told",
        "said",
        "tell",
        "beside",
        "stands",
        "whoever",
        "nobody",
        "everybody",
        "somebody",
        "everyone",
        "lent",
        "desk",
        "papers",
        "worth",
        "around",
        "bowl",
        "bowls",
        "tally",
        "asked",
        "speaker",
        "speakers",
        "ticket",
        "tickets",
        "adopted",
        "apart",
        "weigh",
        "returner",
        "inward",
        "outward",
        "likeliest",
        "guess",
        "guesses",
        "guessed",
        "generalized",
        "preferred",
        "refuse",
        "velocity",
        "holders",
        "mine",
        "theirs",
        "ours",
        "newcomer",
        "newcomers",
        "seat",
        "seats",
        "untold",
        "unread",
        "speak",
        "speaks",
        "spoken",
        "spoke",
        "noted",
        "meet",
        "hear",
        "went",
        "came",
        "twin",
        "twins",
        "neighbour",
        "neighbours",
        "neighbor",
        "neighbors",
        "house",
        "room",
        "rooms",
    ]
)  # docs/glossary.md has the words that replaced them
FILES = sorted(
    path
    for folder in ("fledgling", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "attacks" not in path.parts
)


def words_of(identifier: str) -> set[str]:
    """Returns the words of an identifier in lower case: `PromptLookup` -> prompt, lookup."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


def identifiers(source: str) -> dict[str, int]:
    """Returns every name that a source defines or assigns, with the line of its first appearance."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [] if node.name.startswith("test_") else [node.name]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names = [node.id if isinstance(node, ast.Name) else node.attr]
        for name in names:
            found.setdefault(name, getattr(node, "lineno", 0))
    return found


def retired(source: str) -> list[str]:
    """Returns `line: name` for every identifier with a retired word in it."""
    return [f"{line}: {name}" for name, line in identifiers(source).items() if words_of(name) & RETIRED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_identifier_is_a_retired_word(path):
    assert retired(path.read_text(encoding="utf-8")) == []


def test_the_check_sees_a_retired_word():
    assert retired("def told(): ...") and retired("class EvalDesk: ...") and retired("for asked_rows in x: pass")
    assert retired("def f(self, likeliest): ...") and retired("self.inward = 3")
    assert not retired("def report_fault(): return told") and not retired("import sandbox as s")
