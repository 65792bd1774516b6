"""The command only parses, calls and prints: what it does is a function below it, which a program can call too."""

import ast
import re

import pytest

from tests.invariants.structure import ROOT, dotted_imports, read_sources

SOURCES = {module: text for module, text in read_sources().items() if module.split(".")[0] == "cli"}
COMPUTING = ("torch", "numpy")
MAX_LINES, MAX_STATEMENT_LINES = 80, 40  # of a function, and of it without its signature and docstring
WRITES = re.compile(r"\b(save_checkpoint|save_file|write_tensor_file|load_state_dict)\b")
SHARED = {"terminal_input", "options"}  # the terminal itself, and options that other commands have too


def long_functions(source: str) -> list[str]:
    """Returns the functions of a module that have more lines than a command needs to parse, call and print."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines, statements = [(node.end_lineno or 0) - start + 1 for start in (node.lineno, body[0].lineno)]
            if lines > MAX_LINES or statements > MAX_STATEMENT_LINES:
                found.append(f"{node.name}: {lines} lines, {statements} of statements")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_a_command_parses_calls_and_prints(module):
    assert long_functions(SOURCES[module]) == []
    names = [name for name, _ in dotted_imports(module, SOURCES)]
    assert [name for name in names if name.split(".")[0] in COMPUTING] == []
    assert WRITES.findall(SOURCES[module]) == []


def test_nothing_but_tests_of_the_command_needs_a_function_of_the_command():
    users = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    needed = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in users
        if "cli" not in path.relative_to(ROOT).parts
        for name in re.findall(r"^\s*from fledgling\.cli\.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
        if name not in SHARED
    }
    assert needed == set()


def test_the_checks_see_a_command_that_computes():
    lines = [f"    x{i} = {i}" for i in range(41)]
    start = ["def f(", "    a,", "):", '    """Does."""']
    assert long_functions("\n".join([*start, *lines])) == ["f: 45 lines, 41 of statements"]
    assert not long_functions("\n".join([*start, *lines[1:]]))
    assert WRITES.findall("model.load_state_dict(x)") and not WRITES.findall("load_checkpoint_state(x)")
