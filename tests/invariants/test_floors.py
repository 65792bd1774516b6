"""The floors of the house, read from the source: imports only go down, and every file stays readable.

Each law is a function from the package's sources to a list of breaches, so a test can show it broken ones.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fledgling"
FLOORS = [
    {"config", "files", "runtime", "record"},
    {"text", "model", "sandbox"},
    {"kernels", "data", "optim"},
    {"corpora"},
    {"plan", "export", "tasks", "report"},
    {"infer"},
    {"evals", "serve"},
    {"train"},
    {"bench", "scaling", "speedrun"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TORCH_FREE = (
    "config",
    "files",
    "text",
    "plan",
    "report",
    "scaling.results",
    "scaling.fits",
    "scaling.analysis",
    "scaling.sweep_page",
    "scaling.inference",
    "scaling.ablation",
    "scaling.recovery",
    "tasks",
    "sandbox",
    "cli",
    "corpora",
    "model.head_chunk",
    "optim.partition",
    "optim.roles",
)
LONGEST = 400


def sources(package: Path = PACKAGE) -> dict[str, str]:
    """Return module name (without `fledgling.`) -> source; a room's own name is its `__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def named(node: ast.AST, home: str) -> list[str]:
    """Return the dotted names that an import brings in; `home` is where relative ones start."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = home.split(".")[: 1 - node.level or None] if node.level else []
        return [".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return []


def home(module: str, modules: dict[str, str]) -> str:
    """Return the package that a module's relative imports start from."""
    room = module.split(".")[0]
    return f"fledgling.{room}" if any(name.startswith(f"{room}.") for name in modules) else "fledgling"


def at_import(tree: ast.Module, home: str) -> list[str]:
    """Return what importing the module imports: not in functions, not under TYPE_CHECKING."""
    found, waiting = [], list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        found += named(node, home)
        waiting += ast.iter_child_nodes(node)
    return found


def climbing(modules: dict[str, str]) -> list[str]:
    """Imports that go up a floor, or across to a neighbour."""
    breaches = []
    for module, text in modules.items():
        room = module.split(".")[0]
        if room in ("", "__main__"):
            continue
        start = home(module, modules)
        found = [(name, node.lineno) for node in ast.walk(ast.parse(text)) for name in named(node, start)]
        for name, line in found:
            if not name.startswith("fledgling."):
                continue
            other = name.split(".")[1]
            if other.startswith("__") or other == room:
                continue
            if room not in FLOOR or other not in FLOOR:
                breaches.append(f"{module}:{line}: a room without a floor: {room} -> {other}")
            elif FLOOR[other] > FLOOR[room] or (FLOOR[other] == FLOOR[room] != 0 and room != other):
                breaches.append(f"{module}:{line}: {room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})")
    return breaches


def torch_at_import(modules: dict[str, str]) -> list[str]:
    """Modules that promise to do without torch and import it, or one that does, when they are imported."""
    needs = {module: at_import(ast.parse(text), home(module, modules)) for module, text in modules.items()}

    def reaches(module: str, seen: set[str]) -> bool:
        if module in seen:
            return False
        seen.add(module)
        for name in needs[module]:
            if name.split(".")[0] == "torch":
                return True
            if name.startswith("fledgling."):
                target = name.removeprefix("fledgling.")
                target = target if target in needs else target.rpartition(".")[0]
                if target in needs and reaches(target, seen):
                    return True
        return False

    def promised(module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in TORCH_FREE)

    return [module for module in modules if promised(module) and reaches(module, set())]


def backward_calls(modules: dict[str, str]) -> list[str]:
    """Calls of `.backward()` outside the one training loop."""
    return [
        f"{module}:{node.lineno}"
        for module, text in modules.items()
        if module != "train.loop"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    ]


def test_imports_only_go_down():
    assert climbing(sources()) == []


def test_the_law_sees_a_broken_house():
    assert climbing({"model.a": "from fledgling.train import loop"})
    assert climbing({"model.a": "def f():\n    import fledgling.optim.rules"})
    assert climbing({"model.a": "from ..train import loop"}) and not climbing({"model.a": "from . import b"})
    assert climbing({"attic": "from fledgling.config import UserError"})
    assert not climbing({"train.a": "from fledgling.model.cache import KVCache\nfrom fledgling.train import loop"})
    assert torch_at_import({"plan.a": "from fledgling.model.b import x", "model.b": "import torch.nn"}) == ["plan.a"]
    assert not torch_at_import({"plan.a": "def f():\n    import torch"})
    assert backward_calls({"train.sft": "loss.backward()", "train.loop": "loss.backward()"}) == ["train.sft:1"]


def test_every_room_has_a_floor_and_says_what_it_holds():
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))]
    for room in rooms:
        assert room.name in FLOOR, f"{room.name} has no floor"
        assert (room / "__init__.py").is_file(), f"{room.name} has no __init__.py"
        docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
        assert docstring and len(docstring.split()) > 10, f"{room.name}: say what the room holds and where to start"


@pytest.mark.parametrize("module", sources())
def test_a_file_is_short_and_says_what_it_is(module):
    text = sources()[module]
    assert text.count("\n") <= LONGEST, f"{module} has {text.count(chr(10))} lines"
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"


def test_what_answers_at_once_does_without_torch():
    assert torch_at_import(sources()) == []


def test_there_is_one_training_loop():
    assert backward_calls(sources()) == []


def test_only_the_world_reads_torchrun_s_variables():
    names = ("WORLD_SIZE", "LOCAL_RANK")
    readers = {
        module
        for module, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert readers <= {"runtime.world"}
