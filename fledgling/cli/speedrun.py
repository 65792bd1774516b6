"""`fledgling speedrun`: all stages of a recipe in order, and the report."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from fledgling.cli.options import (
    DEFAULT_RENDEZVOUS,
    Gpus,
    Nodes,
    Overrides,
    Rendezvous,
    Restarts,
    require_gpus,
    set_arguments,
)
from fledgling.cli.training_exit import training_exit_code
from fledgling.cli.watch import WATCH_PORT, watching
from fledgling.config import Recipe, load_recipe
from fledgling.runtime.launch import DEFAULT_RESTARTS, launch_ranks
from fledgling.runtime.world import is_launched_rank, is_main_process


def speedrun(
    recipe: str = "quickstart",
    /,
    *,
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
    checkpoint.

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
    chosen = load_recipe(recipe, overrides)
    if gpus is not None and not is_launched_rank():
        dry = ["--dry-run"] if dry_run else []
        command = ["-m", "fledgling", "speedrun", recipe, *dry, *set_arguments(overrides)]
        with watching(chosen.run.out, watch_port, watch and not dry_run):
            return launch_ranks(gpus, chosen.run.device, command, restarts, nodes, rendezvous)
    require_gpus(restarts, nodes, rendezvous)
    from rich.console import Console

    from fledgling.report import build_report, make_evals_table
    from fledgling.speedrun import run_stages

    if dry_run:
        return print_dry_run(chosen)
    out = chosen.run.out
    with watching(out, watch_port, watch and not is_launched_rank()), training_exit_code() as status:
        stages_run = run_stages(chosen)
    if status.code or not is_main_process():
        return status.code
    if not stages_run:
        print(
            f"all is done in {out}: {', '.join(chosen.stages)}; set run.out, or remove it, to start anew",
            file=sys.stderr,
        )
    page = build_report(out)
    Console().print(make_evals_table(out))
    print(f"report: {page}\ntalk to it: fledgling chat {out}")
    return 0


def print_dry_run(recipe: Recipe) -> int:
    """Prints the dry run of a recipe; returns 1 if something is wrong with a stage."""
    from fledgling.speedrun import dry_run, format_dry_run

    with training_exit_code() as status:
        outcome = dry_run(recipe)
    if status.code:
        return status.code
    if is_main_process():
        print(format_dry_run(outcome) if outcome.checks else f"all is done in {recipe.run.out}")
    return 0 if outcome.is_sound else 1
