"""Line charts as inline SVG.

Colors are CSS variables, so one drawing serves light and dark; every point has its values in a <title>, so no script is
needed. All text is escaped here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

MIN_LOG_VALUE = 1e-200  # of a logarithmic axis; below it, ratios overflow a float
WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 34
MAX_POINTS = 320  # longer lines are averaged in equal groups


@dataclass(frozen=True)
class Line:
    """One line: xs and ys of equal length; lows and highs make a band; point_labels describe a point's position."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()
    color: int = 0
    dots: bool = False
    faint: bool = False
    dashed: bool = False
    connected: bool = True  # False: dots alone
    point_labels: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A chart. marks: (x, text) of vertical lines; x_ticks: (x, text) instead of round numbers; top_axis: a second axis
    at the top, (its name, a function that formats an x).
    """

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    format_y: Callable[[float], str] = lambda value: f"{value:.3g}"
    format_x: Callable[[float], str] = lambda value: f"{value:,.0f}"
    logarithmic: bool = False
    floor: float | None = None  # the y-axis includes at least these
    ceiling: float | None = None
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    x_ticks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    top_axis: tuple[str, Callable[[float], str]] | None = None


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns round numbers of a logarithmic axis; for a short one, those of a linear axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for units in ((1,), (1, 3), (1, 2, 5)):
        found = [unit * 10.0**power for power in powers for unit in units if low <= unit * 10.0**power <= high]
        if len(found) >= 4:
            return found
    return linear_ticks(low, high)


def running_mean(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Returns the mean of each value with the adjacent ones, over `share` of the whole; fewer at the ends."""
    reach = max(1, round(len(values) * share / 2))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in spans]


def downsample(line: Line) -> Line:
    """Returns a line of at most MAX_POINTS points, each the mean of a group. Bands and dots are not changed."""
    if len(line.xs) <= MAX_POINTS or line.lows or line.dots or not line.connected:
        return line
    edges = [round(i * len(line.xs) / MAX_POINTS) for i in range(MAX_POINTS + 1)]
    groups = [slice(a, b) for a, b in pairwise(edges)]
    xs, ys = ([sum(values[g]) / len(values[g]) for g in groups] for values in (line.xs, line.ys))
    return Line(line.label, xs, ys, color=line.color, faint=line.faint, dashed=line.dashed)


@dataclass(frozen=True)
class _Plane:
    """The position of values in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the position of a point in the drawing."""
        return self.across(x), self.down(y)

    def across(self, x: float) -> float:
        """Returns the horizontal position of a value."""
        return round(LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT), 1)

    def down(self, y: float) -> float:
        """Returns the vertical position of a value, from the top."""
        low, high = self.y
        share = math.log(y / low) / math.log(high / low) if self.logarithmic else (y - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def render_chart(chart: Chart) -> Markup:
    """Returns the chart as one <svg>; empty if no line has a point."""
    lines = [downsample(line) for line in chart.lines if len(line.xs)]
    if not lines:
        return Markup("")
    plane, y_ticks = _fit(chart, lines)
    parts = [_draw_axes(chart, plane, y_ticks)]
    parts += [_draw_band(line, plane) for line in lines if line.lows]
    parts += [_draw_path(line, plane) for line in lines if line.connected]
    parts += [_draw_dots(line, plane, chart) for line in lines if line.dots or not line.connected or len(line.xs) == 1]
    label = f"{chart.title}: {', '.join(line.label for line in lines)} against {chart.x_label}"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )


def _fit(chart: Chart, lines: Sequence[Line]) -> tuple[_Plane, list[float]]:
    """Returns the plane that contains every point, and the ticks of its y-axis."""
    xs = [x for line in lines for x in line.xs] + [x for x, _ in (*chart.marks, *chart.x_ticks)]
    ys = [y for line in lines for y in (*line.ys, *line.lows, *line.highs) if y is not None]
    ys += [y for y in (chart.floor, chart.ceiling) if y is not None]
    logarithmic = chart.logarithmic and min(ys) > MIN_LOG_VALUE
    low, high = min(ys), max(ys)
    if logarithmic:
        low, high = low / 1.04, high * 1.04
        y_ticks = log_ticks(low, high)
    else:
        low, high = _separate(low, high)
        pad = 0.05 * (high - low)
        low = low if low == chart.floor else low - pad
        high = high if high == chart.ceiling else high + pad
        y_ticks = linear_ticks(low, high)
    return _Plane(_separate(min(xs), max(xs)), (low, high), logarithmic), y_ticks


def _separate(low: float, high: float) -> tuple[float, float]:
    """Returns the interval, widened if it is too narrow to divide by."""
    least = max(1e-9 * max(abs(low), abs(high)), MIN_LOG_VALUE)
    return (low, high) if high - low > least else (low, high + max(1.0, 1e3 * least))


