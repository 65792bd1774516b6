"""A sweep: a grid of depths and budgets as ordinary runs of the one training loop, on tokens prepared once.

The one idea: a cell of the grid is a recipe whose depth, steps and directory differ and nothing else. One rule holds
for all sizes: batch and rates are the recipe's, warm-up its steps but at most a tenth of the run, decay its share;
steps = budget / (FLOPs a token x batch), as `fledgling.plan.flops` counts them.

    OUT/sweep.toml           the settings all runs share; another sweep needs another directory
    OUT/shared/              tokenizer and token shards; every run's `tokenizer` and `data` are links to them
    OUT/d4-2e13/             a run directory as any other, and cell.json: its depth and budget

A finished run is skipped, a broken one goes on from its checkpoint. Not here: what the losses mean (`analysis.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fledgling.config import ModelConfig, Recipe, UserError, dump_toml
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.scaling_laws import check_budget as checked
from fledgling.record import write_json, write_text
from fledgling.record.progress_bar import format_duration
from fledgling.scaling.results import CELL, SWEEP_SETTINGS, SweepRun, format_flops, read_run
from fledgling.train.prepare import DataPreparer, split_mixture
from fledgling.train.run import run_stage
from fledgling.train.stage import Eval

BATCH_TOKENS = 4096  # where the recipe leaves it open
MIN_STEPS = 20  # of a run; fewer are warm-up and little else
CHECKPOINTS_PER_RUN = 4  # checkpoints over a run, so that a broken one goes on

LogFunction = Callable[[str], None]


@dataclass(frozen=True)
class SweepCell:
    """One run of the sweep: its recipe, its budget, and the FLOPs it will really use (whole steps)."""

    name: str
    recipe: Recipe
    depth: int
    budget: float
    flops: float


def make_grid(recipe: Recipe, depths: Sequence[int], budgets: Sequence[float], out: str | Path) -> list[SweepCell]:
    """Return the cells of every depth at every budget (FLOPs), the cheapest first.

    Raises UserError for a depth that makes no model, a budget that is none, and a run of too few steps.
    """
    if not depths or not budgets:
        raise UserError("a sweep needs at least one depth and one budget, such as --depths 1,2,3,4 --budgets 1e13,2e13")
    out, batch = Path(out), recipe.pretrain.batch_tokens or BATCH_TOKENS
    cells = []
    for budget in sorted({checked(budget) for budget in budgets}):
        for depth in sorted(set(depths)):
            config = model_for_depth(recipe, depth)
            flops = training_flops_per_token(config) * batch
            steps = round(budget / flops)
            if steps < MIN_STEPS:
                raise UserError(
                    f"budget {format_flops(budget)} FLOPs: depth {depth} gets {steps} steps of {batch:,} tokens, expected "
                    f"at least {MIN_STEPS}; give {format_flops(1.01 * MIN_STEPS * flops)} or more, leave depth {depth} "
                    "out, or lower pretrain.batch_tokens"
                )
            name = cell_name(depth, budget)
            cells.append(
                SweepCell(name, cell_recipe(recipe, depth, steps, batch, out / name), depth, budget, steps * flops)
            )
    return cells


def cell_name(depth: int, budget: float) -> str:
    """Return the directory's name of a run: d4-2e13."""
    return f"d{depth}-{format_flops(budget)}"


def model_for_depth(recipe: Recipe, depth: int) -> ModelConfig:
    """Return the model of a depth: width and heads follow from it, whatever the recipe pins."""
    if depth < 1:
        raise UserError(f"depths: got {depth}, expected whole numbers of at least 1, such as 1,2,3,4")
    table = replace(recipe.model.unpin("width", "heads", "kv_heads"), depth=depth)
    try:
        return table.resolve(recipe.tokenizer.vocab_size)
    except UserError as error:
        fitting = [other for other in range(1, 13) if _is_valid_depth(recipe, other)]
        listed = ", ".join(map(str, fitting))
        raise UserError(f"depth {depth} makes no model ({error}); depths that do: {listed}") from None


def _is_valid_depth(recipe: Recipe, depth: int) -> bool:
    try:
        replace(recipe.model.unpin("width", "heads", "kv_heads"), depth=depth).resolve(256)
    except UserError:
        return False
    return True


def cell_recipe(recipe: Recipe, depth: int, steps: int, batch: int, out: Path) -> Recipe:
    """Return the recipe of one run."""
    sized = replace(recipe, model=replace(recipe.model.unpin("width", "heads", "kv_heads"), depth=depth))
    return shorten_recipe(sized, steps, batch, out)


