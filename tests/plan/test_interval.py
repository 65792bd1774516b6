"""Intervals from the errors of past runs: a quantile of conformal prediction, and wider outside of the runs."""

import math
from dataclasses import replace

import pytest

from fledgling.plan.interval import Forecast, error_inside, limit_ends, quantile_radius, widen

LESS = "upper end: of past runs no larger that read no more"
MORE = "lower end: of past runs no smaller that read no less"


def test_the_quantile_is_that_of_conformal_prediction():
    errors = [0.01 * n for n in range(1, 20)]
    assert quantile_radius(errors) == pytest.approx(0.18)  # the 18th of 19: (19 + 1) x .9
    assert quantile_radius(errors[:4]) > 0.04, "four runs cannot give a 90 % quantile: the largest error is not enough"


def test_an_error_outside_counts_as_much_less_as_an_interval_is_wider_there():
    for outside in (0.0, 0.4, 3.0):
        inside = error_inside(0.2, outside)
        assert math.log(widen("a", 0.0, inside, outside, 5, "").high) == pytest.approx(0.2)


def test_ends_are_limited_and_the_note_says_which():
    forecast = Forecast("a", 1.0, 0.5, 2.0, 5, "why")
    assert limit_ends(forecast, 0.0, math.inf) == forecast
    limited = limit_ends(forecast, 0.8, 1.5)
    assert (limited.low, limited.value, limited.high) == (0.8, 1.0, 1.5)
    assert limited.note == f"why; {LESS}; {MORE}"
    assert limit_ends(replace(forecast, note=""), 0.0, 1.5).note == LESS
