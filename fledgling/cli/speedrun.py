"""`fledgling speedrun`: all stages of a recipe in order, and the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fledgling.cli.options import (
    DEFAULT_RENDEZVOUS,
    Gpus,
    Hours,
    Minutes,
    Nodes,
    Overrides,
    Rendezvous,
    Restarts,
    Usd,
    require_gpus,
    set_arguments,
)
from fledgling.cli.training_exit import training_exit_code
from fledgling.cli.watch import WATCH_PORT, watching
from fledgling.config import Recipe, UserError, load_recipe
from fledgling.plan.amount import Budget, pins_size, read_budget
from fledgling.plan.hardware import find_device
from fledgling.record.seal import FORECAST
from fledgling.runtime.launch import DEFAULT_RESTARTS, launch_ranks
from fledgling.runtime.world import count_launched_ranks, is_launched_rank, is_main_process
from fledgling.train.start_recipe import load_start_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fledgling.speedrun.budgeted import BudgetedRun

PaidGpu = Annotated[
    str | None,
    Parameter(
        negative=(),
        show_default=False,
        help="With --usd: the GPU that is paid for, by its name in `fledgling plan devices`.",
    ),
]
PaidPrice = Annotated[
    float | None,
    Parameter(
        negative=(),
        show_default=False,
        help="With --usd: US dollars per hour for one device; default: that of the table.",
    ),
]


def speedrun(
    recipe: str = "quickstart",
    /,
    *,
    minutes: Minutes = None,
    hours: Hours = None,
    usd: Usd = None,
    gpu: PaidGpu = None,
    price: PaidPrice = None,
    gpus: Gpus = None,
    restarts: Restarts = DEFAULT_RESTARTS,
    nodes: Nodes = 1,
    rendezvous: Rendezvous = DEFAULT_RENDEZVOUS,
    dry_run: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    watch: Annotated[bool, Parameter(negative=())] = False,
    watch_port: int = WATCH_PORT,
    overrides: Overrides = (),
) -> int:
    """Run every stage of a recipe that is not done yet, evaluate after each, and write the report.

    All stages are checked before the first step. Run it again after an interruption: it resumes from the last
    checkpoint. With --minutes, --hours or --usd it measures the speed of this machine and chooses depth, stages, steps
    and batch, so that the whole run ends in time. What it expects is printed before, and compared afterwards.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    dry_run
        Only check all stages: data, steps, batch, memory, shapes; on a GPU also make a step and a checkpoint of each.
    watch
        Show the run on a live page meanwhile, as `fledgling watch` does.
    watch_port
        The port of that page.
    """
    started = time.monotonic()
    chosen = load_recipe(recipe, overrides) if dry_run else load_start_recipe(recipe, overrides)
    device = find_device(gpu) if gpu else None
    for name, value in (("gpu", gpu), ("price", price)):
        if value is not None and usd is None:
            raise UserError(f"--{name} {value} has no effect without --usd")
    ranks = count_launched_ranks() if is_launched_rank() else (gpus or 1) * nodes  # all of them are paid for
    budget = read_budget(minutes, hours, usd, device, ranks, price)
    if gpus is not None and not is_launched_rank():
        given = {"minutes": minutes, "hours": hours, "usd": usd, "gpu": gpu, "price": price}
        amount = [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]
        dry = ["--dry-run"] if dry_run else []
        command = ["-m", "fledgling", "speedrun", recipe, *amount, *dry, *set_arguments(overrides)]
        with watching(chosen.run.out, watch_port, watch and not dry_run):
            return launch_ranks(gpus, chosen.run.device, command, restarts, nodes, rendezvous)
    require_gpus(restarts, nodes, rendezvous)
    from fledgling.speedrun.budgeted import require_gpu, run_budgeted
    from fledgling.speedrun.stages import run_stages

    if budget and usd is not None and device is not None and not dry_run:
        require_gpu(chosen.run, device)
    is_pinned = pins_size(overrides)
    if dry_run:
        return print_dry_run(chosen, budget, is_pinned, started)
    out = chosen.run.out
    has_budget = budget is not None or (Path(out) / FORECAST).is_file()
    with watching(out, watch_port, watch and not is_launched_rank()), training_exit_code() as status:
        if has_budget:
            stages_run = run_budgeted(chosen, budget, is_pinned, started, show=print_forecast)
        else:
            stages_run = run_stages(chosen)
    if status.code or not is_main_process():
        return status.code
    if not stages_run:
        print(describe_done(out, chosen.stages), file=sys.stderr)
    print_results(out)
    return 0


def describe_done(out: str, stages: Sequence[str]) -> str:
    """Returns what is done in a run directory: those of the recipe's stages that its budget had time for."""
    made = [name for name in stages if (Path(out) / name / "done.json").is_file()]
    return f"all is done in {out}: {', '.join(made)}; set run.out, or remove it, to start from scratch"


def print_results(out: str) -> None:
    """Writes the report of a run and prints its evaluations and forecasts."""
    from fledgling.report import build_report, make_evals_table, make_forecasts_table
    from fledgling.report.terminal_table import print_table

    page = build_report(out)
    for table in (make_evals_table(out), make_forecasts_table(out)):
        if table.row_count:
            print_table(table)
    print(f"report: {page}\nchat with it: fledgling chat {out}")


def print_forecast(run: BudgetedRun, is_resumed: bool) -> None:
    """Prints what a run with a budget expects, before its first step."""
    if is_resumed:
        print(f"resumes within {run.budget.text}", file=sys.stderr)
        return
    from fledgling.plan.forecast_text import format_budgeted_run

    print(format_budgeted_run(run), flush=True)


def print_dry_run(recipe: Recipe, budget: Budget | None, is_pinned: bool, started: float) -> int:
    """Prints the dry run of a recipe, and what its budget makes of it; returns 1 if something is wrong with a stage."""
    from fledgling.plan.budgeted_run import read_budgeted_run
    from fledgling.speedrun.budgeted import measure_and_choose, read_spent
    from fledgling.speedrun.continued import change_settings, continue_run, read_adjusted_recipe
    from fledgling.speedrun.dry_run import dry_run, format_dry_run
    from fledgling.speedrun.stages import list_stages_left
    from fledgling.train.pace import RunClock
    from fledgling.train.run_directory import print_line, print_nothing

    with training_exit_code() as status:
        known, log = read_budgeted_run(Path(recipe.run.out)), print_line if is_main_process() else print_nothing
        is_new = known is None and budget is not None and bool(list_stages_left(recipe))
        if known is not None or is_new:
            known, changed = continue_run(known, recipe, budget, Path(recipe.run.out), log, is_pinned)
        if known is not None:
            if is_main_process():
                print_forecast(known, True)
            recipe = change_settings(read_adjusted_recipe(known, Path(recipe.run.out)), changed)
        elif budget is not None and list_stages_left(recipe):
            clock = RunClock(budget.seconds, read_spent(Path(recipe.run.out), log), started=started)
            chosen = measure_and_choose(recipe, budget, clock, is_pinned)
            recipe = chosen.recipe
            if is_main_process():
                print_forecast(chosen, False)
        outcome = dry_run(recipe)
    if status.code:
        return status.code
    if is_main_process():
        print(format_dry_run(outcome) if outcome.checks else f"all is done in {recipe.run.out}")
    return 0 if outcome.is_sound else 1
