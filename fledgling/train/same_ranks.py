"""All ranks of a run do the same: one recipe and stage, the same GPU, dtype, compiler and version of torch."""

from __future__ import annotations

import torch

from fledgling.config import Recipe, UserError
from fledgling.config.differences import describe_setting_changes, find_setting_changes
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.train.peak import describe_gpu

ADVICE = {
    "device": "start ranks on one kind of GPU, or leave some out (CUDA_VISIBLE_DEVICES)",
    "dtype": "set run.dtype to one that all of them multiply",
    "compiled": "install the compiler there too, or set run.compile=off",
    "torch": "install one version on all machines",
}


# of a machine, and not of what is learned
OF_A_MACHINE = ("run.out", "run.data_dir", "run.threads", "run.loggers", "run.ranks", "run.hardware")


def require_same_recipe(recipe: Recipe, world: World, work: str) -> None:
    """Raises UserError, on every rank, unless all ranks were started with one recipe for the same work. Collective.

    Ranks of other shapes, seeds or stages would wait for each other without end, or add what does not belong together.

    Args:
        recipe: of this rank.
        world: the ranks.
        work: what is to be run, such as "all stages".
    """
    by_rank = world.all_gather_object((recipe, work))
    (first, first_work), advice = by_rank[0], "start every rank with the same command and recipe"
    for rank, (other, its_work) in enumerate(by_rank):
        if its_work != first_work:
            raise UserError(f"rank {rank} is to run {its_work}, rank 0 {first_work}: {advice}")
        if differing := find_setting_changes(other, first, OF_A_MACHINE):
            raise UserError(f"{describe_setting_changes(differing, f'on rank {rank}', 'on rank 0')}: {advice}")


def require_same_device(setup: DeviceSetup, world: World) -> None:
    """Raises UserError, on every rank, unless all ranks compute alike. Collective.

    A slower GPU delays all others in every step, and another dtype or compiler rounds otherwise than the weights that
    the ranks share.
    """
    own = {
        "device": describe_gpu(world.device)[0] or world.device.type,
        "dtype": setup.dtype_name,
        "compiled": "compiled" if setup.compiled else "not compiled",
        "torch": torch.__version__,
    }
    by_rank = world.all_gather_object(own)
    for what, advice in ADVICE.items():
        for rank, facts in enumerate(by_rank):
            if facts[what] != by_rank[0][what]:
                raise UserError(f"{what} of rank {rank} is {facts[what]}, of rank 0 {by_rank[0][what]}: {advice}")
