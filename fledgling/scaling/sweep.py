"""Runs a sweep: a grid of depths and budgets as ordinary training runs, on tokens prepared once.

A cell of the grid is a recipe in which only depth, steps and directory differ. One rule holds for all sizes: batch size
and learning rates are the recipe's, warm-up its steps but at most a tenth of the run, decay its share;
steps = budget / (FLOPs per token x batch), as `fledgling.plan.flops` counts them.

    OUT/sweep.toml           the settings that all runs share; another sweep needs another directory
    OUT/shared/              tokenizer and token shards; every run's `tokenizer` and `data` are links to them
    OUT/d4-2e13/             an ordinary run directory, and cell.json: depth, budget, settings
    OUT/check/               runs of `run_forecast_check`: a budget beyond the sweep's, predicted before it is trained

A finished run is skipped, an interrupted one resumes from its checkpoint. `analysis.py` interprets the losses.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fledgling.config import ModelConfig, Recipe, UserError, dump_toml
from fledgling.config.load import SWEEP_SETTINGS
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.parameters import count_parameters
from fledgling.plan.scaling_laws import check_budget, parameter_counts
from fledgling.record import write_json
from fledgling.record.progress_bar import format_duration
from fledgling.record.run_lock import hold_lock
from fledgling.scaling.analysis import PRIMARY_COUNT, SweepAnalysis, SweepFit, estimate_to_json, predict_loss
from fledgling.scaling.results import (
    CHECK_DIR,
    CheckResult,
    SweepRun,
    cell_name,
    format_flops,
    load_checks,
    read_sweep_run,
)
from fledgling.scaling.settings import CELL, dump_settings, pin_settings, require_same_cell
from fledgling.train.data_preparer import DataPreparer, split_mixture
from fledgling.train.hooks import StageHooks
from fledgling.train.run import run_stage
from fledgling.train.stage import Eval

BATCH_TOKENS = 4096  # if the recipe has none
MIN_STEPS = 20  # of a run; fewer are mostly warm-up
CHECKPOINTS_PER_RUN = 4  # so that an interrupted run can resume
CHECK_DEPTHS = range(1, 33)  # candidates for the predicted optimum

LogFunction = Callable[[str], None]


@dataclass(frozen=True)
class SweepCell:
    """One run of the sweep: its recipe, its budget, and the FLOPs it will use (whole steps)."""

    name: str
    recipe: Recipe
    depth: int
    budget: float
    flops: float

    @property
    def facts(self) -> dict[str, Any]:
        """What the run's cell.json says."""
        return {"depth": self.depth, "budget": self.budget, "settings": dump_settings(self.recipe)}


def make_grid(recipe: Recipe, depths: Sequence[int], budgets: Sequence[float], out: str | Path) -> list[SweepCell]:
    """Returns the cells of every depth at every budget (FLOPs), the cheapest first.

    Raises UserError for a depth without a valid model, an invalid budget, and a run of too few steps.
    """
    if not depths or not budgets:
        raise UserError("a sweep needs at least one depth and one budget, such as --depths 1,2,3,4 --budgets 1e13,2e13")
    out, batch = Path(out), recipe.pretrain.batch_tokens or BATCH_TOKENS
    cells = []
    for budget in sorted({check_budget(budget, "budgets") for budget in budgets}):
        for depth in sorted(set(depths)):
            config = model_for_depth(recipe, depth)
            flops = training_flops_per_token(config) * batch
            steps = round(budget / flops)
            if steps < MIN_STEPS:
                raise UserError(
                    f"budget {format_flops(budget)} FLOPs: depth {depth} gets {steps} steps of {batch:,} tokens, "
                    f"expected at least {MIN_STEPS}; give {format_flops(1.01 * MIN_STEPS * flops)} or more, leave "
                    f"depth {depth} out, or lower pretrain.batch_tokens"
                )
            name = cell_name(depth, budget)
            cells.append(
                SweepCell(name, cell_recipe(recipe, depth, steps, batch, out / name), depth, budget, steps * flops)
            )
    return cells


def model_for_depth(recipe: Recipe, depth: int) -> ModelConfig:
    """Returns the model of a depth: width and heads follow from it, ignoring values that the recipe pins."""
    if depth < 1:
        raise UserError(f"depths: got {depth}, expected whole numbers of at least 1, such as 1,2,3,4")
    table = replace(recipe.model.unpin("width", "heads", "kv_heads"), depth=depth)
    return table.resolve(recipe.tokenizer.vocab_size)


def cell_recipe(recipe: Recipe, depth: int, steps: int, batch: int, out: Path) -> Recipe:
    """Returns the recipe of one run.

    Args:
        recipe: of the sweep.
        depth: of the model.
        steps: of pretraining.
        batch: tokens of a step.
        out: the run directory.
    """
    sized = replace(recipe, model=replace(recipe.model.unpin("width", "heads", "kv_heads"), depth=depth))
    return shorten_recipe(sized, steps, batch, out)