def shorten_recipe(recipe: Recipe, steps: int, batch: int, out: Path) -> Recipe:
    """Return the recipe of one run of `steps` steps in `out`: pretraining alone, measured at its end."""
    return replace(
        recipe,
        name=out.name,
        stages=("pretrain",),
        pretrain=replace(
            recipe.pretrain,
            steps=steps,
            batch_tokens=batch,
            warmup_steps=min(recipe.pretrain.warmup_steps, steps // 10),
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
    """Run what is left of `cells`; returns how many runs had work to do.

    say: told where the sweep stands, with the time left; finished: called with every run as it ends. Raises UserError
    for settings other than those of the sweep already in `out`, and train.loop.Stopped after a signal.
    """
    out = Path(out)
    claim_directory(recipe, out)
    prepare_sweep_data(recipe, out, log)
    worked = 0
    for place, one in enumerate(cells):
        found = read_run(Path(one.recipe.run.out))
        if found is None:
            log(f"sweep: run {place + 1} of {len(cells)}, {one.name}{estimate_time_left(cells[place:], out)}")
            run_cell(one, out)
            worked += 1
            found = read_run(Path(one.recipe.run.out))
        if found is None:
            raise UserError(f"{one.recipe.run.out} is done but has no bits per byte; remove it and run again")
        on_finished(found)
    return worked


def run_cell(one: SweepCell, out: Path) -> None:
    """Make one run on the tokens that `prepare` left in `out`; a finished one is left alone."""
    train_run(one.recipe, out, {"depth": one.depth, "budget": one.budget})


def train_run(recipe: Recipe, out: Path, facts: dict[str, Any]) -> None:
    """Run a recipe on the tokens that `prepare` left in `out`, and write down what it is a run of."""
    run_dir = Path(recipe.run.out)
    link_shared_data(out, run_dir)
    write_json(run_dir / CELL, facts)
    run_stage(recipe, "pretrain", select_evals=only_final_bpb)
    torch.compiler.reset()  # the next model has other shapes; compiled code of this one is of no more use


def only_final_bpb(evals: tuple[Eval, ...]) -> tuple[Eval, ...]:
    """Of a stage's evaluations keep bits per byte, and of that the last."""

    def last_only(one: Eval) -> Eval:
        return replace(one, every=0, measure=lambda step, last: one.measure(step, last) if last else [])

    return tuple(last_only(one) for one in evals if one.name == "bits_per_byte")


def claim_directory(recipe: Recipe, out: Path) -> None:
    """Write the settings that all runs share into OUT/sweep.toml, or hold them against those that stand there."""
    one = cell_recipe(recipe, 1, 1, recipe.pretrain.batch_tokens or BATCH_TOKENS, Path("run"))
    text = dump_toml(replace(one, pretrain=replace(one.pretrain, warmup_steps=recipe.pretrain.warmup_steps)))
    check_settings(out / SWEEP_SETTINGS, text, "a sweep")


def check_settings(path: Path, text: str, what: str) -> None:
    """Write settings into a file that is not there yet, or raise UserError where others stand there."""
    if not path.exists():
        write_text(path, text)
        return
    wanted, there = (set(told.splitlines()) for told in (text, path.read_text(encoding="utf-8")))
    differing = [line for line in sorted(wanted ^ there) if not line.startswith("threads")]
    if differing:
        where = "now" if differing[0] in wanted else "there"
        told = f"{path.parent} holds {what} with other settings ({differing[0]} {where})"
        raise UserError(f"{told}; choose another --out")


def prepare_sweep_data(recipe: Recipe, out: Path, log: LogFunction) -> None:
    """Train the tokenizer and tokenize the text, once for all runs. Raises UserError for text that will not do."""
    mixed = split_mixture(recipe.pretrain.mixture)
    if mixed.tasks or mixed.conversations:
        others = ", ".join([*mixed.tasks, *mixed.conversations])
        raise UserError(
            f"a sweep trains on documents alone, not on {others}: --set 'pretrain.mixture={{embedded=1.0}}'"
        )
    preparer = DataPreparer(recipe, out / "shared", log)
    tokenizer = preparer.load_or_train_tokenizer()
    for source in mixed.documents:
        if not preparer.documents.prepare_shards(source, tokenizer).held_out:
            raise UserError(f"{source} is too small to hold text out, and a sweep needs some: give a larger source")


def link_shared_data(out: Path, run_dir: Path) -> None:
    """Give a run the shared tokenizer and shards, by relative links: the whole sweep can be moved."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "data"):
        if not (run_dir / name).exists():
            try:
                (run_dir / name).symlink_to(os.path.relpath(out / "shared" / name, run_dir), target_is_directory=True)
            except OSError as error:
                raise UserError(
                    f"{run_dir / name}: cannot make a link ({error.strerror}); choose another --out"
                ) from None


def estimate_time_left(cells: Sequence[SweepCell], out: Path) -> str:
    """Return the time that cells will take, judged from the finished runs: of the same depth where there are some."""
    done = [found for path in out.glob(f"*/{CELL}") if (found := read_run(path.parent))]
    rates = {
        depth: _seconds_per_flop([run for run in done if run.depth == depth]) for depth in {run.depth for run in done}
    }
    if not rates:
        return ""
    waiting = [one for one in cells if read_run(Path(one.recipe.run.out)) is None]
    seconds = sum(one.flops * rates.get(one.depth, _seconds_per_flop(done)) for one in waiting)
    return f", about {format_duration(seconds)} left ({time.strftime('%H:%M', time.localtime(time.time() + seconds))})"


def _seconds_per_flop(runs: Sequence[SweepRun]) -> float:
    """Seconds a FLOP."""
    return sum(run.seconds for run in runs) / sum(run.flops for run in runs)
