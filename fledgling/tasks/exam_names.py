"""Which tasks a stage is examined on."""

from __future__ import annotations

from fledgling.config import LoopConfig, RLConfig
from fledgling.tasks import ENVIRONMENT_PREFIX, GENERATED_TASKS, PUBLIC_TASKS


def exam_names(config: LoopConfig, default_mixture: dict[str, float]) -> list[str]:
    """Returns the tasks that a stage is evaluated on: those of its mixture, and those that RL practices.

    default_mixture: replaces an empty one; RL and DPO are evaluated on the tasks of SFT too.
    """
    practiced = config.tasks if isinstance(config, RLConfig) else {}
    learned = {**(config.mixture or default_mixture), **practiced}
    environments = [name for name in learned if name.startswith(ENVIRONMENT_PREFIX)]
    return [name for name in (*GENERATED_TASKS, *PUBLIC_TASKS, *environments) if learned.get(name, 0) > 0]
