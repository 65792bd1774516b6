"""A walk through the package is counted by its stated rule, and the page of the structure has the counts."""

import re

import pytest

from tests.invariants.structure import ROOT, count_lines, read_sources
from tests.invariants.walk import Tree, format_stops, walk

PAGE = (ROOT / "docs" / "decisions" / "structure.md").read_text(encoding="utf-8")
SMALL = {
    "config": """
class RLConfig:
    algorithm: str = "grpo"
class SFTConfig:
    steps: int = 0
class Recipe:
    rl: RLConfig
    sft: SFTConfig
    def uses(self): return self.rl.algorithm
Table = RLConfig | SFTConfig
""",
    "train.loop": """
class Batch: ...
class Loop:
    algorithm: str
    def __init__(self, table: RLConfig):
        self.table, self.step = table, 0
        self.algorithm = "its own"
    def run(self, batches: list[Batch]):
        return self.table.algorithm, self.algorithm
def narrow(table: Table):
    if isinstance(table, RLConfig):
        return table.algorithm
def copy(recipe: "Recipe"):
    return Kept(algorithm=recipe.rl.algorithm.lower())
class Kept:
    algorithm: str
def each(kept: list[Kept], others: list[Loop]):
    return [one.algorithm for one in kept], [one.algorithm for one in others]
def make():
    return Batch()
""",
    "infer.engine": """
def generate(prompts): return [answer(Request(prompt)) for prompt in prompts]
def answer(request): return request.prompt
def other(tokens): return tokens
""",
}


def test_a_key_a_class_and_a_name_are_followed_by_their_rules():
    tree = Tree.read(SMALL)
    assert walk(tree, "rl.algorithm") == [
        ("config", 9),
        ("train.loop", 9),
        ("train.loop", 12),
        ("train.loop", 14),
        ("train.loop", 18),
    ]
    assert walk(tree, "Batch") == [("train.loop", 8), ("train.loop", 19)]
    assert walk(tree, "infer:prompt") == [("infer.engine", 2), ("infer.engine", 3)]
    assert format_stops("Batch", walk(tree, "Batch"), ROOT).endswith(":19\nBatch: 2 stops in 1 files")


@pytest.mark.parametrize("unknown", ["rl.nothing", "nothing.steps", "Nothing"])
def test_what_does_not_exist_has_no_walk(unknown):
    with pytest.raises(KeyError):
        walk(Tree.read(SMALL), unknown)


def test_the_page_has_the_stops_that_the_command_counts():
    """Within a quarter, so that a commit need not count again; the page says of which tree its figures are."""
    rows = re.findall(r"^\| `([\w.:]+)` \|.*\| (\d+) in \d+ files \|$", PAGE, re.MULTILINE)
    tree = Tree.read(read_sources())
    assert [name for name, _ in rows] == ["rl.algorithm", "model.depth", "Batch", "infer:prompt"]
    counted = {name: len(walk(tree, name)) for name, _ in rows}
    assert all(abs(int(stated) - counted[name]) <= 1 + 0.25 * counted[name] for name, stated in rows), counted


def test_the_page_has_the_lines_that_the_command_counts():
    """Within a fifth a package and a tenth in all; `make structure` prints the figures to put there."""
    rows = re.findall(r"^\|[^|]*\|[^|]*\| (\w+)[^|]*\|[^|]*\| ([\d,]+) \|$", PAGE, re.MULTILINE)
    stated = {name: int(lines.replace(",", "")) for name, lines in rows}
    counted = count_lines(read_sources())
    assert set(counted) <= set(stated), set(counted) - set(stated)
    wrong = {n: (stated[n], lines) for n, lines in counted.items() if abs(stated[n] - lines) > max(0.2 * lines, 60)}
    assert not wrong, f"{wrong}: run make structure"
    (total,) = re.findall(r"\*\*lines of Python\*\* \|.* ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert abs(int(total.replace(",", "")) - sum(counted.values())) <= 0.1 * sum(counted.values())
