"""Runs an ablation: the base and each variant with every seed, at equal FLOPs, on tokens prepared once.

The one idea: a variant is the same recipe with a few overrides more; its steps are what the budget leaves it, so that
a variant that costs more a token sees fewer. Seeds come outermost: stopped at any time, all variants have as many or
one more.

A finished run is skipped, a broken one goes on. Not here: what the losses mean (`ablation.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fledgling.config import Recipe, UserError, dump_toml
from fledgling.plan.flops import training_flops_per_token
from fledgling.record.progress_bar import format_duration
from fledgling.scaling.ablation import ABLATION_SETTINGS, BASE, trial_name
from fledgling.scaling.results import SweepRun, format_flops, read_run
from fledgling.scaling.sweep import (
    BATCH_TOKENS,
    MIN_STEPS,
    LogFunction,
    check_settings,
    prepare_sweep_data,
    shorten_recipe,
    train_run,
)

RecipeLoader = Callable[[Sequence[str]], Recipe]  # the base's recipe with these overrides more


def plan_ablation(
    load: RecipeLoader, variants: Mapping[str, tuple[str, ...]], seeds: int, budget: float, out: Path
) -> list[tuple[str, int, Recipe]]:
    """(variant, seed, recipe) of every run, seeds outermost, the base first.

    Raises UserError for an override that is none and for a budget of too few steps.
    """
    runs = []
    recipes = {name: load(overrides) for name, overrides in {BASE: (), **variants}.items()}
    for seed in range(seeds):
        for name, recipe in recipes.items():
            batch = recipe.pretrain.batch_tokens or BATCH_TOKENS
            flops = training_flops_per_token(recipe.resolve_model()) * batch
            steps = round(budget / flops)
            if steps < MIN_STEPS:
                least = format_flops(1.01 * MIN_STEPS * flops)
                raise UserError(
                    f"{name}: a budget of {format_flops(budget)} FLOPs is {steps} steps; give {least} or more"
                )
            seeded = replace(recipe, seed=recipe.seed + seed)
            runs.append((name, seed, shorten_recipe(seeded, steps, batch, out / trial_name(name, seed))))
    return runs


def run_ablation(
    load: RecipeLoader,
    variants: Mapping[str, tuple[str, ...]],
    seeds: int,
    budget: float,
    out: Path,
    log: LogFunction,
    on_finished: Callable[[str, int, SweepRun], None],
) -> int:
    """Make the runs that are not there yet; returns how many. `finished` is told of every run, old or new.

    Raises UserError for settings other than those already in `out`, train.loop.Stopped after a signal.
    """
    runs = plan_ablation(load, variants, seeds, budget, out)
    base = replace(runs[0][2], run=replace(runs[0][2].run, out="run"))
    check_settings(out / ABLATION_SETTINGS, f"# {format_flops(budget)} FLOPs a run\n{dump_toml(base)}", "an ablation")
    prepare_sweep_data(load(()), out, log)
    worked, seconds = 0, []
    for place, (name, seed, recipe) in enumerate(runs):
        run_dir = Path(recipe.run.out)
        if (found := read_run(run_dir)) is None:
            left = (
                f", about {format_duration(sum(seconds) / len(seconds) * (len(runs) - place))} left" if seconds else ""
            )
            log(f"ablation: run {place + 1} of {len(runs)}, {name} with seed {seed}{left}")
            train_run(recipe, out, {"depth": recipe.model.depth, "budget": budget, "variant": name, "seed": seed})
            worked += 1
            if (found := read_run(run_dir)) is None:
                raise UserError(f"{run_dir} is done but has no bits per byte; remove it and run again")
            seconds.append(found.seconds)
        on_finished(name, seed, found)
    return worked