_TEXT = Markup('<text x="{}" y="{}" class="{}">{}</text>')
_RULE = Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>')


def _draw_axes(chart: Chart, plane: _Plane, y_ticks: Sequence[float]) -> Markup:
    parts = []
    bottom = HEIGHT - BOTTOM
    for y in y_ticks:
        parts.append(_RULE.format(LEFT, plane.down(y), WIDTH - RIGHT, plane.down(y), "grid"))
        parts.append(_TEXT.format(LEFT - 6, plane.down(y) + 3.5, "end", chart.format_y(y)))
    for x, text in chart.marks:
        parts.append(_RULE.format(plane.across(x), TOP, plane.across(x), bottom, "mark"))
        parts.append(_TEXT.format(plane.across(x) + 3, TOP - 6, "start stage", text))
    for x, text in chart.x_ticks or [(x, chart.format_x(x)) for x in linear_ticks(*plane.x)]:
        parts.append(_RULE.format(plane.across(x), bottom, plane.across(x), bottom + 4, "axis"))
        parts.append(_TEXT.format(plane.across(x), bottom + 15, "middle", text))
        if chart.top_axis:
            parts.append(_TEXT.format(plane.across(x), TOP - 8, "middle", chart.top_axis[1](x)))
    if chart.top_axis:
        parts.append(_TEXT.format(LEFT - 6, TOP - 8, "end", chart.top_axis[0]))
    parts.append(_RULE.format(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts.append(_TEXT.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle label", chart.x_label))
    return Markup("").join(parts)


def _draw_path(line: Line, plane: _Plane) -> Markup:
    points = " ".join(f"{x},{y}" for x, y in (plane.at(x, y) for x, y in zip(line.xs, line.ys, strict=True)))
    kind = f"c{line.color}{' faint' if line.faint else ''}{' dashed' if line.dashed else ''}"
    return Markup('<polyline points="{}" class="line {}"/>').format(points, kind)


def _draw_band(line: Line, plane: _Plane) -> Markup:
    rows = zip(line.xs, line.lows, line.highs, strict=True)
    bounded = [(x, low, high) for x, low, high in rows if low is not None and high is not None]
    upper = [plane.at(x, high) for x, _, high in bounded]
    lower = [plane.at(x, low) for x, low, _ in reversed(bounded)]
    if len(bounded) == 1:  # one point has no area, so it is drawn as a whisker
        (x, top), (_, bottom) = upper[0], lower[0]
        return _RULE.format(x, top, x, bottom, f"line c{line.color}")
    points = " ".join(f"{x},{y}" for x, y in upper + lower)
    return Markup('<polygon points="{}" class="band c{}"/>').format(points, line.color)


def _draw_dots(line: Line, plane: _Plane, chart: Chart) -> Markup:
    circles = []
    for i, (x, y) in enumerate(zip(line.xs, line.ys, strict=True)):
        location = line.point_labels[i] if line.point_labels else f"{chart.x_label} {chart.format_x(x)}"
        title = f"{line.label}: {chart.format_y(y)} at {location}"
        low, high = (line.lows[i], line.highs[i]) if line.lows else (None, None)
        if low is not None and high is not None:
            title += f" (95 %: {chart.format_y(low)} to {chart.format_y(high)})"
        x_position, y_position = plane.at(x, y)
        circles.append(
            Markup('<circle cx="{}" cy="{}" r="2.6" class="dot c{}"><title>{}</title></circle>').format(
                x_position, y_position, line.color, title
            )
        )
    return Markup("").join(circles)


def render_bar(value: float, low: float | None, high: float | None, baseline: float | None, color: int) -> Markup:
    """Returns a share in [0, 1] as a small bar: its interval as a whisker, the best constant answer as a tick.

    Args:
        value: in [0, 1].
        low, high: ends of the interval; None: no whisker.
        baseline: the score of the best constant answer; None: no tick.
        color: number of the color.
    """

    def at(x: float) -> float:
        return round(100 * min(1.0, max(0.0, x)), 1)

    parts = [Markup('<rect width="100" height="6" y="2" class="trough"/>')]
    parts.append(Markup('<rect width="{}" height="6" y="2" class="fill c{}"/>').format(at(value), color))
    if low is not None and high is not None:
        parts.append(_RULE.format(at(low), 5, at(high), 5, "whisker"))
    if baseline is not None:
        parts.append(_RULE.format(at(baseline), 0, at(baseline), 10, "constant"))
    drawing = Markup('<svg viewBox="0 0 100 10" preserveAspectRatio="none" class="bar" aria-hidden="true">{}</svg>')
    return drawing.format(Markup("").join(parts))
