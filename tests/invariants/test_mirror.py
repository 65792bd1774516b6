"""Tests mirror the package: every module has its test file, or one line of mirror.toml says which file covers it.

That a file covers a module is read from its imports: of the module, of a name that the module defines, or, where the
line says through which other module, of that one, which imports the module. The file of a command names the command.
"""

import ast
import re
import tomllib
from functools import cache

import pytest

from tests.invariants.structure import PACKAGE, ROOT, read_sources

TESTS = ROOT / "tests"
IMPORT = re.compile(r"^[ \t]*(?:from ([\w.]+) import (\([^)]*\)|.*)|import ([\w.]+))", re.MULTILINE)
DEFINITION = re.compile(r"^(?:async )?(?:def|class) (\w+)|^(\w+)(?:: [^=\n]+)? = ", re.MULTILINE)
OF_THE_WHOLE = {"attacks", "benchmarks", "campaigns", "end_to_end", "gpu", "invariants"}


def read_mirror(table: dict, prefix: str = "") -> dict[str, str]:
    """Returns module -> test file of the nested tables of mirror.toml."""
    found: dict[str, str] = {}
    for name, value in table.items():
        found |= read_mirror(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def named_files(mirror: dict[str, str]) -> set[str]:
    """Returns the test files that the lines of mirror.toml name."""
    return {line.partition(" through ")[0] for line in mirror.values() if not line.startswith("none: ")}


def modules_without_tests(modules: list[str], tests: set[str]) -> list[str]:
    """Returns the modules that have no tests/<package>/test_<module>.py."""
    split = {module: module.split(".") for module in modules}
    return [m for m, (*folders, name) in split.items() if "/".join([*folders, f"test_{name}.py"]) not in tests]


@cache
def list_imports(source: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Returns the modules that a source imports, also in a program that it holds, and its (module, name) pairs."""
    modules: set[str] = set()
    names: set[tuple[str, str]] = set()
    for above, listed, plain in IMPORT.findall(source):
        if plain:
            modules.add(plain)
            continue
        imported = re.findall(r"(?<!\bas )\b\w+\b(?<!\bas)", re.sub("#.*", "", listed))
        modules |= {above, *(f"{above}.{name}" for name in imported)}
        names |= {(above, name) for name in imported}
    return modules, names


@cache
def list_definitions(source: str) -> set[str]:
    """Returns the names that a module defines at its top level."""
    return {name for names in DEFINITION.findall(source) for name in names if name}


def read_with_helpers(file: str) -> str:
    """Returns the source of a test file and of the helpers in tests/ that it imports."""
    source = (TESTS / file).read_text(encoding="utf-8")
    paths = {
        ROOT.joinpath(*module.split(".")).with_suffix(".py")
        for module in list_imports(source)[0]
        if module.startswith("tests.")
    }
    return "\n".join([source, *(path.read_text(encoding="utf-8") for path in sorted(paths) if path.is_file())])


def uses(source: str, module: str, definitions: set[str]) -> bool:
    """Returns whether a source imports a module of the package, or a name that it defines from a package above it."""
    modules, names = list_imports(source)
    full = f"fledgling.{module}"
    return full in modules or any(name in definitions and full.startswith(f"{above}.") for above, name in names)


def names_command(source: str, module: str) -> bool:
    """Returns whether a test gives the words of a command's module, `cli.eval_needle`, to a command line."""
    words = {
        word
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        for word in str(node.value).split()
    }
    if module.endswith("__main__"):
        return f"fledgling.{module}".removesuffix(".__main__") in words
    return set(module.removeprefix("cli.").strip("_").split("_")) <= words


def explain_uncovered(module: str, line: str, tests: dict[str, str], sources: dict[str, str]) -> str | None:
    """Returns why a line of mirror.toml is not true of its module; None: it is."""
    file, _, through = line.partition(" through ")
    test, definitions = tests[file], list_definitions(sources[module])
    if through:
        if not uses(test, through, list_definitions(sources[through])):
            return f"{file} does not import {through}"
        return None if uses(sources[through], module, definitions) else f"{through} does not import {module}"
    if uses(test, module, definitions) or (
        module.partition(".")[0] in ("cli", "__main__") and names_command(test, module)
    ):
        return None
    return f"{file} does not import it"


@pytest.fixture(scope="module")
def mirror() -> dict[str, str]:
    return read_mirror(tomllib.loads((TESTS / "invariants" / "mirror.toml").read_text(encoding="utf-8")))


def test_the_named_test_covers_its_module(mirror):
    files = named_files(mirror)
    tests = {file: read_with_helpers(file) for file in files}
    sources = read_sources()
    wrong = {
        m: explain_uncovered(m, line, tests, sources) for m, line in mirror.items() if not line.startswith("none: ")
    }
    assert {module: why for module, why in wrong.items() if why} == {}


def test_every_module_has_its_test_file_or_says_which_covers_it(mirror):
    tests = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    modules = [m for m in read_sources() if m and not PACKAGE.joinpath(*m.split(".")).is_dir()]
    assert sorted(modules_without_tests(modules, tests)) == sorted(mirror)
    assert sorted(named_files(mirror) - tests) == []


def test_every_test_is_in_the_folder_of_its_package():
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    misplaced = {f.as_posix() for f in folders if not f.parts or not (PACKAGE / f).is_dir()}
    assert {name for name in misplaced if name.split("/")[0] not in OF_THE_WHOLE} == set()


def test_the_check_sees_a_module_without_a_test():
    assert modules_without_tests(["a.b", "a.c", "d"], {"a/test_b.py", "test_d.py"}) == ["a.c"]
    nested = {"__main__": "x", "a": {"b": "y", "c": {"d": "z"}}}
    assert read_mirror(nested) == {"__main__": "x", "a.b": "y", "a.c.d": "z"}


def test_imports_and_definitions_are_read():
    source = "from a.b import (  # why\n    c,\n    d as e,\n)\nimport f.g as h\n\nK: int = 1\nL = 2\ndef m(): n = 3\n"
    modules, names = list_imports(source)
    assert modules == {"a.b", "a.b.c", "a.b.d", "f.g"} and names == {("a.b", "c"), ("a.b", "d")}
    assert list_definitions(source + "class O: ...\nasync def p(): ...\n") == {"K", "L", "m", "O", "p"}


def test_the_check_sees_a_test_that_does_not_cover_its_module():
    sources = {
        "a.b": "def f(): ...",
        "a.c": "from fledgling.a.b import f\ndef g(): ...",
        "cli.eval_x": "",
        "a.d": "X: int = 1",
    }
    tests = {
        "t.py": "from fledgling.a import g",
        "u.py": "from fledgling.a import b as module\nmain(['eval', 'x', '--json'])",
        "v.py": "import fledgling.a.d",
    }

    def explain(module, line):
        return explain_uncovered(module, line, tests, sources)

    assert explain("a.b", "t.py") == "t.py does not import it" and explain("a.b", "u.py") is None
    assert explain("a.b", "t.py through a.c") is None and explain("a.d", "v.py") is None
    assert explain("a.d", "t.py through a.c") == "a.c does not import a.d"
    assert explain("a.b", "v.py through a.c") == "v.py does not import a.c"
    assert explain("cli.eval_x", "u.py") is None and explain("cli.eval_x", "t.py") == "t.py does not import it"
