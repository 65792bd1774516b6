"""The share of an exam that a run will answer: the logit of it, linear in the logarithm of the FLOPs after pretraining.

The level of the line is that of past runs that were asked in the same wordings. Its slope is common to the runs of all
wordings, since those of one wording are often all of one size, and say nothing of another (three runs of twelve
minutes, a machine of a quarter of their speed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fledgling.plan.comparable_runs import Planned, leave_out_each, prefer_own_features, thin_runs
from fledgling.plan.interval import NORMAL_95, WIDENING, Forecast, count_doublings_outside, quantile_radius
from fledgling.plan.past_runs import PastRun, group_dependent, of_same_text

MIN_EXAM_RUNS = 4
EXAM_QUESTIONS = 200
EXAM_FACTOR = 8.0  # of the FLOPs after pretraining: a stage of few of its steps says little of a whole one
LEAST_SHARE = 1 / EXAM_QUESTIONS  # right or wrong: none and one count alike
LEAST_VARIANCE = 0.05  # added to that of the logarithm of FLOPs: runs of one size have no slope

Points = list[tuple[float, float]]  # logarithm of FLOPs, logit


def _logit(share: float) -> float:
    share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
    return math.log(share / (1 - share))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _round_to_ends(share: float) -> float:
    """Returns 0 or 1 for a share nearer to it than the fit tells apart: an interval that ends there includes it."""
    return 0.0 if share <= LEAST_SHARE else 1.0 if share >= 1 - LEAST_SHARE else share


def _sampling_radius(share: float) -> float:
    """Returns the 90 % radius of the logit of a share of `EXAM_QUESTIONS`, below which no radius of a forecast goes."""
    return NORMAL_95 / math.sqrt(EXAM_QUESTIONS * max(share * (1 - share), LEAST_SHARE * (1 - LEAST_SHARE)))


def _list_points(runs: Sequence[PastRun], exam: str) -> Points:
    return [(math.log(run.later_flops), _logit(run.measured[exam])) for run in runs]


def _find_center(points: Points) -> tuple[float, float]:
    x, y = zip(*points, strict=True)
    return math.fsum(x) / len(points), math.fsum(y) / len(points)


def _fit_slope(series: Sequence[Points]) -> float:
    """Returns the slope that lines through several series have in common, each with its own level (least squares).

    It is drawn a little to zero, and not below it: more practice harms no exam.
    """
    variance = covariance = 0.0
    for points in filter(None, series):
        center, level = _find_center(points)
        variance += math.fsum((x - center) ** 2 for x, _ in points)
        covariance += math.fsum((x - center) * (y - level) for x, y in points)
    return max(0.0, covariance / (variance + LEAST_VARIANCE))


def _estimate_slope_error(series: Sequence[Points]) -> float:
    """Returns the standard error of the common slope: each series left out once (the jackknife); 0 for a single one."""
    count = len(series)
    if count < 2:
        return 0.0
    slopes = [_fit_slope([other for other in series if other is not each]) for each in series]
    mean = math.fsum(slopes) / count
    return math.sqrt((count - 1) / count * math.fsum((slope - mean) ** 2 for slope in slopes))


def _predict(own: Points, others: Sequence[Points], at: float) -> float:
    center, level = _find_center(own)
    return level + _fit_slope([own, *others]) * (at - center)


def _is_near(run: PastRun, planned: Planned) -> bool:
    return planned.later_flops / EXAM_FACTOR <= run.later_flops <= planned.later_flops * EXAM_FACTOR


def _list_other_series(runs: Sequence[PastRun], planned: Planned, exam: str, own: Sequence[PastRun]) -> list[Points]:
    """Returns the points of past runs that were asked in other wordings or had another vocabulary, kind by kind."""
    taken = set(map(id, own))
    kinds: dict[tuple[str, str], list[PastRun]] = {}
    for run in of_same_text(runs, planned.data):
        if id(run) not in taken and _is_near(run, planned):
            kinds.setdefault((run.wordings, run.data), []).append(run)
    return [_list_points(thin_runs(some), exam) for some in kinds.values() if len(some) > 1]


def forecast_exam(planned: Planned, runs: Sequence[PastRun], exam: str) -> Forecast | None:
    """Returns the share of an exam that is answered right at the end; None where too few past runs measured it.

    The level is that of runs with the same wordings alone. Away from their mean size the interval has the error of the
    slope too, and beyond all of them it is wider by a half for each doubling.
    """
    if planned.later_flops <= 0:
        return None
    measured = [run for run in runs if exam in run.measured and run.later_flops > 0]
    own = prefer_own_features(
        [run for run in measured if run.wordings == planned.wordings], planned.data, MIN_EXAM_RUNS
    )
    near = [run for run in own if _is_near(run, planned)]
    own = thin_runs(near if len(group_dependent(near)) >= MIN_EXAM_RUNS else own)
    groups = group_dependent(own)
    if len(groups) < MIN_EXAM_RUNS:
        return None
    others = _list_other_series(measured, planned, exam, own)
    points = _list_points(own, exam)
    errors = []
    for group, rest in leave_out_each(groups):
        rest_points = _list_points(rest, exam)
        found = [y - _predict(rest_points, others, x) for x, y in _list_points(group, exam)]
        errors.append(max(found, key=abs))
    at = math.log(planned.later_flops)
    middle = _logit(_share(_predict(points, others, at)))  # which has ends
    outside = count_doublings_outside(planned.later_flops, [run.later_flops for run in own])
    tilt = NORMAL_95 * _estimate_slope_error([points, *others]) * abs(at - _find_center(points)[0])
    radius = max(math.hypot(quantile_radius(errors), tilt) * (1 + WIDENING * outside), _sampling_radius(_share(middle)))
    note = f"beyond the past runs by a factor of {2**outside:.1f}" if outside > 0.1 else ""
    low, high = (_round_to_ends(_share(end)) for end in (middle - radius, middle + radius))
    return Forecast(exam, _share(middle), low, high, len(groups), note)
