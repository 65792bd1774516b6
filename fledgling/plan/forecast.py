"""What a run will come to, with 90 % intervals from past runs (`fledgling.plan.past_runs`).

bits per byte   a law of parameters and tokens, fitted to the past runs of the same text (`plan.bits_forecast`)
exams           a line of the FLOPs after pretraining (`plan.exam_forecast`)
time, memory    what was planned, times the median of measured / planned of past runs of about the same size
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from fledgling.plan.bits_forecast import forecast_bits, forecast_last_bits
from fledgling.plan.comparable_runs import (
    MIN_LAW_RUNS,
    Planned,
)
from fledgling.plan.exam_forecast import forecast_exam
from fledgling.plan.interval import (
    Forecast,
    count_doublings_outside,
    quantile_radius,
    widen,
)
from fledgling.plan.past_runs import PastRun, group_dependent
from fledgling.record.forecast_names import MEMORY, SECONDS

RATIO_FACTOR = 4.0  # of time or memory: a run of half a minute says nothing of one of hours
NEAR_RUNS = 9  # from which on those within this factor count alone


def _is_near(size: float, planned: float, factor: float) -> bool:
    return planned / factor <= size <= planned * factor


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
