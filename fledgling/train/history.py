"""What a stage ran with from which step on: recipe, machine, dtypes, compiler; a checkpoint has all there were.

A stage that is resumed with other settings, or on another machine, is no function of one recipe. `fledgling verify`
replays each step with what it ran with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fledgling.config import Recipe, dump_toml
from fledgling.runtime.device import DeviceSetup, name_dtype
from fledgling.runtime.system_environment import collect_environment

MACHINE_KEYS = ("fledgling", "python", "torch", "cpu", "cores", "gpus")  # of the environment, that decide the bits


def extend_history(
    state: Mapping[str, Any] | None,
    recipe: Recipe,
    setup: DeviceSetup,
    files: Mapping[str, str] | None = None,
    samples_natively: bool | None = None,
) -> list[dict[str, Any]]:
    """Returns the entries of a stage that starts or resumes from `state`.

    Their keys are "after_step", "recipe", "machine", "dtypes" (of training, and of the engine), "files", "compiled"
    (whether blocks and loss were) and, of a stage that samples, "native" (whether native kernels were found). An entry
    holds for the steps after `after_step`, up to the next one's. One is added where something differs.

    Args:
        state: of the checkpoint; None: the stage starts.
        recipe: that it runs with.
        setup: its dtypes, and whether it compiles. An earlier version's entry has none: it trained in the engine's
            dtype, and is assumed to have compiled as this one does.
        files: digests of what the stage reads as it is (`read_files.py`). An earlier version's entry has none.
        samples_natively: whether the engine that samples has native kernels; None: the stage does not sample.
    """
    step = int(state["step"]) if state else 0
    known = state.get("history") if state else []
    if not isinstance(known, Sequence):  # a checkpoint of an earlier version: its own recipe is all that is known
        known = [{"after_step": 0, "recipe": state["recipe"], "machine": {}}] if state and "recipe" in state else []
    environment = collect_environment()
    answers = name_dtype(setup.engine_dtype)
    entry = {
        "after_step": step,
        "recipe": dump_toml(replace(recipe, run=replace(recipe.run, out=""))),
        "machine": {key: environment.get(key) for key in MACHINE_KEYS},
        "dtypes": [setup.dtype_name, answers],
        "files": dict(files or {}),
        "compiled": setup.compiled,
    } | ({} if samples_natively is None else {"native": samples_natively})
    earlier = [each for each in known if each["after_step"] < step or step == 0]
    assumed = entry | {"dtypes": [answers, answers]}
    if earlier and all(earlier[-1].get(key, assumed[key]) == entry[key] for key in assumed if key != "after_step"):
        return list(earlier)
    return [*(each for each in earlier if each["after_step"] < step), entry]


def describe_other_dtype(history: Sequence[Mapping[str, Any]], step: int) -> str:
    """Returns a line where a stage is resumed after `step` in another dtype than its steps so far; "" elsewhere."""
    if len(history) < 2 or history[-1]["after_step"] != step:
        return ""
    dtype, answers = history[-1]["dtypes"]
    before = history[-2].get("dtypes", [answers])[0]
    keep = f"--set run.dtype={before} keeps that"
    return f"resumed in {dtype}, and trained in {before} so far: {keep}" if before != dtype else ""
