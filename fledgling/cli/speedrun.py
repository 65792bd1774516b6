"""`fledgling speedrun`: from nothing to a model to talk to, one recipe's stages in order."""

from __future__ import annotations

import sys

from fledgling.cli.options import Gpus, Nodes, Overrides, Rendezvous, Restarts
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
    rendezvous: Rendezvous = "127.0.0.1:0",
    overrides: Overrides = (),
) -> int:
    """Run every stage of a recipe that is not done yet, evaluate after each, and write the report.

    Run it again after an interruption: it goes on from the last checkpoint.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    """
    chosen = load_recipe(recipe, overrides)
    if gpus is not None and not is_launched_rank():
        again = ["speedrun", recipe, *(part for one in overrides for part in ("--set", one))]
        return launch_ranks(gpus, chosen.run.device, ["-m", "fledgling", *again], restarts, nodes, rendezvous)
    from rich.console import Console

    from fledgling.report import build_report, make_evals_table
    from fledgling.speedrun import speedrun as run

    out = chosen.run.out
    with training_exit_code() as left:
        worked = run(chosen)
    if left.code or not is_main_process():
        return left.code
    if not worked:
        print(
            f"all is done in {out}: {', '.join(chosen.stages)}; set run.out, or remove it, to begin anew",
            file=sys.stderr,
        )
    page = build_report(out)
    Console().print(make_evals_table(out))
    print(f"report: {page}\ntalk to it: fledgling chat {out}")
    return 0