def shorten_recipe(recipe: Recipe, steps: int, batch: int, out: Path) -> Recipe:
    """Returns the recipe of one run of `steps` steps in `out`: pretraining alone, measured at its end."""
    return replace(
        recipe,
        name=out.name,
        stages=("pretrain",),
        pretrain=replace(
            recipe.pretrain,
            steps=steps,
            batch_tokens=batch,
            warmup_steps=min(20 if recipe.pretrain.warmup_steps is None else recipe.pretrain.warmup_steps, steps // 10),
            eval_every=0,
            sample_every=0,
            save_every=-(-steps // CHECKPOINTS_PER_RUN),
            keep_checkpoints=1,
        ),
        run=replace(recipe.run, out=str(out)),
    )


def run_sweep(
    recipe: Recipe,
    cells: Sequence[SweepCell],
    out: str | Path,
    log: LogFunction,
    on_finished: Callable[[SweepRun], None],
) -> int:
    """Trains the unfinished runs of `cells`; returns how many there were.

    Args:
        recipe: of the sweep.
        cells: runs to train.
        out: folder of the sweep.
        log: receives progress with the time left.
        on_finished: called with every run when it is finished.

    Raises UserError for settings other than those of the sweep already in `out`, TrainingStopped after a signal.
    """
    out, trained = Path(out), 0
    with hold_lock(out, "this sweep", log, remedy="choose another --out"):
        claim_directory(recipe, out)
        prepare_sweep_data(recipe, out, log)
        for cell in cells:
            require_same_cell(Path(cell.recipe.run.out), cell.facts)
        for index, cell in enumerate(cells):
            run = read_sweep_run(Path(cell.recipe.run.out))
            if run is None:
                log(f"sweep: run {index + 1} of {len(cells)}, {cell.name}{estimate_time_left(cells[index:], out)}")
                run_cell(cell, out)
                trained += 1
                run = read_sweep_run(Path(cell.recipe.run.out))
            if run is None:
                raise UserError(f"{cell.recipe.run.out} is done but has no bits per byte; remove it and run again")
            on_finished(run)
    return trained


def run_cell(cell: SweepCell, out: Path) -> None:
    """Trains one run on the tokens that `prepare_sweep_data` left in `out`; a finished run is not changed."""
    train_run(cell.recipe, out, cell.facts)


def train_run(recipe: Recipe, out: Path, facts: dict[str, Any]) -> None:
    """Trains a recipe on the tokens that `prepare_sweep_data` left in `out`, and records its cell."""
    run_dir = Path(recipe.run.out)
    link_shared_data(out, run_dir)
    write_json(run_dir / CELL, facts)
    run_stage(recipe, "pretrain", hooks=StageHooks(select_evals=only_final_bpb))
    torch.compiler.reset()  # the next model has other shapes and cannot use this model's compiled code


def only_final_bpb(evals: tuple[Eval, ...]) -> tuple[Eval, ...]:
    """Returns the evaluation of bits per byte alone, reduced to its last measurement."""

    def last_only(evaluation: Eval) -> Eval:
        return replace(evaluation, every=0, measure=lambda step, last: evaluation.measure(step, last) if last else [])

    return tuple(last_only(evaluation) for evaluation in evals if evaluation.name == "bits_per_byte")


def claim_directory(recipe: Recipe, out: Path) -> None:
    """Writes the settings that all runs share to OUT/sweep.toml, or compares them with the existing ones."""
    shared = cell_recipe(recipe, 1, 1, recipe.pretrain.batch_tokens or BATCH_TOKENS, Path("run"))
    text = dump_toml(replace(shared, pretrain=replace(shared.pretrain, warmup_steps=recipe.pretrain.warmup_steps)))
    pin_settings(out / SWEEP_SETTINGS, text, "a sweep")


def prepare_sweep_data(recipe: Recipe, out: Path, log: LogFunction) -> None:
    """Trains the tokenizer and tokenizes the text, once for all runs. Raises UserError for unsuitable text."""
    mixture = split_mixture(recipe.pretrain.mixture)
    if mixture.tasks or mixture.conversations:
        others = ", ".join([*mixture.tasks, *mixture.conversations])
        raise UserError(f"a sweep trains on documents only, not on {others}: --set 'pretrain.mixture={{embedded=1.0}}'")
    preparer = DataPreparer(recipe, out / "shared", log)
    tokenizer = preparer.load_or_train_tokenizer()
    for source in mixture.documents:
        if not preparer.documents.prepare_shards(source, tokenizer).held_out:
            raise UserError(f"{source} is too small to hold out text, which a sweep needs: give a larger source")
        if preparer.documents.prepared.find_earlier(source) and any(out.glob("*/pretrain/done.json")):
            raise UserError(f"{source} has changed since the finished runs of {out} read it: choose another --out")


def link_shared_data(out: Path, run_dir: Path) -> None:
    """Links the shared tokenizer and shards into a run, by relative links: the whole sweep can be moved."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "data"):
        if not (run_dir / name).exists():
            try:
                (run_dir / name).unlink(missing_ok=True)  # a link that leads nowhere
                (run_dir / name).symlink_to(os.path.relpath(out / "shared" / name, run_dir), target_is_directory=True)
            except OSError as error:
                raise UserError(
                    f"{run_dir / name}: cannot create a link ({error.strerror}); choose another --out"
                ) from None


def estimate_time_left(cells: Sequence[SweepCell], out: Path) -> str:
    """Returns the time that cells will take, estimated from the finished runs, of the same depth if there are any."""
    done = [run for path in out.glob(f"*/{CELL}") if (run := read_sweep_run(path.parent))]
    seconds_per_flop = {
        depth: _seconds_per_flop([run for run in done if run.depth == depth]) for depth in {run.depth for run in done}
    }
    if not seconds_per_flop:
        return ""
    unfinished = [cell for cell in cells if read_sweep_run(Path(cell.recipe.run.out)) is None]
    seconds = sum(cell.flops * seconds_per_flop.get(cell.depth, _seconds_per_flop(done)) for cell in unfinished)
    return f", about {format_duration(seconds)} left ({time.strftime('%H:%M', time.localtime(time.time() + seconds))})"


def _seconds_per_flop(runs: Sequence[SweepRun]) -> float:
    """Returns the mean seconds per FLOP."""
    return sum(run.seconds for run in runs) / sum(run.flops for run in runs)


# ---- check beyond the sweep ----


def run_forecast_check(
    recipe: Recipe, analysis: SweepAnalysis, times: float, depth: int | None, log: LogFunction
) -> CheckResult:
    """Predicts and trains one run at `times` the sweep's largest budget; returns the prediction and the measurement.

    The prediction is written to the run's directory before training starts, so that it cannot be changed afterwards. A
    finished run is not trained again.

    Args:
        recipe: of the sweep.
        analysis: of the sweep's finished runs.
        times: the run's budget as a multiple of the largest one, above 1.
        depth: of the run; None: the one nearest to the predicted optimum.
        log: receives notices.

    Raises UserError for a budget inside the sweep, and for settings other than the sweep's.
    """
    claim_directory(recipe, analysis.sweep.path)
    if not 1 < times < math.inf:
        raise UserError(f"times: got {times:g}, expected more than 1: the check is of a budget beyond the sweep's")
    sweep = analysis.sweep
    budget = times * max(run.budget for run in sweep.runs)
    depth = depth or nearest_depth(recipe, analysis.fit_for(PRIMARY_COUNT), budget)
    (cell,) = make_grid(recipe, [depth], [budget], sweep.path / CHECK_DIR)
    run_dir = Path(cell.recipe.run.out)
    with hold_lock(sweep.path, "this check", log, remedy="start it later"):
        prepare_sweep_data(recipe, sweep.path, log)
        require_same_cell(run_dir, cell.facts)
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / "prediction.json").exists():
            write_json(run_dir / "prediction.json", predict_run(analysis.fit_for(PRIMARY_COUNT), cell))
        log(f"check: {cell.name}, {times:g} times the largest budget of the sweep")
        run_cell(cell, sweep.path)
    return next(check for check in load_checks(sweep.path) if check.run.name == cell.name)


def nearest_depth(recipe: Recipe, fits: SweepFit, budget: float) -> int:
    """Returns the depth whose N is nearest, by ratio, to the predicted optimum for `budget` FLOPs."""
    N, _ = fits.optimum(budget)
    counts = {depth: count_parameters(model_for_depth(recipe, depth)) for depth in CHECK_DEPTHS}
    sizes = {depth: parameter_counts(count)[PRIMARY_COUNT] for depth, count in counts.items()}
    return min(sizes, key=lambda depth: abs(math.log(sizes[depth] / N)))


def predict_run(fits: SweepFit, cell: SweepCell) -> dict[str, Any]:
    """Returns the predictions of the fits for a run, as JSON values."""
    config = model_for_depth(cell.recipe, cell.depth)
    N, D = parameter_counts(count_parameters(config))[PRIMARY_COUNT], cell.flops / training_flops_per_token(config)
    best_N, best_loss = fits.optimum_interval(cell.budget)
    loss_trend = fits.isoflop.loss
    return {
        "counts": fits.counts,
        "N": N,
        "D": D,
        "bits_per_byte": estimate_to_json(predict_loss(fits.surface, N, D)),
        "optimum": {"N": estimate_to_json(best_N), "bits_per_byte": estimate_to_json(best_loss)},
        "bare_power_law": estimate_to_json(loss_trend.value_at(cell.budget)) if loss_trend else None,
    }
