"""Imports only go down, no modules import each other in a circle, and every file stays short and says what it holds."""

import ast

import pytest

from tests.invariants.structure import (
    LAYER,
    PACKAGE,
    backward_calls,
    import_cycles,
    read_sources,
    torch_at_import,
    upward_imports,
)

TORCH_FREE = (
    "config",
    "files",
    "text",
    "plan",
    "report",
    "scaling.results",
    "scaling.fits",
    "scaling.isoflop",
    "scaling.analysis",
    "scaling.sweep_page",
    "scaling.inference_scaling",
    "scaling.ablation",
    "scaling.recovery",
    "tasks",
    "sandbox",
    "cli",
    "watch",
    "corpora",
    "optim.partition",
    "optim.roles",
)
MAX_LINES = 400
SOURCES = read_sources()


def test_imports_only_go_down():
    assert upward_imports(SOURCES) == []


def test_no_modules_import_each_other_in_a_circle():
    assert import_cycles(SOURCES) == []


def test_the_checks_see_a_broken_structure():
    modules = {"model.a": "", "model.b": "", "train.loop": "", "optim.rules": "", "config": ""}
    assert upward_imports({**modules, "model.a": "from fledgling.train import loop"})
    assert upward_imports({**modules, "model.a": "def f():\n    import fledgling.optim.rules"})
    assert upward_imports({**modules, "model.a": "from ..train import loop"})
    assert not upward_imports({**modules, "model.a": "from . import b"})
    assert upward_imports({**modules, "unknown": "from fledgling.config import UserError"})
    assert not upward_imports({**modules, "train.a": "from fledgling.model import b\nfrom fledgling.train import loop"})
    circle = {"model.a": "from fledgling.model.b import x", "model.b": "def f():\n    from fledgling.model.a import y"}
    assert import_cycles(circle) == [["model.a", "model.b"]] and not import_cycles(modules)
    assert torch_at_import({"plan.a": "from fledgling.model.b import x", "model.b": "import torch.nn"}, ["plan"])
    assert not torch_at_import({"plan.a": "def f():\n    import torch"}, ["plan"])
    assert backward_calls({"train.sft": "loss.backward()", "train.loop": "loss.backward()"}) == ["train.sft:1"]


def test_every_package_has_a_layer_and_says_what_it_holds():
    packages = [path for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))]
    for package in packages:
        assert package.name in LAYER, f"{package.name} has no layer"
        assert (package / "__init__.py").is_file(), f"{package.name} has no __init__.py"
        docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
        assert docstring and len(docstring.split()) > 10, f"{package.name}: say what it holds and where to start"


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_is_short_and_says_what_it_holds(module):
    text = SOURCES[module]
    assert text.count("\n") <= MAX_LINES, f"{module} has {text.count(chr(10))} lines"
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"


def test_modules_that_answer_at_once_do_without_torch():
    assert all(any(m == name or m.startswith(f"{name}.") for m in SOURCES) for name in TORCH_FREE), "each name exists"
    assert torch_at_import(SOURCES, TORCH_FREE) == []


def test_there_is_one_training_loop():
    assert backward_calls(SOURCES) == []


def test_only_the_world_reads_the_variables_of_torchrun():
    names = ("WORLD_SIZE", "LOCAL_RANK")
    readers = {
        module
        for module, text in SOURCES.items()
        if any(name in text for name in names)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert readers <= {"runtime.world"}


def test_packages_that_import_each_other_through_different_modules_are_a_cycle():
    modules = {"files": "", "record.a": "import fledgling.runtime.c", "record.b": "", "runtime.c": ""}
    assert import_cycles(modules) == []
    assert import_cycles({**modules, "runtime.d": "import fledgling.record.b"}) == [["record", "runtime"]]
