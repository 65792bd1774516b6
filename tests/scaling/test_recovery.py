"""Tests that known coefficients are recovered."""

from fledgling.scaling.recovery import run_recovery


def test_known_coefficients_lie_inside_their_intervals():
    found = run_recovery(12)  # `fledgling scaling recover` takes 100
    assert found.all_five >= 10 and min(found.each.values()) >= 10
