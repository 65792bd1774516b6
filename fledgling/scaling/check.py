"""The check: a budget beyond any in the sweep is predicted, the prediction is written down, and one run is made.

The one idea: the prediction stands in the run's directory before the run begins, so that nobody, the code included,
can improve it afterwards. A finished run is not made again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, UserError
from fledgling.plan.flops import per_token
from fledgling.plan.scaling import counts
from fledgling.plan.size import parameters
from fledgling.record import write_json
from fledgling.scaling.analysis import KEY, Analysis, Fits, estimate, predict
from fledgling.scaling.results import CHECK, Outcome, outcomes
from fledgling.scaling.sweep import Cell, Say, grid, model, prepare, run_cell

DEPTHS = range(1, 33)  # among which the size for the predicted optimum is sought


def check(recipe: Recipe, analysis: Analysis, times: float, depth: int | None, say: Say) -> Outcome:
    """Predict and make one run at `times` the sweep's largest budget; returns what was predicted and measured.

    depth: None for the one nearest to the predicted optimum. Raises UserError for a budget inside the sweep.
    """
    if not 1 < times < math.inf:
        raise UserError(f"times: got {times:g}, expected more than 1: the check is of a budget beyond the sweep's")
    sweep = analysis.sweep
    budget = times * max(run.budget for run in sweep.runs)
    depth = depth or nearest(recipe, analysis.of(KEY), budget)
    (one,) = grid(recipe, [depth], [budget], sweep.path / CHECK)
    run_dir = Path(one.recipe.run.out)
    prepare(recipe, sweep.path, say)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "prediction.json").exists():
        write_json(run_dir / "prediction.json", prediction(analysis.of(KEY), one))
    say(f"check: {one.name}, {times:g} times the largest budget of the sweep")
    run_cell(one, sweep.path)
    return next(found for found in outcomes(sweep.path) if found.run.name == one.name)


def nearest(recipe: Recipe, fits: Fits, budget: float) -> int:
    """Return the depth whose N is nearest, by ratio, to the predicted optimum for `budget` FLOPs."""
    N, _ = fits.optimum(budget)
    sizes = {}
    for depth in DEPTHS:
        try:
            sizes[depth] = counts(parameters(model(recipe, depth)))[KEY]
        except UserError:  # a depth whose width the heads do not divide is no candidate
            continue
    return min(sizes, key=lambda depth: abs(math.log(sizes[depth] / N)))


def prediction(fits: Fits, one: Cell) -> dict[str, Any]:
    """Return what the fits say of a run before it is made."""
    config = model(one.recipe, one.depth)
    N, D = counts(parameters(config))[KEY], one.flops / per_token(config)
    best_N, best_loss = fits.best(one.budget)
    bare = fits.bowls.loss
    return {
        "counts": fits.counts,
        "N": N,
        "D": D,
        "bits_per_byte": estimate(predict(fits.surface, N, D)),
        "optimum": {"N": estimate(best_N), "bits_per_byte": estimate(best_loss)},
        "bare_power_law": estimate(bare.at(one.budget)) if bare else None,
    }
