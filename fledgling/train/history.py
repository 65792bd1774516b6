"""What a stage ran with from which step on: its recipe and machine, of which a checkpoint keeps all that there were.

A stage that is resumed with other settings, or on another machine, is no function of one recipe. `fledgling verify`
replays each step with what it ran with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fledgling.config import Recipe, dump_toml
from fledgling.runtime.system_environment import collect_environment

MACHINE_KEYS = ("fledgling", "python", "torch", "cpu", "cores", "gpus")  # of the environment, that decide the bits


def extend_history(
    state: Mapping[str, Any] | None, recipe: Recipe, files: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Returns the entries {"after_step", "recipe", "machine", "files"} of a stage that starts or resumes from `state`.

    An entry holds for the steps after `after_step`, up to the next one's. One is added where something differs.

    files: digests of what the stage reads as it is (`read_files.py`). An earlier version's entry says nothing of them.
    """
    step = int(state["step"]) if state else 0
    known = state.get("history") if state else []
    if not isinstance(known, Sequence):  # a checkpoint of an earlier version: its own recipe is all that is known
        known = [{"after_step": 0, "recipe": state["recipe"], "machine": {}}] if state and "recipe" in state else []
    environment = collect_environment()
    entry = {
        "after_step": step,
        "recipe": dump_toml(replace(recipe, run=replace(recipe.run, out=""))),
        "machine": {key: environment.get(key) for key in MACHINE_KEYS},
        "files": dict(files or {}),
    }
    earlier = [each for each in known if each["after_step"] < step or step == 0]
    if earlier and all(earlier[-1].get(key, entry[key]) == entry[key] for key in ("recipe", "machine", "files")):
        return list(earlier)
    return [*(each for each in earlier if each["after_step"] < step), entry]
