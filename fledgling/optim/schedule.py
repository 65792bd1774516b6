"""The multiplier of all learning rates as a function of progress: warm-up, constant, decay."""

from __future__ import annotations


def trapezoidal_schedule(
    progress: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_fraction: float = 0.4,
    final_lr_fraction: float = 0.0,
) -> float:
    """Returns the multiplier at `progress`: it rises linearly, stays at 1, and falls linearly.

    Args:
        progress: step / total_steps, in [0, 1).
        warmup_steps: steps of the rise; the multiplier of the first is 1 / warmup_steps, so that it moves already.
        decay_fraction: the last share of all steps, over which the multiplier falls.
        final_lr_fraction: the multiplier at the end.
    """
    assert 0 <= progress <= 1, f"progress is {progress}"
    step = progress * total_steps
    rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    left = 1 - progress
    if decay_fraction == 0 or left >= decay_fraction:
        return rising
    return min(rising, final_lr_fraction + (1 - final_lr_fraction) * left / decay_fraction)
