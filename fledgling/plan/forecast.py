"""What a run will come to, with 90 % intervals from past runs (`fledgling.plan.past_runs`).

bits per byte   a law of parameters and tokens, fitted to the past runs of the same text (`plan.bits_forecast`)
exams           logit of the share, linear in the logarithm of the FLOPs after pretraining
time, memory    what was planned, times the median of measured / planned of past runs of about the same size
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from fledgling.plan.bits_forecast import forecast_bits, forecast_last_bits
from fledgling.plan.comparable_runs import (
    MIN_LAW_RUNS,
    Planned,
    leave_out_each,
    prefer_own_features,
    thin_runs,
)
from fledgling.plan.interval import (
    NORMAL_95,
    WIDENING,
    Forecast,
    count_doublings_outside,
    quantile_radius,
    widen,
)
from fledgling.plan.past_runs import MEMORY, SECONDS, PastRun, group_dependent

MIN_EXAM_RUNS = 4
EXAM_QUESTIONS = 200
EXAM_FACTOR = 8.0  # of the FLOPs after pretraining: a stage of few of its steps says little of a whole one
RATIO_FACTOR = 4.0  # of time or memory: a run of half a minute says nothing of one of hours
NEAR_RUNS = 9  # from which on those within this factor count alone
LEAST_SHARE = 1 / EXAM_QUESTIONS  # right or wrong: none and one count alike


def _logit(share: float) -> float:
    share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
    return math.log(share / (1 - share))


def _round_to_ends(share: float) -> float:
    """Returns 0 or 1 for a share nearer to it than the fit tells apart: an interval that ends there includes it."""
    return 0.0 if share <= LEAST_SHARE else 1.0 if share >= 1 - LEAST_SHARE else share


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _is_near(size: float, planned: float, factor: float) -> bool:
    return planned / factor <= size <= planned * factor


def _sampling_radius(share: float) -> float:
    """Returns the 90 % radius of the logit of a share of `EXAM_QUESTIONS`, below which no radius of a forecast goes."""
    return NORMAL_95 / math.sqrt(EXAM_QUESTIONS * max(share * (1 - share), LEAST_SHARE * (1 - LEAST_SHARE)))


def _fit_line(points: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """Returns the line of least squares through points, drawn a little to the level: more practice harms no exam."""
    center, level = (math.fsum(column) / len(points) for column in zip(*points, strict=True))
    variance = math.fsum((x - center) ** 2 for x, _ in points)
    slope = max(0.0, math.fsum((x - center) * (y - level) for x, y in points) / (variance + 0.05))
    return lambda at: level + slope * (at - center)


def forecast_exam(planned: Planned, runs: Sequence[PastRun], exam: str) -> Forecast | None:
    """Returns the share of an exam that is answered right at the end; None where too few past runs measured it.

    Only runs with the same wordings count.
    """
    comparable = (run for run in runs if run.wordings == planned.wordings)
    measured = [run for run in comparable if exam in run.measured and run.later_flops > 0]
    own = prefer_own_features(measured, planned.data, MIN_EXAM_RUNS)
    near = [run for run in own if _is_near(run.later_flops, planned.later_flops, EXAM_FACTOR)]
    own = thin_runs(near if len(group_dependent(near)) >= MIN_EXAM_RUNS else own)
    groups = group_dependent(own)
    if len(groups) < MIN_EXAM_RUNS or planned.later_flops <= 0:
        return None

    def place(run: PastRun) -> tuple[float, float]:
        return math.log(run.later_flops), _logit(run.measured[exam])

    points = [place(run) for run in own]
    at = math.log(planned.later_flops)
    errors = []
    for group, others in leave_out_each(groups):
        line = _fit_line([place(run) for run in others])
        errors.append(max((y - line(x) for x, y in map(place, group)), key=abs))
    outside = count_doublings_outside(planned.later_flops, [run.later_flops for run in own])
    middle = _logit(_share(_fit_line(points)(at)))  # which has ends
    radius = max(quantile_radius(errors) * (1 + WIDENING * outside), _sampling_radius(_share(middle)))
    note = f"beyond the past runs by a factor of {2**outside:.1f}" if outside > 0.1 else ""
    low, high = (_round_to_ends(_share(end)) for end in (middle - radius, middle + radius))
    return Forecast(exam, _share(middle), low, high, len(groups), note)


def forecast_ratio(name: str, planned: float, runs: Sequence[PastRun]) -> Forecast:
    """Returns time or memory: the planned value, corrected by the median of measured / planned of past runs.

    Those of about the planned size count alone where there are enough.
    """
    own = [run for run in runs if run.predicted.get(name, 0) > 0 and run.measured.get(name, 0) > 0]
    near = [run for run in own if _is_near(run.predicted[name], planned, RATIO_FACTOR)]
    parts = [[[run] for run in some] if name == SECONDS else group_dependent(some) for some in (near, own)]
    groups = parts[0] if len(parts[0]) >= NEAR_RUNS else parts[1]  # each run measures its own time
    own = [run for group in groups for run in group]
    found = [[math.log(run.measured[name] / run.predicted[name]) for run in group] for group in groups]
    errors = [max(group, key=abs) for group in found]
    bias = median(errors) if len(errors) >= MIN_LAW_RUNS else 0.0
    outside = count_doublings_outside(planned, [run.predicted[name] for run in own]) / 2
    note = "" if own else "no past run"
    radius = quantile_radius([error - bias for error in errors])
    return widen(name, math.log(planned) + bias, radius, outside, len(errors), note)


def forecast_run(planned: Planned, runs: Sequence[PastRun], exams: Sequence[str] = ()) -> list[Forecast]:
    """Returns the forecasts of a run: time, memory, bits per byte after pretraining and at the end, and exams."""
    found = [forecast_ratio(SECONDS, planned.seconds, runs), forecast_ratio(MEMORY, planned.memory, runs)]
    found.append(first := forecast_bits(planned, runs))
    if (last := forecast_last_bits(planned, runs, first)) is not None:
        found.append(last)
    found += [forecast for exam in exams if (forecast := forecast_exam(planned, runs, exam)) is not None]
    return found
