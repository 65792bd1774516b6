"""A function gets the table that it needs: one that reads a single field of a recipe does not take the whole."""

import ast
from dataclasses import fields
from pathlib import Path

import fledgling
from fledgling.config import Recipe

ROOT = Path(fledgling.__file__).parents[1]
ONE_TABLE = {field.name for field in fields(Recipe)} | {"stage_config"}  # of its methods, the one that returns a table


def takes_a_recipe(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation).strip("'\"") == "Recipe"


def list_needless_recipes(source: str) -> list[str]:
    """Returns FUNCTION(PARAMETER.FIELD) of each parameter annotated Recipe of which only one field is read.

    A function that is an entry of a table of the module has the signature of the others there.
    """
    found, tree = [], ast.parse(source)
    entries = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple)
        for name in node.elts
        if isinstance(name, ast.Name)
    }
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.name in entries:
            continue
        arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        for name in (argument.arg for argument in arguments if takes_a_recipe(argument)):
            nodes = [node for statement in function.body for node in ast.walk(statement)]
            uses = sum(isinstance(node, ast.Name) and node.id == name for node in nodes)
            read = [
                node.attr
                for node in nodes
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
            ]
            if uses and len(read) == uses and len(set(read)) == 1 and set(read) <= ONE_TABLE:
                found.append(f"{function.name}({name}.{read[0]})")
    return found


def test_no_function_takes_a_recipe_to_read_one_field_of_it():
    found = {
        f"{path.relative_to(ROOT)}: {use}"
        for package in ("fledgling", "benchmarks")
        for path in sorted((ROOT / package).rglob("*.py"))
        for use in list_needless_recipes(path.read_text())
    }
    assert not found, "hand these the table:\n" + "\n".join(sorted(found))


def test_a_recipe_of_which_one_field_is_read_is_found_and_others_are_not():
    one = "def f(recipe: Recipe):\n    return [recipe.run.out, recipe.run.ranks]"
    assert list_needless_recipes(one) == ["f(recipe.run)"]
    assert list_needless_recipes("def f(r: Recipe, name: str):\n    return r.stage_config(name)") == [
        "f(r.stage_config)"
    ]
    assert not list_needless_recipes(f'{one}\nTABLE = (("out", f), ("ranks", g))')
    for several in ("recipe.run, recipe.rl", "g(recipe), recipe.run", "recipe.resolve_model()"):
        assert not list_needless_recipes(f"def f(recipe: Recipe):\n    return {several}")
