"""Training next to other programs: threads follow the cores that they leave (`runtime/core_monitor.py`)."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from fledgling.config.recipe import RunConfig
from fledgling.runtime.core_monitor import CoreMonitor
from fledgling.runtime.world import World

CHECK_SECONDS = 5.0  # at most: a step may be compiled again for a number of threads (`runtime/compile_options.py`)


def follow_free_cores(
    config: RunConfig,
    world: World,
    notify: Callable[[str], None],
    first_threads: int = 0,
    seconds: float = CHECK_SECONDS,
) -> Callable[[], dict[str, int]]:
    """Returns what is called after every step; it returns {"threads": n} while fewer threads than usual are used.

    The sums of a step are added in another order then, so its bits are others. Where the number of threads was chosen
    (run.threads, OMP_NUM_THREADS), or ranks share the cores, nothing is adapted.

    Args:
        notify: receives one line once, that the machine is shared.
        first_threads: that were in use when the stage before it ended; 0: all are used at first.
        seconds: between measurements.
    """
    is_chosen = bool(config.threads) or "OMP_NUM_THREADS" in os.environ
    if is_chosen or world.device.type != "cpu" or world.size > 1:
        return dict
    monitor = CoreMonitor(torch.get_num_threads(), torch.set_num_threads, notify, seconds, first=first_threads)

    def adapt() -> dict[str, int]:
        monitor.adapt()
        return {} if monitor.current == monitor.threads else {"threads": monitor.current}

    return adapt
