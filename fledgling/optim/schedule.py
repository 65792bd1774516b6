"""The multiplier of every rate as a function of progress: up, level, down."""

from __future__ import annotations


def trapezoidal_schedule(
    progress: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_fraction: float = 0.4,
    final_lr_fraction: float = 0.0,
) -> float:
    """Rises over `warmup` steps, stays at 1, falls linearly to `final` over the last share `decay` of all steps.

    progress in [0, 1) is step / steps; the first step already moves: its multiplier is 1 / warmup.
    """
    assert 0 <= progress <= 1, f"progress is {progress}"
    step = progress * total_steps
    up = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    left = 1 - progress
    down = (
        1.0
        if decay_fraction == 0 or left >= decay_fraction
        else final_lr_fraction + (1 - final_lr_fraction) * left / decay_fraction
    )
    return min(up, down)
