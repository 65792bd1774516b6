"""What the format of the optimizer's state costs and saves: `optimizer.state`, for plan and train alike.

The bytes between steps are those of `Partition.count_state_bytes`. Other formats than fp32 on the device also take
temporaries during the update: the fp32 values that a rule works on, and what it takes to round them.
"""

from __future__ import annotations

from dataclasses import replace

from fledgling.config import ModelConfig
from fledgling.plan.memory import fits_memory
from fledgling.plan.training_step import TrainingStep

FORMS = ("8bit", "host")  # in the order in which they are offered: the second sends all state to the GPU and back


def resolve_state(setting: str, device_kind: str) -> str:
    """Returns the format that a device has: "host" is "float32" where the device's memory is the host's.

    device_kind: the torch device type.
    """
    return "float32" if setting == "host" and device_kind not in ("cuda", "xpu") else setting


def find_fitting_state(config: ModelConfig, step: TrainingStep, memory: int) -> str | None:
    """Returns the format of the optimizer's state with which the step fits `memory` bytes, None if none does."""
    forms = FORMS if step.device != "cpu" else FORMS[:1]
    steps = {form: replace(step, optimizer_state=form) for form in forms if form != step.optimizer_state}
    return next((form for form, other in steps.items() if fits_memory(config, other, memory)), None)
