"""Docstrings follow the template: tensors have a shape, and a function of many parameters describes them."""

import ast
import re

import pytest

from tests.invariants.structure import read_sources

SIZE = r"(?:\.\.\.|\d* ?[A-Za-z]\w*(?: ?[-+*/x] ?[\w ]+)?|\d+)"
SHAPE = re.compile(
    rf"\({SIZE}(?:, ?{SIZE})+\)|\({SIZE},\)|\((?:[A-Z]{{1,2}}|\.\.\.)\)|"  # (B, T), (n,), (N)
    r"\b0-d\b|\bof (?:any|one|the same) shape|'s shape"
)
MANY = 5  # parameters
BY_NAME = ("Mapping", "dict", "TensorMap", "Callable")  # tensors of many shapes, or of a function
ARGUMENTS = re.compile(r"^\s*Args:$|arguments? (?:are those )?of `", re.MULTILINE)
COMMANDS = "cli"  # whose parameters are options: tests/invariants/test_every_command.py
EXPORTED = "export.modeling_fledgling"  # written for users of transformers, after its conventions


def list_functions(source: str) -> list[tuple[str, list[ast.arg], str]]:
    """Returns name, parameters and docstring of each public function; a method's with its class's."""
    found = []

    def add(nodes: list[ast.stmt], owner: str, class_text: str) -> None:
        for node in nodes:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                add(node.body, f"{node.name}.", ast.get_docstring(node) or "")
            elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                own = [each for each in parameters if each.arg not in ("self", "cls")]
                found.append((owner + node.name, own, f"{ast.get_docstring(node) or ''}\n{class_text}"))

    add(ast.parse(source).body, "", "")
    return found


def takes_tensor(parameter: ast.arg) -> bool:
    """Returns whether a parameter is a tensor, or several of one kind; not one that has them by name."""
    annotation = ast.unparse(parameter.annotation) if parameter.annotation else ""
    return bool(re.search(r"\bTensor\b", annotation)) and not any(name in annotation for name in BY_NAME)


def without_shape(source: str) -> list[str]:
    """Returns the functions that take a tensor, and whose docstrings have no shape."""
    return [
        name
        for name, parameters, text in list_functions(source)
        if any(map(takes_tensor, parameters)) and not SHAPE.search(text)
    ]


def without_args(source: str) -> list[str]:
    """Returns the functions of `MANY` or more parameters whose docstrings have no Args and name no other's."""
    return [
        name
        for name, parameters, text in list_functions(source)
        if len(parameters) >= MANY and not ARGUMENTS.search(text)
    ]


MODULES = {name: source for name, source in read_sources().items() if name != EXPORTED}


@pytest.mark.parametrize("check", [without_shape, without_args], ids=["shape", "args"])
def test_docstrings_describe_tensors_and_many_parameters(check):
    missing = {name: check(source) for name, source in MODULES.items() if name.split(".")[0] != COMMANDS}
    assert {name: functions for name, functions in missing.items() if functions} == {}


def test_the_checks_see_a_missing_description():
    tensor = 'def f(x: Tensor):\n    """Returns {}."""\n'
    assert without_shape(tensor.format("x")) == ["f"] and without_shape(tensor.format("x (a picture)")) == ["f"]
    assert not any(without_shape(tensor.format(text)) for text in ("x (B, T)", "x (n,)", "x of any shape", "x, 0-d"))
    assert not without_shape("def f(x: Mapping[str, Tensor]): ...") and not without_shape("def _f(x: Tensor): ...")
    many = 'class A:\n    """A.{}"""\n    def __init__(self, a, b, c, d, e): ...'
    assert without_args(many.format("")) == ["A.__init__"]
    assert not without_args(many.format("\n\n    Args:\n        a: b.\n    ")) and not without_args("def f(a, b): ...")
    assert not without_args('def f(a, b, c, d, e): "The arguments are those of `g`."')
