"""What docstrings and documentation say about the tree is true of the tree: file names, layers, packages."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import fledgling
from fledgling.cli import COMMANDS
from tests.invariants.structure import LAYERS, PACKAGE, ROOT, read_sources, torch_at_import
from tests.invariants.test_words import COMMENTED, comments_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "decisions" / "names.md")  # shows old names next to new ones
SOURCES = read_sources()
NAMES = {
    path.name for folder in ("fledgling", "tests", "benchmarks", "launch") for path in (ROOT / folder).rglob("*.*")
}
PACKAGES = [".".join(path.parent.relative_to(PACKAGE).parts) for path in sorted(PACKAGE.glob("*/**/__init__.py"))]
# other projects, and files of users and of exports
OTHERS = {"llama.cpp", "modeling.py", "setup.py", "rewards.py", "program.py", "calculator.py"}


def file_names(text: str) -> list[str]:
    """Returns the .py, .cpp and .js file names that a text mentions, with their folders where it gives them."""
    return re.findall(r"(?<![\w/.<>*-])((?:[\w-]+/)*[\w-]+\.(?:py|cpp|js))\b(?!:)", text)


def exists(name: str, near: Path, is_docstring: bool = False) -> bool:
    """Whether a mentioned file exists: by its whole path, inside the package, or by its bare name.

    A bare name in a docstring is that of a file in the package of its module; a page may mean any of the tree.
    """
    if name.split("/")[-1] in OTHERS:
        return True
    if "/" not in name:
        return any(near.rglob(name)) if is_docstring else name in NAMES
    return any((base / name).is_file() for base in (ROOT, ROOT / "fledgling", near, near.parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert [name for name in file_names(text) if not exists(name, page.parent)] == []


@pytest.mark.parametrize("module", SOURCES)
def test_files_that_a_docstring_names_exist(module):
    tree = ast.parse(SOURCES[module])
    folder = PACKAGE.joinpath(*module.split("."))
    near = folder if folder.is_dir() else folder.parent
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    texts = [ast.get_docstring(node) or "" for node in nodes]
    assert [name for text in texts for name in file_names(text) if not exists(name, near, is_docstring=True)] == []


@pytest.mark.parametrize("path", COMMENTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_comment_of_another_language_names_exist(path):
    names = [name for text in comments_of(path).values() for name in file_names(text)]
    assert [name for name in names if not exists(name, path.parent)] == []


def unnamed_modules(docstring: str, modules: list[str]) -> list[str]:
    """Returns the modules that a package's docstring does not name: as NAME.py, in a group like gguf_*.py, or `NAME`.

    In a table, the first column may have the bare name.
    """
    named = re.findall(r"([\w*]+)\.py\b|`(\w+)/?`|(\w+)/(?=\W)|^ {4}(\w+)  ", docstring, flags=re.MULTILINE)
    patterns = {name for names in named for name in names if name}
    return [module for module in modules if not any(fnmatch(module, pattern) for pattern in patterns)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_names_all_its_modules(package):
    folder = PACKAGE.joinpath(*package.split("."))
    docstring = ast.get_docstring(ast.parse(SOURCES[package])) or ""
    modules = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")]
    modules += [path.parent.name for path in folder.glob("*/__init__.py")]
    if package == "cli":  # a verb has the file of its name
        modules = [name for name in modules if name.rstrip("_") not in COMMANDS]
    assert unnamed_modules(docstring, modules) == []


def test_the_package_states_its_layers():
    stated = re.findall(r"(\d) ((?:[a-z]+ ?)+)(?=,|\.)", fledgling.__doc__.split("Imports only go down:")[1])
    assert [tuple(names.split()) for _, names in stated] == list(LAYERS)


def repeated_terms(page: str) -> list[str]:
    """Returns the terms that a glossary has in more than one row; a row may have several, after commas."""
    rows = re.findall(r"^\| (?!term|-)([^|]*) \|", page, flags=re.MULTILINE)
    terms = [term.strip() for row in rows for term in row.split(",")]
    return sorted({term for term in terms if terms.count(term) > 1})


def test_the_glossary_has_each_term_once():
    assert repeated_terms((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")) == []
    assert repeated_terms("| term | x |\n|---|---|\n| a, b | x |\n| c | x |\n| b | y |\n") == ["b"]


def test_the_architecture_page_has_every_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = {
        name for row in re.findall(r"^\| (`[^|]*) \|", page, flags=re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert rows >= {name for names in LAYERS for name in names}


def test_the_architecture_page_says_which_modules_import_torch():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+)` \| .* \| ([^|]*) \|$", page, flags=re.MULTILINE))
    loading = set(torch_at_import(SOURCES, stated))
    for package, text in stated.items():
        modules = {name for name in SOURCES if name.startswith(f"{package}.")}
        named = {f"{package}.{name}" for name in re.findall(r"`([\w.]+)`", text)}
        if text == "yes":
            assert len(modules & loading) >= len(modules) / 2, package
        else:
            expected = modules - named if text.startswith("yes, but ") else named
            assert (text == "no" or named) and modules & loading == expected, package


def test_the_checks_see_a_wrong_name():
    assert not exists("stage.py", ROOT / "fledgling" / "model", is_docstring=True)
    assert unnamed_modules("Start with `a.py`, then b_*.py, `c`, and d/.\n\n    e    x", [*"abcdef", "b_x"]) == [
        "b",
        "f",
    ]
    assert not exists("no_such_file.py", ROOT) and not exists("model/no_such_file.py", ROOT)
    assert file_names("see train/loop.py and `stage.py`") == ["train/loop.py", "stage.py"]
    assert exists("train/loop.py", ROOT) and exists("stage.py", ROOT)
