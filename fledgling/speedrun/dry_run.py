"""The check of a run before it starts: of every stage, and on an accelerator a step and a checkpoint at full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fledgling.config import Recipe, RunConfig, UserError
from fledgling.plan.hardware import find_device
from fledgling.record.jsonl import format_bytes
from fledgling.runtime.device import DTYPES, DeviceSetup, choose_setup
from fledgling.runtime.device_memory import release_memory
from fledgling.runtime.world import World, choose_device
from fledgling.speedrun.stages import list_stages_left
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.check_recipe import StageCheck, check_recipe
from fledgling.train.init_from import find_model_config
from fledgling.train.same_ranks import require_same_device, require_same_recipe
from fledgling.train.trial_step import TrialStep, make_trial_step


@dataclass(frozen=True)
class DryRun:
    """The outcome of a dry run: a check of each stage, and where there is an accelerator the step that it made."""

    checks: list[StageCheck]
    trials: dict[str, TrialStep]
    assumed: str = ""  # which devices it was made for, where they are not those of this machine

    @property
    def is_sound(self) -> bool:
        """Whether no stage has a problem."""
        return not any(check.problems for check in self.checks)


def dry_run(recipe: Recipe) -> DryRun:
    """Checks the stages of a recipe that are not done, and trains nothing; writes nothing that stays.

    On an accelerator, if nothing is wrong, it also makes two steps and a checkpoint of each stage at full size, on
    random rows. Where this machine lacks the accelerator that the recipe names, its stages are checked for `run.ranks`
    of `run.hardware`, as `plan` does. Every rank calls it.
    """
    left = list_stages_left(recipe)
    if recipe.run.device not in ("auto", "cpu") and not is_device_here(recipe.run.device):
        world, setup = assume_hardware(recipe.run)
        of = f"{world.size} x {recipe.run.hardware}, which the recipe names: this machine has no {recipe.run.device}"
        return DryRun(check_recipe(recipe, left, setup, world), {}, f"checked for {of}")
    world = World.start(recipe.run.device)
    require_same_recipe(recipe, world, ", ".join(left))
    setup = choose_setup(recipe.run, world)
    require_same_device(setup, world)
    setup = replace(setup, memory_limit=min(world.all_gather_object(setup.memory_limit)))
    outcome = DryRun(check_recipe(recipe, left, setup, world), {}, describe_other_hardware(recipe.run, world))
    if world.device.type != "cpu" and outcome.is_sound:
        outcome = try_stages(recipe, outcome.checks, setup, world)
    return outcome


def describe_other_hardware(run: RunConfig, world: World) -> str:
    """Returns that a recipe for another kind of device is checked for this machine's; "" where it is the same."""
    if find_device(run.hardware).kind == world.device.type:
        return ""
    return f"checked for {world.size} x {world.device.type} of this machine; the recipe names {run.hardware}"


def is_device_here(device: str) -> bool:
    """Returns whether this machine has a device of that type."""
    try:
        choose_device(device)
    except UserError:
        return False
    return True


def assume_hardware(run: RunConfig) -> tuple[World, DeviceSetup]:
    """Returns rank 0 and the setup of the devices that a recipe names for its plan; nothing can be computed on them."""
    device = find_device(run.hardware)
    if device.kind != run.device:
        raise UserError(
            f"run.device={run.device}: this machine has none, and run.hardware={run.hardware} is another kind of "
            "device: name the one that the run is for, or set run.device=auto"
        )
    if run.fp8:
        device.require_fp8()
    dtype = device.dtype if run.dtype == "auto" else run.dtype
    device = device.with_dtype(dtype)
    answer_dtype = DTYPES[device.answer_dtype] if run.dtype == "auto" else None
    compiled = device.compiles(run.compile)
    setup = DeviceSetup(
        DTYPES[dtype], compiled, device.peak_flops, device.memory, fp8=run.fp8, answer_dtype=answer_dtype
    )
    return World(0, run.ranks, 0, torch.device("meta")), setup


def try_stages(recipe: Recipe, checks: Sequence[StageCheck], setup: DeviceSetup, world: World) -> DryRun:
    """Returns the checks with a trial of each stage whose step is known; what fails becomes a problem of its stage."""
    run_dir = Path(recipe.run.out)
    config, file = find_model_config(recipe, run_dir), run_dir / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.load(file) if file.exists() else None
    parent = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.is_dir())
    done, trials = [], {}
    for check in checks:
        if check.split is not None:
            try:
                arguments = (check.stage, config, setup, world, check.split, parent, tokenizer)
                trials[check.stage] = make_trial_step(recipe, *arguments)
            except Exception as error:  # a trial may fail in any way: out of memory, or a kernel that this card lacks
                problem = f"a step at full size fails: {' '.join(str(error).split())[:200]}"
                check = replace(check, problems=(*check.problems, problem))
            release_memory(world.device)
        done.append(check)
    return DryRun(done, trials)


def format_dry_run(outcome: DryRun) -> str:
    """Returns a dry run as a table of the stages, and below it what is wrong and what is noticed, line by line."""
    header = ["stage", "steps", "rows a step", "tokens a step", "on a rank", "memory of a rank"]
    table = [[*header, *(["a step took", "its peak", "a checkpoint"] if outcome.trials else []), "outcome"]]
    for check in outcome.checks:
        split, trial = check.split, outcome.trials.get(check.stage)
        tokens = check.rows * split.context if split is not None and check.rows is not None else None
        row = [check.stage, _show(check.steps), _show(check.rows), _show(tokens)]
        row.append(f"{split.micro_batches} x {split.rows} rows" if split is not None and check.rows else "")
        if split is not None and not check.rows:
            row[-1] = f"{split.rows} rows at once"
        row.append("?" if check.bytes is None else format_bytes(check.bytes, binary=True))
        if outcome.trials:
            sizes = [trial.peak_bytes, trial.checkpoint_bytes] if trial else []
            row += [f"{trial.seconds:.2f} s" if trial else "", *(format_bytes(size, binary=True) for size in sizes)]
            row += [""] * (9 - len(row))
        row.append("wrong" if check.problems else "ok")
        table.append(row)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [outcome.assumed] if outcome.assumed else []
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for check in outcome.checks:
        lines += [f"{check.stage}: wrong: {problem}" for problem in check.problems]
        lines += [f"{check.stage}: {notice}" for notice in check.notices]
    return "\n".join(lines)


def _show(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
