"""`fledgling config`: lists the recipes, and shows one with every default filled in."""

from __future__ import annotations

import dataclasses
import json

from cyclopts import App

from fledgling.cli.options import Json, Overrides
from fledgling.config import dump_toml, load_recipe, recipe_names

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

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    """
    loaded = load_recipe(recipe, overrides)
    print(json.dumps(dataclasses.asdict(loaded), indent=2) if as_json else dump_toml(loaded).rstrip())
