"""Tests charts: round ticks, exact averages, everything inside the drawing, escaped text."""

import re
import xml.etree.ElementTree as xml

from hypothesis import given
from hypothesis import strategies as st

from fledgling.report.chart import (
    HEIGHT,
    WIDTH,
    Chart,
    Line,
    downsample,
    linear_ticks,
    log_ticks,
    render_bar,
    render_chart,
    running_mean,
)

numbers = st.floats(-1e99, 1e99)


def test_ticks_are_round():
    assert linear_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks(0, 500) == [0, 100, 200, 300, 400, 500]
    assert linear_ticks(3, 3) == [3]
    assert log_ticks(0.9, 1200) == [1, 10, 100, 1000]
    assert log_ticks(0.9, 11) == [1, 2, 5, 10]
    assert log_ticks(1.1, 1.9) == linear_ticks(1.1, 1.9)


def test_the_running_mean_keeps_a_constant_and_the_length():
    assert running_mean([2.0] * 9) == [2.0] * 9
    assert running_mean([]) == []
    assert running_mean([0, 3, 0]) == [1.5, 1.0, 1.5]


def test_a_long_line_is_averaged_in_equal_groups():
    line = downsample(Line("x", list(range(3200)), [1.0, 3.0] * 1600))
    assert len(line.xs) == len(line.ys) == 320
    assert set(line.ys) == {2.0} and line.xs[0] == 4.5


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=6), st.booleans(), st.booleans())
def test_any_numbers_are_drawn_inside_the_chart(points, logarithmic, band):
    xs = sorted(x for x, _, _ in points)
    ys = [y for _, y, _ in points]
    other = [z for _, _, z in points]
    lows, highs = (
        [min(p) for p in zip(ys, other, strict=True)],
        [max(p) for p in zip(ys, other, strict=True)],
    )
    line = Line("x", xs, ys, lows if band else (), highs if band else (), dots=True)
    drawing = render_chart(Chart("t", [line], logarithmic=logarithmic))
    if not points:
        assert drawing == ""
        return
    xml.fromstring(drawing)
    for name, most in (("x", WIDTH), ("cx", WIDTH), ("y", HEIGHT), ("cy", HEIGHT)):
        for value in re.findall(rf' {name}\d?="([^"]*)"', drawing):
            assert -1 <= float(value) <= most + 1, (name, value)


def test_texts_are_escaped():
    bad = '"/><script>alert(1)</script>'
    line = Line(bad, [0, 1], [0, 1], dots=True, point_labels=[bad, bad])
    chart = Chart(bad, [line], x_label=bad, format_y=lambda _: bad, format_x=lambda _: bad, marks=[(0, bad)])
    drawing = render_chart(chart)
    assert "<script" not in drawing
    xml.fromstring(drawing)


def test_a_bar_is_clipped_to_its_range():
    drawing = render_bar(1.7, -0.2, 1.9, 0.6, 1)
    assert 'width="100"' in drawing and 'x1="60.0"' in drawing
    xml.fromstring(drawing)
