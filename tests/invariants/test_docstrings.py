"""Docstrings follow the template: tensors have a shape, and a function of many parameters describes them."""

import ast
import re
from functools import cache
from itertools import combinations, takewhile

import pytest

from tests.invariants.structure import ROOT, read_sources

SIZE = r"(?:\.\.\.|\d* ?[A-Za-z]\w*(?: ?[-+*/x] ?[\w ]+)?|\d+)"
SHAPE = re.compile(
    rf"\({SIZE}(?:, ?{SIZE})+\)|\({SIZE},\)|\((?:[A-Z]{{1,2}}|\.\.\.)\)|"  # (B, T), (n,), (N)
    r"\b0-d\b|\bof (?:any|one|the same) shape|'s shape"
)
MANY = 5  # parameters
REPEATED = 5  # parameters that two docstrings describe with equal lines: one of them refers to the other
BY_NAME = ("Mapping", "dict", "TensorMap", "Callable")  # tensors of many shapes, or of a function
ARGUMENTS = re.compile(r"^\s*Args:$|arguments? (?:are those )?of `", re.MULTILINE)
COMMANDS = "cli"  # whose parameters are options: tests/invariants/test_every_command.py
EXPORTED = "export.modeling_fledgling"  # written for users of transformers, after its conventions


@cache
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


def repeated_args(sources: dict[str, str]) -> list[tuple[str, str]]:
    """Returns the pairs of functions and classes that describe `REPEATED` or more parameters in the same words."""
    described = {}
    for module, source in sources.items():
        if "Args:\n" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            is_described = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if is_described and "Args:\n" in (ast.get_docstring(node, clean=False) or ""):
                text = (ast.get_docstring(node) or "").partition("\nArgs:\n")[2]
                lines = takewhile(lambda line: not line or line.startswith(" "), text.splitlines())
                described[f"{module}.{node.name}"] = {line.strip() for line in lines} - {""}
    long = {name: lines for name, lines in described.items() if len(lines) >= REPEATED}
    return [(one, other) for one, other in combinations(long, 2) if len(long[one] & long[other]) >= REPEATED]


def foreign_args(source: str) -> list[str]:
    """Returns "function: name" for every name under Args that the function, or for a class its `__init__`, lacks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        functions = [node] if not isinstance(node, ast.ClassDef) else node.body
        parameters = {
            each.arg
            for function in functions
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            and (function is node or function.name == "__init__")
            for each in ast.walk(function.args)
            if isinstance(each, ast.arg)
        }
        if isinstance(node, ast.ClassDef):  # a dataclass has fields
            parameters |= {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
        named = described_args(ast.get_docstring(node) or "")
        found += [f"{node.name}: {name}" for name in named if name not in parameters]
    return found


def described_args(text: str) -> list[str]:
    """Returns the names that the Args of a docstring describe: `a: ...`, and `a, b: ...`."""
    _, _, args = text.partition("Args:\n")
    args = re.split(r"^\S", args, maxsplit=1, flags=re.MULTILINE)[0]
    lines = re.findall(r"^ {4}([*\w]+(?:, ?[*\w]+)*):", args, flags=re.MULTILINE)
    return [name.strip(" *") for line in lines for name in line.split(",")]


MODULES = {name: source for name, source in read_sources().items() if name != EXPORTED}


@pytest.mark.parametrize("check", [without_shape, without_args], ids=["shape", "args"])
def test_docstrings_describe_tensors_and_many_parameters(check):
    missing = {name: check(source) for name, source in MODULES.items() if name.split(".")[0] != COMMANDS}
    assert {name: functions for name, functions in missing.items() if functions} == {}


def test_docstrings_describe_no_other_parameters():
    paths = [path for folder in ("fledgling", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    found = {name: foreign_args(source) for name, source in sources.items() if "Args:\n" in source}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_the_check_sees_a_parameter_that_is_gone():
    args = "Args:\n        a, b: x.\n        c: y: z.\n            d: more.\n\n    Raises:\n        E: w.\n    "
    text = f'def f({{}}):\n    """F.\n\n    {args}"""'
    assert foreign_args(text.format("a, *b, **c")) == [] and foreign_args(text.format("a, b")) == ["f: c"]
    owner = 'class A:\n    """A.\n\n    Args:\n        a: b.\n    """\n    {}'
    assert foreign_args(owner.format("def __init__(self, b): ...")) == ["A: a"]
    assert foreign_args(owner.format("a: int")) == []


def test_the_checks_see_a_missing_description():
    tensor = 'def f(x: Tensor):\n    """Returns {}."""\n'
    assert without_shape(tensor.format("x")) == ["f"] and without_shape(tensor.format("x (a picture)")) == ["f"]
    assert not any(without_shape(tensor.format(text)) for text in ("x (B, T)", "x (n,)", "x of any shape", "x, 0-d"))
    assert not without_shape("def f(x: Mapping[str, Tensor]): ...") and not without_shape("def _f(x: Tensor): ...")
    many = 'class A:\n    """A.{}"""\n    def __init__(self, a, b, c, d, e): ...'
    assert without_args(many.format("")) == ["A.__init__"]
    assert not without_args(many.format("\n\n    Args:\n        a: b.\n    ")) and not without_args("def f(a, b): ...")
    assert not without_args('def f(a, b, c, d, e): "The arguments are those of `g`."')


def test_arguments_are_described_once():
    assert repeated_args(read_sources()) == []


def test_arguments_that_are_described_twice_are_seen():
    lines = "".join(f"\n        {name}: of the run." for name in "abcde")
    function = f'def f(a, b, c, d, e):\n    """Does.\n\n    Args:{lines}\n\n    Raises: x.\n    """\n'
    other = function.replace("def f", "def g")
    assert repeated_args({"m": function, "n": other}) == [("m.f", "n.g")]
    assert repeated_args({"m": function, "n": other.replace("e: of", "e: of all")}) == []
