"""`fledgling train`: one stage of a recipe, in this process or on several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fledgling.cli.options import (
    DEFAULT_RENDEZVOUS,
    Gpus,
    Nodes,
    Overrides,
    Rendezvous,
    Restarts,
    print_to_stderr,
    require_gpus,
    set_arguments,
)
from fledgling.cli.training_exit import training_exit_code
from fledgling.config import UserError
from fledgling.runtime.launch import DEFAULT_RESTARTS, launch_ranks
from fledgling.runtime.world import get_restart_count, is_launched_rank, is_main_process
from fledgling.train.start_recipe import load_start_recipe


def train(
    stage: Literal["pretrain", "midtrain", "sft", "dpo", "rl"],
    recipe: str = "quickstart",
    /,
    *,
    resume: Literal["auto", "never"] = "auto",
    gpus: Gpus = None,
    restarts: Restarts = DEFAULT_RESTARTS,
    nodes: Nodes = 1,
    rendezvous: Rendezvous = DEFAULT_RENDEZVOUS,
    overrides: Overrides = (),
) -> int:
    """Run one stage: it starts from the stage before it, and resumes from its own newest checkpoint.

    `torchrun ... -m fledgling train ...` does the same as `--gpus`, also over several machines.

    Parameters
    ----------
    stage
        pretrain, midtrain, sft, dpo or rl.
    recipe
        A recipe's name, a TOML file or a run directory.
    resume
        auto: resume from the newest checkpoint; never: restart the stage.
    """
    chosen = load_start_recipe(recipe, overrides)
    if stage not in chosen.stages:
        raise UserError(f"{stage} is not among the stages of {chosen.name}: {', '.join(chosen.stages)}")
    if gpus is not None and not is_launched_rank():
        command = ["-m", "fledgling", "train", stage, recipe, "--resume", resume, *set_arguments(overrides)]
        return launch_ranks(gpus, chosen.run.device, command, restarts, nodes, rendezvous)
    require_gpus(restarts, nodes, rendezvous)
    from fledgling.train.replaced_stage import describe_restart
    from fledgling.train.run import run_stage

    if resume == "never" and is_main_process() and not get_restart_count():
        for line in describe_restart(Path(chosen.run.out) / stage, recipe):
            print_to_stderr(line)
    with training_exit_code() as status:
        has_run = run_stage(chosen, stage, resume)
    if not status.code and is_main_process():
        stage_dir = f"{chosen.run.out}/{stage}"
        print(f"{stage} done: {stage_dir}" if has_run else f"{stage} was done already: {stage_dir}")
    return status.code
