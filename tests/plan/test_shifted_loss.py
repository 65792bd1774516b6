"""The law of past runs: found where it is exact."""

import math

import pytest

from fledgling.plan.shifted_loss import ShiftedLoss, fit_laws


@pytest.mark.parametrize("shift", [0.0, 4e5])
def test_a_law_is_found_with_the_tokens_that_it_is_shifted_by(shift):
    truth = ShiftedLoss(0.4, 7e8, 1.3e10, shift)
    sizes = [(parameters, 2e5 * 2**k) for parameters in (6e5, 4e6) for k in range(5)]
    found, *others = fit_laws(sizes, [truth.loss(*size) for size in sizes])
    assert pytest.approx((shift, 1.3e10)) == (found.shift, found.B)
    assert all(found.loss(*size) == pytest.approx(truth.loss(*size)) for size in sizes)
    assert all(law.shift != found.shift for law in others)


def test_no_coefficient_is_below_zero():
    sizes = [(1e6, tokens) for tokens in (1e5, 1e6, 1e7)]
    for losses in ([3.0, 2.9, 2.0], [2.0, 2.5, 3.0]):
        law = fit_laws(sizes, losses)[0]
        assert min(law.E, law.A, law.B) >= 0 and all(map(math.isfinite, (law.E, law.A, law.B)))
