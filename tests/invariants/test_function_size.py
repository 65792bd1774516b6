"""Functions stay short and take few values: those that do not become no more."""

import ast
from pathlib import Path

import fledgling

PACKAGE = Path(fledgling.__file__).parent
MAX_LINES, MAX_PARAMETERS = 60, 6
# Functions above these limits, outside the command, whose parameters are options, on 28 November 2026.
LONG, WIDE = 1, 45
NAMED_STEPS = ("build_context.py", "run.py", "stage_origin.py", "train_state.py")  # of a stage, in train/
MAX_STEP_LINES = 40


def measure_functions(source: str) -> dict[str, tuple[int, int]]:
    """Returns lines, without the docstring, and parameters, without self, of each function by its line and name."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            parameters = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            text = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            lines = node.end_lineno - node.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)
            found[f"{node.lineno}: {node.name}"] = (lines, len(parameters))
    return found


def test_functions_that_are_long_or_take_many_values_become_no_more():
    sizes = {
        f"{path.relative_to(PACKAGE)}:{name}": size
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "cli"
        for name, size in measure_functions(path.read_text()).items()
    }
    long = [name for name, (lines, _) in sizes.items() if lines > MAX_LINES]
    wide = [name for name, (_, parameters) in sizes.items() if parameters > MAX_PARAMETERS]
    assert len(long) <= LONG, "more than 60 lines:\n" + "\n".join(long)
    assert len(wide) <= WIDE, "more than 6 parameters:\n" + "\n".join(wide)


def test_a_stage_runs_in_named_steps():
    for file in NAMED_STEPS:
        for name, (lines, parameters) in measure_functions((PACKAGE / "train" / file).read_text()).items():
            assert lines <= MAX_STEP_LINES and parameters <= MAX_PARAMETERS, f"{file}: {name} is a long step"


SOURCE = """
class A:
    def f(self, a, *, b=1):
        '''Returns a.

        Args: none.
        '''
        return a

async def g():
    pass
"""


def test_lines_are_counted_without_the_docstring_and_parameters_without_self():
    assert measure_functions(SOURCE) == {"3: f": (2, 2), "10: g": (2, 0)}
