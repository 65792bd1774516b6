"""The check: a budget beyond any in the sweep is predicted, the prediction is written down, and one run is made.

The one idea: the prediction stands in the run's directory before the run begins, so that nobody, the code included,
can improve it afterwards. A finished run is not made again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, UserError
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.parameters import count_parameters
from fledgling.plan.scaling_laws import parameter_counts
from fledgling.record import write_json
from fledgling.scaling.analysis import PRIMARY_COUNT, SweepAnalysis, SweepFit, estimate_to_json, predict_loss
from fledgling.scaling.results import CHECK_DIR, CheckResult, load_checks
from fledgling.scaling.sweep import LogFunction, SweepCell, make_grid, model_for_depth, prepare_sweep_data, run_cell

DEPTHS = range(1, 33)  # among which the size for the predicted optimum is sought


def run_check(
    recipe: Recipe, analysis: SweepAnalysis, times: float, depth: int | None, log: LogFunction
) -> CheckResult:
    """Predict and make one run at `times` the sweep's largest budget; returns what was predicted and measured.

    depth: None for the one nearest to the predicted optimum. Raises UserError for a budget inside the sweep.
    """
    if not 1 < times < math.inf:
        raise UserError(f"times: got {times:g}, expected more than 1: the check is of a budget beyond the sweep's")
    sweep = analysis.sweep
    budget = times * max(run.budget for run in sweep.runs)
    depth = depth or nearest_depth(recipe, analysis.fit_for(PRIMARY_COUNT), budget)
    (one,) = make_grid(recipe, [depth], [budget], sweep.path / CHECK_DIR)
    run_dir = Path(one.recipe.run.out)
    prepare_sweep_data(recipe, sweep.path, log)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "prediction.json").exists():
        write_json(run_dir / "prediction.json", predict_run(analysis.fit_for(PRIMARY_COUNT), one))
    log(f"check: {one.name}, {times:g} times the largest budget of the sweep")
    run_cell(one, sweep.path)
    return next(found for found in load_checks(sweep.path) if found.run.name == one.name)


def nearest_depth(recipe: Recipe, fits: SweepFit, budget: float) -> int:
    """Return the depth whose N is nearest, by ratio, to the predicted optimum for `budget` FLOPs."""
    N, _ = fits.optimum(budget)
    sizes = {}
    for depth in DEPTHS:
        try:
            sizes[depth] = parameter_counts(count_parameters(model_for_depth(recipe, depth)))[PRIMARY_COUNT]
        except UserError:  # a depth whose width the heads do not divide is no candidate
            continue
    return min(sizes, key=lambda depth: abs(math.log(sizes[depth] / N)))


def predict_run(fits: SweepFit, one: SweepCell) -> dict[str, Any]:
    """Return what the fits say of a run before it is made."""
    config = model_for_depth(one.recipe, one.depth)
    N, D = parameter_counts(count_parameters(config))[PRIMARY_COUNT], one.flops / training_flops_per_token(config)
    best_N, best_loss = fits.optimum_interval(one.budget)
    bare = fits.isoflop.loss
    return {
        "counts": fits.counts,
        "N": N,
        "D": D,
        "bits_per_byte": estimate_to_json(predict_loss(fits.surface, N, D)),
        "optimum": {"N": estimate_to_json(best_N), "bits_per_byte": estimate_to_json(best_loss)},
        "bare_power_law": estimate_to_json(bare.value_at(one.budget)) if bare else None,
    }
