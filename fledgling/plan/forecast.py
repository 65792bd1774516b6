"""What a run will come to, with 90 % intervals from past runs (`fledgling.plan.past_runs`).

    bits per byte   L(N, D) = E + A / N^.3478 + B / D^.3658, with E, A, B >= 0 fitted to the past runs of the same text
    exams           logit of the share, linear in the logarithm of the FLOPs after pretraining
    time, memory    what was planned, times the median of measured / planned

Every past run is predicted by a fit to the others, without those that began in the same way (the same weights and order
of text); such a group has one error, its largest. An interval contains the prediction, moved by those errors, 90 times
of 100 (jackknife+, arXiv 1905.02928). With fewer than nine runs that quantile does not exist: Student's t is taken
instead. Outside the range of the past runs an interval is wider by a half for each doubling, and says so. D counts
repeated text by its decreasing use (arXiv 2305.16264); exponents are those of arXiv 2404.10102.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import mul
from statistics import median

from fledgling.plan.past_runs import PastRun, group_dependent
from fledgling.plan.scaling_laws import REFIT, ChinchillaLoss, find_law

LEVEL = 0.9
REPEAT_DECAY = 15.39  # R* of arXiv 2305.16264: passes after which a further one adds little
WIDENING = 0.5  # of an interval, for each doubling outside the past runs
MIN_LAW_RUNS = 4  # for three coefficients
MIN_EXAM_RUNS = 4
PUBLISHED_PARAMETERS = 20_000_000  # of the smallest models that a published law says something about
UNKNOWN_SPREAD = 0.15  # of the logarithm of a value of which no past run says anything
STUDENT_95 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)  # 95 % quantiles for 1, 2, ... degrees of freedom
BITS, FIRST_BITS, SECONDS, MEMORY = "bits_per_byte", "pretrain bits_per_byte", "seconds", "memory"


@dataclass(frozen=True)
class Forecast:
    """A value with its 90 % interval, from `runs` past runs. note: what the interval cannot say, or ""."""

    name: str
    value: float
    low: float
    high: float
    runs: int
    note: str = ""

    def holds(self, measured: float) -> bool:
        """Returns whether a measurement lies in the interval."""
        return self.low <= measured <= self.high


@dataclass(frozen=True)
class Planned:
    """The sizes of a run that its forecast depends on; see `PastRun`."""

    data: str
    parameters: int
    tokens: int
    passes: float
    later_flops: float
    seconds: float
    memory: float


def effective_tokens(tokens: float, passes: float) -> float:
    """Returns the tokens of fresh text that are as useful as `tokens` in `passes` passes (arXiv 2305.16264, eq. 5)."""
    if passes <= 1:
        return tokens
    unique = tokens / passes
    return unique * (1 + REPEAT_DECAY * (1 - math.exp(-(passes - 1) / REPEAT_DECAY)))


def quantile_radius(errors: Sequence[float], level: float = LEVEL) -> float:
    """Returns r, so that the error of another run is at most r in size with probability `level`.

    errors: of runs that were predicted without themselves. For fewer than `level` / (1 - `level`), Student's t.
    """
    sizes = sorted(map(abs, errors))
    rank = math.ceil((len(sizes) + 1) * level)
    if rank <= len(sizes):
        return sizes[rank - 1]
    if len(sizes) < 2:
        return UNKNOWN_SPREAD if not sizes else max(UNKNOWN_SPREAD, 3 * sizes[0])
    spread = math.sqrt(sum(size**2 for size in sizes) / len(sizes))
    factor = STUDENT_95[min(len(sizes) - 1, len(STUDENT_95)) - 1] * math.sqrt(1 + 1 / len(sizes))
    return max(sizes[-1], factor * spread)


def count_doublings_outside(value: float, known: Sequence[float]) -> float:
    """Returns by how many doublings a value lies outside the range of the known ones; 0 inside."""
    known = [each for each in known if each > 0]
    if not known or value <= 0:
        return 0.0
    return max(0.0, math.log2(min(known) / value), math.log2(value / max(known)))


# ---- bits per byte ----


def fit_loss(runs: Sequence[PastRun], quantity: str = FIRST_BITS) -> ChinchillaLoss:
    """Returns the law of the past runs: E, A and B of least relative error, none below 0."""
    rows = []
    for run in runs:
        tokens, loss = effective_tokens(run.tokens, run.passes), run.measured[quantity]
        columns = (1.0, run.parameters**-REFIT.alpha, tokens**-REFIT.beta)
        rows.append([column / loss for column in columns])
    best, least = [0.0, 0.0, 0.0], math.inf
    for count in (1, 2, 3):  # all sets of coefficients above 0: three columns have seven
        for chosen in combinations(range(3), count):
            part = solve_least_squares([[row[column] for column in chosen] for row in rows])
            if part is None or min(part) < 0:
                continue
            found = [0.0, 0.0, 0.0]
            for column, value in zip(chosen, part, strict=True):
                found[column] = value
            error = math.fsum((sum(map(mul, row, found)) - 1) ** 2 for row in rows)
            if error < least:
                best, least = found, error
    return ChinchillaLoss(best[0], best[1], REFIT.alpha, best[2], REFIT.beta)


def solve_least_squares(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """Returns x of least |rows x - 1|, for a few columns, by the normal equations; None if they are singular.

    Columns are scaled to length 1 first; three of them leave an error far below that of a loss.
    """
    size = len(rows[0])
    scales = [math.sqrt(math.fsum(row[i] ** 2 for row in rows)) for i in range(size)]
    if min(scales) == 0:
        return None
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    matrix = [[math.fsum(row[i] * row[j] for row in scaled) for j in range(size)] for i in range(size)]
    table = [[*matrix[i], math.fsum(row[i] for row in scaled)] for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(table[row][i]))
        if abs(table[pivot][i]) < 1e-12:
            return None
        table[i], table[pivot] = table[pivot], table[i]
        for row in range(size):
            if row != i:
                factor = table[row][i] / table[i][i]
                table[row] = [a - factor * b for a, b in zip(table[row], table[i], strict=True)]
    return [table[i][size] / table[i][i] / scales[i] for i in range(size)]


def select_runs(runs: Sequence[PastRun], data: str, quantity: str) -> list[PastRun]:
    """Returns the past runs of the same text that measured a quantity."""
    return [run for run in runs if run.data == data and run.measured.get(quantity, 0) > 0]


def leave_out_each(groups: Sequence[list[PastRun]]) -> Iterator[tuple[list[PastRun], list[PastRun]]]:
    """Yields each group of runs, and the runs of all other groups."""
    for group in groups:
        yield group, [run for other in groups if other is not group for run in other]


def _count(runs: Sequence[PastRun], groups: Sequence[list[PastRun]]) -> str:
    """Returns how many past runs there are, and how many of them are independent, as text."""
    return f"{len(runs)} past runs" + (f" ({len(groups)} independent)" if len(groups) < len(runs) else "")


def choose_laws(runs: Sequence[PastRun], data: str, parameters: int) -> tuple[tuple[ChinchillaLoss, ...], str]:
    """Returns the laws by which sizes are compared, and what they are.

    The first is fitted to all past runs of the text, the others to all but one of them. With too few runs it is a
    published law, and none for models smaller than those that it was fitted to.

    parameters: of the recipe's model.
    """
    own = select_runs(runs, data, FIRST_BITS)
    groups = group_dependent(own)
    if len(groups) >= MIN_LAW_RUNS:
        laws = [fit_loss(own), *(fit_loss(others) for _, others in leave_out_each(groups))]
        return tuple(laws), f"fitted to {_count(own, groups)}"
    few = f"{_count(own, groups)} of this text, of at least {MIN_LAW_RUNS}"
    if parameters >= PUBLISHED_PARAMETERS:
        return (REFIT,), f"refit-2024 (arXiv 2404.10102): {few}"
    return (), f"none: {few}, so the depth is the recipe's"


def forecast_bits(planned: Planned, runs: Sequence[PastRun], quantity: str) -> Forecast:
    """Returns the bits per byte after pretraining (`FIRST_BITS`) or at the end (`BITS`)."""
    own = select_runs(runs, planned.data, quantity)
    groups = group_dependent(own)
    tokens = effective_tokens(planned.tokens, planned.passes)
    if len(groups) < MIN_LAW_RUNS:
        published = find_law("nanochat")
        value = float(published.predict(6 * planned.parameters * planned.tokens)["bits_per_byte"])
        outside = count_doublings_outside(6.0 * planned.parameters * planned.tokens, (1e18, 1e19)) / 2
        few = f"{_count(own, groups)} of this text, of at least {MIN_LAW_RUNS}"
        note = f"law {published.name}: {few}; of web text"
        return _widen(quantity, math.log(value), UNKNOWN_SPREAD, outside, len(groups), note)
    full = math.log(fit_loss(own, quantity).loss(planned.parameters, tokens))
    lows, highs, errors = [], [], []
    for group, others in leave_out_each(groups):
        law = fit_loss(others, quantity)
        there = [law.loss(run.parameters, effective_tokens(run.tokens, run.passes)) for run in group]
        found = [math.log(run.measured[quantity] / loss) for run, loss in zip(group, there, strict=True)]
        errors.append(max(found, key=abs))
        lows.append(math.log(law.loss(planned.parameters, tokens)))
        highs.append(lows[-1])
    radius = quantile_radius(errors)
    spread = max(abs(low - full) for low in lows)  # of the fits: large where the law is asked beyond its runs
    outside = count_doublings_outside(planned.parameters, [run.parameters for run in own])
    outside += count_doublings_outside(tokens, [effective_tokens(run.tokens, run.passes) for run in own])
    return _widen(quantity, full, math.hypot(radius, spread), outside, len(groups), "")


def _widen(name: str, middle: float, radius: float, outside: float, runs: int, note: str) -> Forecast:
    """Returns a forecast on a log scale, wider outside of the past runs."""
    radius *= 1 + WIDENING * outside
    if outside > 0.1 and not note:
        wider = f"the interval is {1 + WIDENING * outside:.1f} times as wide"
        note = f"beyond the past runs by a factor of {2**outside:.1f}: {wider}"
    return Forecast(name, math.exp(middle), math.exp(middle - radius), math.exp(middle + radius), runs, note)


# ---- exams, time, memory ----


def _logit(share: float) -> float:
    share = min(max(share, 0.005), 0.995)
    return math.log(share / (1 - share))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _fit_line(points: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """Returns the line of least squares through points, drawn a little to the level: more practice harms no exam."""
    center, level = (math.fsum(column) / len(points) for column in zip(*points, strict=True))
    variance = math.fsum((x - center) ** 2 for x, _ in points)
    slope = max(0.0, math.fsum((x - center) * (y - level) for x, y in points) / (variance + 0.05))
    return lambda at: level + slope * (at - center)


def forecast_exam(planned: Planned, runs: Sequence[PastRun], exam: str) -> Forecast | None:
    """Returns the share of an exam that is answered right at the end; None where too few past runs measured it."""
    own = [run for run in runs if run.data == planned.data and exam in run.measured and run.later_flops > 0]
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
    middle, radius = _fit_line(points)(at), quantile_radius(errors) * (1 + WIDENING * outside)
    note = f"beyond the past runs by a factor of {2**outside:.1f}" if outside > 0.1 else ""
    return Forecast(exam, _share(middle), _share(middle - radius), _share(middle + radius), len(groups), note)


def forecast_ratio(name: str, planned: float, runs: Sequence[PastRun]) -> Forecast:
    """Returns time or memory: the planned value, corrected by the median of measured / planned of past runs."""
    own = [run for run in runs if run.predicted.get(name, 0) > 0 and run.measured.get(name, 0) > 0]
    groups = [[run] for run in own] if name == SECONDS else group_dependent(own)  # each run measures its own time
    found = [[math.log(run.measured[name] / run.predicted[name]) for run in group] for group in groups]
    errors = [max(group, key=abs) for group in found]
    bias = median(errors) if len(errors) >= MIN_LAW_RUNS else 0.0
    outside = count_doublings_outside(planned, [run.predicted[name] for run in own]) / 2
    note = "" if own else "no past run"
    radius = quantile_radius([error - bias for error in errors])
    return _widen(name, math.log(planned) + bias, radius, outside, len(errors), note)


def forecast_run(planned: Planned, runs: Sequence[PastRun], exams: Sequence[str] = ()) -> list[Forecast]:
    """Returns the forecasts of a run: time, memory, bits per byte after pretraining and at the end, and exams."""
    found = [forecast_ratio(SECONDS, planned.seconds, runs), forecast_ratio(MEMORY, planned.memory, runs)]
    found.append(forecast_bits(planned, runs, FIRST_BITS))
    if planned.later_flops > 0 and len(select_runs(runs, planned.data, BITS)) >= MIN_LAW_RUNS:
        found.append(forecast_bits(planned, runs, BITS))
    found += [forecast for exam in exams if (forecast := forecast_exam(planned, runs, exam)) is not None]
    return found
