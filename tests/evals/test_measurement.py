"""Wilson's interval against published values."""

import pytest

from fledgling.evals.measurement import wilson_interval


def test_wilson_is_the_published_interval():
    low, high = wilson_interval(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0, 20)[0] == 0 and wilson_interval(0, 20)[1] == pytest.approx(0.1611, abs=1e-3)
    assert wilson_interval(20, 20)[1] == 1
