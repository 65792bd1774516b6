"""One name has one meaning: no two modules of the package define a public class or function of the same name."""

import ast
from collections import defaultdict

from tests.invariants.structure import read_sources

INTERFACES = {  # functions that several modules of one kind have, each called through its module
    "build_response": "serve",
    "parse_request": "serve",
    "list_templates": "tasks.skills",
    "make_task": "tasks",
    "parse_row": "tasks",
}
MIRRORED = {"uses_blockwise_attention"}  # the same computation: the planner's, and the model's
ALONE = ("cli.", "export.modeling_fledgling")  # commands are named by their group; a file that users get has no imports
ASPECTS = {  # modules of one name, in packages that have an aspect of one thing each
    "adapter": "its configuration, its model, what the planner counts",
    "app": "an ASGI application",
    "build": "a builder: of the model, of the rl stage, of a stage that learns from a teacher",
    "chat": "its endpoint, its exams",
    "core": "the tasks of CORE, and their evaluation",
    "distill": "its configuration",
    "errors": "of a user, of a request",
    "loss": "of the stages, of distillation",
    "samples": "they are made, they are shown",
    "task": "its interface, an environment as one",
    "teacher": "its model, what the planner counts",
}


def duplicates(sources: dict[str, str]) -> dict[str, list[str]]:
    """Returns the public classes and functions that several modules define, with these modules."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, source in sources.items():
        if module.startswith(ALONE):
            continue
        for node in ast.parse(source).body:
            is_definition = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if is_definition and not node.name.startswith("_") and node.name != "main":
                found[node.name].append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def is_expected(name: str, modules: list[str]) -> bool:
    """Returns whether a name may be defined by several modules: an interface of their package, or a mirror."""
    return name in MIRRORED or (name in INTERFACES and all(each.startswith(INTERFACES[name]) for each in modules))


def test_no_two_modules_define_a_public_name_with_two_meanings():
    found = duplicates(read_sources())
    assert {name: modules for name, modules in found.items() if not is_expected(name, modules)} == {}


def test_modules_of_one_name_are_aspects_of_one_thing():
    places: dict[str, list[str]] = defaultdict(list)
    for module in read_sources():
        if not module.startswith("cli.") and not module.endswith("__init__") and "." in module:
            places[module.rsplit(".", 1)[1]].append(module)
    repeated = {name for name, modules in places.items() if len(modules) > 1}
    assert repeated <= ASPECTS.keys()


def test_the_check_sees_a_name_of_two_meanings():
    sources = {"plan.a": "class Horizon: ...", "train.b": "class Horizon: ...", "cli.c": "def Horizon(): ..."}
    assert duplicates(sources) == {"Horizon": ["plan.a", "train.b"]}
    assert not is_expected("make_task", ["tasks.gsm8k", "train.run"]) and is_expected("make_task", ["tasks.gsm8k"])
