"""`fledgling speedrun`: all stages of a recipe in order, and the report."""

from __future__ import annotations

import sys

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
from fledgling.config import load_recipe
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
    overrides: Overrides = (),
) -> int:
    """Run every stage of a recipe that is not done yet, evaluate after each, and write the report.

    Run it again after an interruption: it resumes from the last checkpoint.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    """
    chosen = load_recipe(recipe, overrides)
    if gpus is not None and not is_launched_rank():
        command = ["-m", "fledgling", "speedrun", recipe, *set_arguments(overrides)]
        return launch_ranks(gpus, chosen.run.device, command, restarts, nodes, rendezvous)
    require_gpus(restarts, nodes, rendezvous)
    from rich.console import Console

    from fledgling.report import build_report, make_evals_table
    from fledgling.speedrun import run_stages

    out = chosen.run.out
    with training_exit_code() as status:
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
