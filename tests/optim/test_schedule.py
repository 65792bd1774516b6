"""The learning-rate schedule rises, stays and falls."""

import itertools

import pytest

from fledgling.optim.schedule import trapezoidal_schedule


def test_the_schedule_rises_stays_and_falls():
    values = [trapezoidal_schedule(step / 100, 100, warmup_steps=10, decay_fraction=0.4) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9] == 1.0 and values[59] == 1.0
    assert values[99] == pytest.approx(0.025) and all(a >= b for a, b in itertools.pairwise(values[9:]))
    final = trapezoidal_schedule(0.999, 1000, decay_fraction=0.5, final_lr_fraction=0.2)
    assert final == pytest.approx(0.2, abs=2e-3)


def test_without_warmup_and_decay_the_multiplier_is_one():
    assert {trapezoidal_schedule(step / 10, 10, decay_fraction=0.0) for step in range(10)} == {1.0}
