"""What docstrings and documentation say about the tree is true of the tree: file names, layers, packages."""

import ast
import re
from pathlib import Path

import pytest

import fledgling
from tests.invariants.structure import LAYERS, ROOT, read_sources

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "decisions" / "names.md")  # shows old names beside new ones
SOURCES = read_sources()
NAMES = {
    path.name for folder in ("fledgling", "tests", "benchmarks", "launch") for path in (ROOT / folder).rglob("*.*")
}
OTHERS = {"llama.cpp", "modeling.py", "setup.py", "rewards.py", "program.py"}  # other projects, and files of users


def file_names(text: str) -> list[str]:
    """Returns the .py, .cpp and .js file names that a text mentions, with their folders where it gives them."""
    return re.findall(r"(?<![\w/.<>*-])((?:[\w-]+/)*[\w-]+\.(?:py|cpp|js))\b(?!:)", text)


def exists(name: str, near: Path) -> bool:
    """Whether a mentioned file exists: by its whole path, inside the package, or by its bare name."""
    if name.split("/")[-1] in OTHERS:
        return True
    if "/" not in name:
        return name in NAMES
    return any((base / name).is_file() for base in (ROOT, ROOT / "fledgling", near, near.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert [name for name in file_names(text) if not exists(name, page.parent)] == []


@pytest.mark.parametrize("module", SOURCES)
def test_files_that_a_docstring_names_exist(module):
    tree = ast.parse(SOURCES[module])
    near = ROOT / "fledgling" / Path(*module.split(".")[:-1])
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    texts = [ast.get_docstring(node) or "" for node in nodes]
    assert [name for text in texts for name in file_names(text) if not exists(name, near)] == []


def test_the_package_states_its_layers():
    stated = re.findall(r"(\d) ((?:[a-z]+ ?)+)(?=,|\.)", fledgling.__doc__.split("Imports only go down:")[1])
    assert [tuple(names.split()) for _, names in stated] == list(LAYERS)


def test_the_architecture_page_has_every_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = {
        name for row in re.findall(r"^\| (`[^|]*) \|", page, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert rows >= {name for names in LAYERS for name in names}


def test_the_checks_see_a_wrong_name():
    assert not exists("no_such_file.py", ROOT) and not exists("model/no_such_file.py", ROOT)
    assert file_names("see train/loop.py and `stage.py`") == ["train/loop.py", "stage.py"]
    assert exists("train/loop.py", ROOT) and exists("stage.py", ROOT)
