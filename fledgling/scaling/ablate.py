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

from fledgling.config import Recipe, UserError
from fledgling.model.config import from_table
from fledgling.plan.flops import per_token
from fledgling.record.progress import clock
from fledgling.scaling.ablation import BASE, SETTINGS, directory
from fledgling.scaling.results import Run, amount, read
from fledgling.scaling.sweep import BATCH_TOKENS, LEAST_STEPS, Say, hold, make, prepare, shortened
from fledgling.toml import dump_toml

Load = Callable[[Sequence[str]], Recipe]  # the base's recipe with these overrides more


def plan(
    load: Load, variants: Mapping[str, tuple[str, ...]], seeds: int, budget: float, out: Path
) -> list[tuple[str, int, Recipe]]:
    """(variant, seed, recipe) of every run, seeds outermost, the base first.

    Raises UserError for an override that is none and for a budget of too few steps.
    """
    runs = []
    recipes = {name: load(overrides) for name, overrides in {BASE: (), **variants}.items()}
    for seed in range(seeds):
        for name, recipe in recipes.items():
            batch = recipe.pretrain.batch_tokens or BATCH_TOKENS
            flops = per_token(from_table(recipe.model, recipe.tokenizer.vocab_size)) * batch
            steps = round(budget / flops)
            if steps < LEAST_STEPS:
                least = amount(1.01 * LEAST_STEPS * flops)
                raise UserError(f"{name}: a budget of {amount(budget)} FLOPs is {steps} steps; give {least} or more")
            seeded = replace(recipe, seed=recipe.seed + seed)
            runs.append((name, seed, shortened(seeded, steps, batch, out / directory(name, seed))))
    return runs


def ablate(
    load: Load,
    variants: Mapping[str, tuple[str, ...]],
    seeds: int,
    budget: float,
    out: Path,
    say: Say,
    finished: Callable[[str, int, Run], None],
) -> int:
    """Make the runs that are not there yet; returns how many. `finished` is told of every run, old or new.

    Raises UserError for settings other than those already in `out`, train.loop.Stopped after a signal.
    """
    runs = plan(load, variants, seeds, budget, out)
    base = replace(runs[0][2], run=replace(runs[0][2].run, out="run"))
    hold(out / SETTINGS, f"# {amount(budget)} FLOPs a run\n{dump_toml(base)}", "an ablation")
    prepare(load(()), out, say)
    worked, seconds = 0, []
    for place, (name, seed, recipe) in enumerate(runs):
        run_dir = Path(recipe.run.out)
        if (found := read(run_dir)) is None:
            left = f", about {clock(sum(seconds) / len(seconds) * (len(runs) - place))} left" if seconds else ""
            say(f"ablation: run {place + 1} of {len(runs)}, {name} with seed {seed}{left}")
            make(recipe, out, {"depth": recipe.model.depth, "budget": budget, "variant": name, "seed": seed})
            worked += 1
            if (found := read(run_dir)) is None:
                raise UserError(f"{run_dir} is done but has no bits per byte; remove it and run again")
            seconds.append(found.seconds)
        finished(name, seed, found)
    return worked
