"""Arguments of `torch.compile` with which compiled code stays when the number of threads falls.

On a machine that others use too a run takes fewer threads for a while (`runtime/core_monitor.py`). PyTorch compiles
again for each number of threads, because its guard of the global state includes it: a step of 18 s at depth 4 on two
cores. Where code was compiled for all cores of the machine, its loops leave the number to OpenMP: they are right for
fewer threads, and for no more. In a container with a quota of cores code is still compiled for each number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

LEAVES_THREADS_TO_OPENMP = "2.13"  # the first version of PyTorch whose loops do, where all cores are used


def compile_options(device: torch.device) -> dict[str, Any]:
    """Returns arguments for one call of `torch.compile`, which takes what it uses out of them.

    The guard of the global state includes the mode of gradients too, autocast, the default dtype and the deterministic
    algorithms: a function that is compiled with these arguments is called with one value of each.

    Args:
        device: on which the function computes.
    """
    if device.type != "cpu" or torch.__version__ < LEAVES_THREADS_TO_OPENMP:
        return {}
    return {"options": {"guard_filter_fn": keep_guards}}


def keep_guards(guards: Sequence[Any]) -> list[bool]:
    """Returns which guards of a function that is being compiled are checked at every call.

    All, but that of the global state where the code is for all cores.
    """
    is_for_all_cores = torch.get_num_threads() == os.cpu_count()
    return [not is_for_all_cores or guard.guard_type != "GLOBAL_STATE" for guard in guards]
