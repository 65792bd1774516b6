"""The multiplier of every rate as a function of progress: up, level, down."""

from __future__ import annotations


def trapezoid(progress: float, steps: int, warmup: int = 0, decay: float = 0.4, final: float = 0.0) -> float:
    """Rises over `warmup` steps, stays at 1, falls linearly to `final` over the last share `decay` of all steps.

    progress in [0, 1) is step / steps; the first step already moves: its multiplier is 1 / warmup.
    """
    assert 0 <= progress <= 1, f"progress is {progress}"
    step = progress * steps
    up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    left = 1 - progress
    down = 1.0 if decay == 0 or left >= decay else final + (1 - final) * left / decay
    return min(up, down)
