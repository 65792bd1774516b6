"""Tests hours and money, and that utilization is their inverse."""

import pytest

from fledgling.config import UserError
from fledgling.plan import cost, flops, hardware

from .models import config


def test_hours_and_dollars_follow_from_flops_and_price():
    h100 = hardware.find_device("H100")
    assert cost.estimate_hours(989e12 * 3600, h100, ranks=1, mfu=1.0) == pytest.approx(1.0)
    assert cost.estimate_hours(989e12 * 3600, h100, ranks=8, mfu=0.5) == pytest.approx(0.25)
    assert cost.estimate_usd(2.0, h100, ranks=8, price=2.5) == 40.0
    assert cost.estimate_usd(2.0, hardware.find_device("l4")) is None
    with pytest.raises(UserError, match='did you mean "h100"'):
        hardware.find_device("h10")


def test_mfu_inverts_hours():
    d20, h100 = config(20), hardware.find_device("h100")
    hours = cost.estimate_hours(flops.training_flops_per_token(d20) * 10**9, h100, 8, 0.48)
    flops_per_second = flops.training_flops_per_token(d20) * 10**9 / (hours * 3600)
    assert flops_per_second / (8 * h100.peak_flops) == pytest.approx(0.48)
