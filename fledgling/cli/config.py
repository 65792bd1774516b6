"""`fledgling config`: lists the recipes, and shows one with every default filled in."""

from __future__ import annotations

import dataclasses
import json

from cyclopts import App

from fledgling.cli.options import Json, Overrides
from fledgling.config import dump_toml, load_recipe, recipe_names
from fledgling.plan.derive import derive_known, list_derived

app = App(name="config", help="List recipes, and show one with its defaults and overrides.")


@app.command(name="list")
def list_recipes() -> None:
    """List the recipes that come with the package."""
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{name:<{width}}  {load_recipe(name).description}")


@app.command
def show(
    recipe: str = "quickstart",
    /,
    *,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Print a recipe with its defaults filled in and its overrides applied, as TOML to save and edit.

    What the recipe leaves open and a rule fills is printed as comments, so that it still follows the depth once saved.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    """
    loaded = load_recipe(recipe, overrides)
    derived = list_derived(loaded, derive_known(loaded))
    if as_json:
        values = dataclasses.asdict(loaded) | {"derived": [dataclasses.asdict(each) for each in derived]}
        del values["stated"]  # no key of a recipe
        print(json.dumps(values, indent=2))
        return
    comments: dict[str, list[str]] = {}
    for each in derived:
        table, _, _ = each.name.partition(".")
        comments.setdefault(table, []).append(each.describe().partition(".")[2])
    print(dump_toml(loaded, comments).rstrip())
