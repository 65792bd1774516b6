"""All ranks of a run compute alike: the same GPU, dtype, compiler and version of torch."""

from __future__ import annotations

import torch

from fledgling.config import UserError
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.train.peak import describe_gpu

ADVICE = {
    "device": "start ranks on one kind of GPU, or leave some out (CUDA_VISIBLE_DEVICES)",
    "dtype": "set run.dtype to one that all of them multiply",
    "compiled": "install the compiler there too, or set run.compile=off",
    "torch": "install one version on all machines",
}


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
