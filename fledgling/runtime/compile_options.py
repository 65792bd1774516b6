"""Arguments of `torch.compile` with which compiled code stays when the number of threads falls.

On a machine that others use too a run takes fewer threads for a while (`runtime/core_monitor.py`). PyTorch compiles
again for each number, because its guard of the global state has it: a step of 18 s at depth 4 on two cores. Where the
number is that of all cores, the generated loops leave it to OpenMP and are right for fewer threads as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

LEAVES_THREADS_TO_OPENMP = "2.13"  # the first version of PyTorch whose loops do, where all cores are used


def compile_options(device: torch.device) -> dict[str, Any]:
    """Returns arguments for `torch.compile` of functions on `device`.

    The guard of the global state has the mode of gradients too, the default dtype and the deterministic algorithms:
    what is compiled with these arguments is called with one value of each.
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
