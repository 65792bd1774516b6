"""`fledgling speedrun`: from nothing to a model to talk to, one recipe's stages in order."""

from __future__ import annotations

import sys

from fledgling.cli.leaving import leaving
from fledgling.cli.options import Gpus, Nodes, Overrides, Rendezvous, Restarts
from fledgling.config import load_recipe
from fledgling.runtime.launch import RESTARTS, launch
from fledgling.runtime.world import is_main_process, launched


def speedrun(
    recipe: str = "quickstart",
    /,
    *,
    gpus: Gpus = None,
    restarts: Restarts = RESTARTS,
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
    if gpus is not None and not launched():
        again = ["speedrun", recipe, *(part for one in overrides for part in ("--set", one))]
        return launch(gpus, chosen.run.device, ["-m", "fledgling", *again], restarts, nodes, rendezvous)
    from rich.console import Console

    from fledgling.report import build, evals_table
    from fledgling.speedrun import speedrun as run

    out = chosen.run.out
    with leaving() as left:
        worked = run(chosen)
    if left.code or not is_main_process():
        return left.code
    if not worked:
        print(
            f"all is done in {out}: {', '.join(chosen.stages)}; set run.out, or remove it, to begin anew",
            file=sys.stderr,
        )
    page = build(out)
    Console().print(evals_table(out))
    print(f"report: {page}\ntalk to it: fledgling chat {out}")
    return 0
