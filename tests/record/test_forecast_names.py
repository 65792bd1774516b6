"""Forecasts as text, the same before and after a run."""

from fledgling.record.forecast_names import (
    BITS,
    MEMORY,
    SECONDS,
    forecast_label,
    format_forecast,
    format_forecast_interval,
)
from fledgling.report.forecasts import ForecastPair


def test_labels_and_values_have_their_units():
    assert forecast_label(f"pretrain {BITS}") == "bits per byte, after pretrain"
    assert forecast_label("counting_test") == "counting, test wordings"
    texts = [format_forecast(*pair) for pair in ((SECONDS, 724.0), (MEMORY, 2**20), (BITS, 1.5), ("counting", 0.5))]
    assert texts == ["12:04", "1.0 MiB", "1.500", "50 %"]


def test_a_unit_of_both_ends_is_printed_once():
    assert format_forecast_interval(MEMORY, 170 * 2**20, 199 * 2**20) == "170.0 to 199.0 MiB"
    assert format_forecast_interval(MEMORY, 900 * 2**20, 2**30) == "900.0 MiB to 1.0 GiB"
    assert format_forecast_interval("counting", 0.5, 0.75) == "50 to 75 %"
    assert format_forecast_interval(SECONDS, 60.0, 90.0) == "1:00 to 1:30"


def test_what_is_printed_like_an_end_is_inside():
    """12:24 was OUTSIDE of 11:30 to 12:24, by fractions of a second that no line shows."""
    pair = ForecastPair(SECONDS, 716.0, 690.0, 744.1, 744.4)
    assert pair.interval == "11:30 to 12:24" and pair.format(pair.measured) == "12:24" and pair.holds is True
    assert ForecastPair(SECONDS, 716.0, 690.0, 744.1, 745.2).holds is False
    assert ForecastPair(SECONDS, 716.0, 690.0, 744.1, None).holds is None
