"""The scale of the loss in float16, whose smallest numbers are larger than many gradients.

The loss is multiplied by a power of two before backward, and the summed gradients are divided by it, which is exact. A
step whose gradient is not finite updates nothing and halves the scale; GROWTH_INTERVAL finite steps double it. Other
dtypes have the range of fp32, and their scale is always 1.

Source: Micikevicius et al. 2018, mixed precision training, arXiv 1710.03740, section 3.2; the constants are those of
`torch.amp.GradScaler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # finite steps
STATE_NAME = "loss_scale"


@dataclass
class LossScale:
    """The scale, and the finite steps since it last changed. `lowered`: whether the last step halved it."""

    enabled: bool
    value: float = 1.0
    finite_steps: int = 0
    lowered: bool = False

    def unscale_(self, gradients: Mapping[str, Tensor]) -> None:
        """Divides the gradients by the scale, in place."""
        if self.enabled and gradients:
            torch._foreach_mul_(list(gradients.values()), 1 / self.value)

    def record_step(self, finite: bool) -> None:
        """Adapts the scale after a step whose loss was finite. finite: whether its gradient was. Same on all ranks."""
        self.lowered = self.enabled and not finite and self.value > 1.0
        if self.lowered:
            self.value, self.finite_steps = self.value / 2, 0
        elif self.enabled and finite:
            self.finite_steps += 1
            if self.finite_steps == GROWTH_INTERVAL:
                self.value, self.finite_steps = self.value * 2, 0

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the scale and the count as one tensor; nothing where there is no scale."""
        return {STATE_NAME: torch.tensor([self.value, float(self.finite_steps)])} if self.enabled else {}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Continues where `state_dict` was taken; a run that was in another dtype begins with the initial scale."""
        if self.enabled and STATE_NAME in saved:
            value, steps = saved[STATE_NAME].tolist()
            self.value, self.finite_steps = value, int(steps)


def make_loss_scale(dtype: torch.dtype) -> LossScale:
    """Returns the scale for products in `dtype`."""
    return LossScale(True, INITIAL_SCALE) if dtype == torch.float16 else LossScale(False)
