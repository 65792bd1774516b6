"""What a run will come to, with 90 % intervals from past runs (`fledgling.plan.past_runs`).

    bits per byte   a law of parameters and tokens, fitted to the past runs of the same text (`plan.shifted_loss`)
    exams           logit of the share, linear in the logarithm of the FLOPs after pretraining
    time, memory    what was planned, times the median of measured / planned

Every past run is predicted by a fit to the others, without those that began in the same way (the same weights and order
of text); such a group has one error, its largest. An interval contains the prediction, moved by those errors, 90 times
of 100 (jackknife+, arXiv 1905.02928). With fewer than nine runs that quantile does not exist: Student's t is taken
instead. Outside the range of the past runs an interval is wider by a half for each doubling, and says so; the error of
a past run outside the others counts as much less. The bits per byte at the end are those after pretraining, times the
median of what later stages have made of them. D counts repeated text by its decreasing use (arXiv 2305.16264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from fledgling.plan.past_runs import PastRun, group_dependent, of_same_text
from fledgling.plan.scaling_laws import REFIT, find_law
from fledgling.plan.shifted_loss import MISFIT, LossLaw, ShiftedLoss, fit_laws

LEVEL = 0.9
REPEAT_DECAY = 15.39  # R* of arXiv 2305.16264: passes after which a further one adds little
WIDENING = 0.5  # of an interval, for each doubling outside the past runs
BEYOND = 0.03  # of the logarithm of a value, for each doubling outside, however well the past runs agree
MAX_FITTED = 64  # past runs of one text that a law is fitted to: its time grows with their square
MIN_LAW_RUNS = 4  # for three coefficients
MIN_EXAM_RUNS = 4
LEAST_SHARE = 0.005  # right or wrong, of an exam of 200 questions: none and one count alike
PUBLISHED_PARAMETERS = 20_000_000  # of the smallest models that a published law says something about
OTHER_FEATURES = 0.06  # of the logarithm: what the features of nanochat-2026 change (docs/features.md)
UNKNOWN_SPREAD = 0.15  # of the logarithm of a value of which no past run says anything
STUDENT_95 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)  # 95 % quantiles for 1, 2, ... degrees of freedom
NORMAL_95 = 1.645  # the same of a normal distribution
BITS, FIRST_BITS, SECONDS, MEMORY = "bits_per_byte", "pretrain bits_per_byte", "seconds", "memory"


@dataclass(frozen=True)
class Forecast:
    """A value with its 90 % interval, from `runs` independent past runs. note: what the interval cannot say, or ""."""

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
    passes: float | None
    later_flops: float
    seconds: float
    memory: float


def effective_tokens(tokens: float, passes: float | None) -> float:
    """Returns the tokens of fresh text that are as useful as `tokens` in `passes` passes (arXiv 2305.16264, eq. 5).

    passes: None: not known, counted as one.
    """
    if passes is None or passes <= 1:
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


def fit_runs(
    runs: Sequence[PastRun], near: PastRun | Planned | None = None, quantity: str = FIRST_BITS
) -> list[ShiftedLoss]:
    """Returns the law of the past runs, and then others that fit about as well.

    Args:
        runs: to which it is fitted.
        near: the run that is asked for: runs of about its length count most. None: all count alike.
        quantity: `FIRST_BITS` after pretraining, or `BITS` at the end of the run.
    """
    tokens = get_size(near, quantity)[1] if near else None
    return fit_laws([get_size(run, quantity) for run in runs], [run.measured[quantity] for run in runs], tokens)


def get_size(run: PastRun | Planned, quantity: str = FIRST_BITS) -> tuple[float, float]:
    """Returns the parameters of a run and its effective tokens until `quantity` is measured.

    Those of later stages are their FLOPs over six times the parameters.
    """
    later = run.later_flops / (6 * run.parameters) if quantity == BITS else 0.0
    return run.parameters, effective_tokens(run.tokens, run.passes) + later


def select_runs(runs: Sequence[PastRun], data: str, quantity: str) -> list[PastRun]:
    """Returns the past runs of the same text that measured a quantity, without those whose passes are not known.

    Where too few had the same features of the model, those with others too. Of many, those of `thin_runs`.
    """
    measured = [run for run in runs if run.passes is not None and run.measured.get(quantity, 0) > 0]
    return thin_runs(_prefer_own_features(measured, data, MIN_LAW_RUNS))


def _prefer_own_features(runs: Sequence[PastRun], data: str, least: int) -> list[PastRun]:
    """Returns the runs of a text with the features of `data`, or with any where fewer than `least` are independent."""
    own = [run for run in runs if run.data == data]
    return own if len(group_dependent(own)) >= least else of_same_text(runs, data)


def _spread_of_features(planned: Planned, runs: Sequence[PastRun]) -> float:
    """Returns by how much the logarithm of bits per byte may differ because runs had other features of the model."""
    return OTHER_FEATURES if any(run.data != planned.data for run in runs) else 0.0


def thin_runs(runs: Sequence[PastRun]) -> list[PastRun]:
    """Returns at most MAX_FITTED runs, which still cover the sizes of all: each of them is left out of a fit once.

    Of runs that began in the same way the newest remain, and of these every n-th by its size.
    """
    if len(runs) <= MAX_FITTED:
        return list(runs)
    newest = [group[-1] for group in group_dependent(runs)]
    by_size = sorted(newest, key=get_size)
    count = min(MAX_FITTED, len(by_size))
    chosen = {id(by_size[round(n * (len(by_size) - 1) / max(1, count - 1))]) for n in range(count)}
    return [run for run in newest if id(run) in chosen]


def leave_out_each(groups: Sequence[list[PastRun]]) -> Iterator[tuple[list[PastRun], list[PastRun]]]:
    """Yields each group of runs, and the runs of all other groups."""
    for group in groups:
        yield group, [run for other in groups if other is not group for run in other]


def _count(runs: Sequence[PastRun], groups: Sequence[list[PastRun]]) -> str:
    """Returns how many past runs there are, and how many of them are independent, as text."""
    return f"{len(runs)} past runs" + (f" ({len(groups)} independent)" if len(groups) < len(runs) else "")


@dataclass(frozen=True)
class SizeComparison:
    """By which laws sizes are compared.

    Attributes:
        laws: the first is fitted to all past runs of the text; others are about as good, or fitted to all runs but one.
        name: what they are fitted to.
        quantity: whose laws they are: `BITS` or `FIRST_BITS`.
        runs: to which they are fitted.
    """

    laws: tuple[LossLaw, ...]
    name: str
    quantity: str = FIRST_BITS
    runs: tuple[PastRun, ...] = ()

    def losses(self, planned: Planned) -> list[float]:
        """Returns the loss of a planned run by each law."""
        return [law.loss(*get_size(planned, self.quantity)) for law in self.laws]


def choose_laws(runs: Sequence[PastRun], data: str, parameters: int, has_later_stages: bool) -> SizeComparison:
    """Returns the laws by which sizes are compared.

    What a user is left with is the model at the end: a small one that reads much text learns less in later stages. So
    with later stages the law is that of the bits per byte at the end, where enough past runs have them; else that after
    pretraining. With too few runs it is a published law, and none for models smaller than those it was fitted to.

    Args:
        runs: all past runs.
        data: of the recipe, as `describe_data` has it.
        parameters: of the recipe's model.
        has_later_stages: whether it has stages after pretraining.
    """
    kinds: dict[str, list[PastRun]] = {data: []}
    for run in of_same_text(runs, data):
        kinds.setdefault(run.data, []).append(run)
    kind = max(kinds, key=lambda each: len(group_dependent(kinds[each])))  # of equally many that of `data`
    own = select_runs(kinds[kind], kind, FIRST_BITS)
    groups = group_dependent(own)
    whole = [run for run in select_runs(own, kind, BITS) if run.later_flops > 0]
    if has_later_stages and len(group_dependent(whole)) >= MIN_LAW_RUNS:
        return _fit_comparison(whole, BITS, "at the end")
    if len(groups) >= MIN_LAW_RUNS:
        return _fit_comparison(own, FIRST_BITS, "after pretraining")
    few = f"{_count(own, groups)} of this text, of at least {MIN_LAW_RUNS}"
    if parameters >= PUBLISHED_PARAMETERS:
        return SizeComparison((REFIT,), f"refit-2024 (arXiv 2404.10102): {few}")
    return SizeComparison((), f"none: {few}, so the depth is the recipe's")


def _fit_comparison(runs: Sequence[PastRun], quantity: str, when: str) -> SizeComparison:
    groups = group_dependent(runs)
    laws = fit_runs(runs, None, quantity)
    laws += [fit_runs(others, None, quantity)[0] for _, others in leave_out_each(groups)]
    name = f"of bits per byte {when}, fitted to {_count(runs, groups)}"
    return SizeComparison(tuple(laws), name, quantity, tuple(runs))


def forecast_bits(planned: Planned, runs: Sequence[PastRun]) -> Forecast:
    """Returns the bits per byte after pretraining."""
    own = select_runs(runs, planned.data, FIRST_BITS)
    groups = group_dependent(own)
    if len(groups) < MIN_LAW_RUNS:
        published = find_law("nanochat")
        value = float(published.predict(6 * planned.parameters * planned.tokens)["bits_per_byte"])
        outside = count_doublings_outside(6.0 * planned.parameters * planned.tokens, (1e18, 1e19)) / 2
        few = f"{_count(own, groups)} of this text, of at least {MIN_LAW_RUNS}"
        note = f"law {published.name}: {few}; of web text"
        return _widen(FIRST_BITS, math.log(value), UNKNOWN_SPREAD, outside, len(groups), note)
    full, *middles = (math.log(law.loss(*get_size(planned))) for law in fit_runs(own, planned))
    errors = []
    for group, others in leave_out_each(groups):
        found = [math.log(run.measured[FIRST_BITS] / fit_runs(others, run)[0].loss(*get_size(run))) for run in group]
        beyond = [count_size_outside(run, others) for run in group]
        errors.append(max(map(_error_inside, found, beyond)))
        middles.append(math.log(fit_runs(others, planned)[0].loss(*get_size(planned))))
    spread = max(abs(middle - full) for middle in middles)  # of laws: large where they are asked beyond the runs
    other = _spread_of_features(planned, own)
    radius = math.hypot(quantile_radius(errors), spread, NORMAL_95 * MISFIT, NORMAL_95 * other)
    note = "past runs with other features of the model count too" if other else ""
    return _widen(FIRST_BITS, full, radius, count_size_outside(planned, own), len(groups), note)


def forecast_last_bits(planned: Planned, runs: Sequence[PastRun]) -> Forecast | None:
    """Returns the bits per byte at the end: those after pretraining, times what later stages have made of them.

    None without later stages, or where too few past runs had some.
    """
    own = [
        run
        for run in select_runs(select_runs(runs, planned.data, BITS), planned.data, FIRST_BITS)
        if run.later_flops > 0
    ]
    groups = group_dependent(own)
    if planned.later_flops <= 0 or len(groups) < MIN_LAW_RUNS:
        return None
    first = forecast_bits(planned, runs)
    changes = [[math.log(run.measured[BITS] / run.measured[FIRST_BITS]) for run in group] for group in groups]
    usual = median(change for group in changes for change in group)
    errors = [max(abs(change - usual) for change in group) for group in changes]
    radius = math.hypot(math.log(first.high / first.value), quantile_radius(errors))
    middle = math.log(first.value) + usual
    return Forecast(
        BITS, math.exp(middle), math.exp(middle - radius), math.exp(middle + radius), len(groups), first.note
    )


def count_size_outside(run: PastRun | Planned, known: Sequence[PastRun]) -> float:
    """Returns by how many doublings the size of a run lies outside of the known ones', in parameters and in tokens.

    The tokens are compared with those of the runs of its size: of the next sizes above and below, where none has it.
    """
    parameters, tokens = get_size(run)
    sizes = {each.parameters for each in known}
    near = {max((size for size in sizes if size <= parameters), default=0.0)}
    near |= {min((size for size in sizes if size >= parameters), default=0.0)}
    of_size = [get_size(each)[1] for each in known if each.parameters in near]
    return count_doublings_outside(parameters, list(sizes)) + count_doublings_outside(tokens, of_size)


def _error_inside(error: float, outside: float) -> float:
    """Returns the size of an error as it counts for an interval inside of the past runs: `_widen` makes it this."""
    return max(0.0, abs(error) - BEYOND * outside) / (1 + WIDENING * outside)


def _widen(name: str, middle: float, radius: float, outside: float, runs: int, note: str) -> Forecast:
    """Returns a forecast on a log scale, wider outside of the past runs."""
    wider = radius * (1 + WIDENING * outside) + BEYOND * outside
    if outside > 0.1 and not note:
        times = f"the interval is {wider / radius:.1f} times as wide" if radius else "the interval is wider"
        note = f"beyond the past runs by a factor of {2**outside:.1f}: {times}"
    radius = wider
    return Forecast(name, math.exp(middle), math.exp(middle - radius), math.exp(middle + radius), runs, note)


# ---- exams, time, memory ----


def _logit(share: float) -> float:
    share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
    return math.log(share / (1 - share))


def _round_to_ends(share: float) -> float:
    """Returns 0 or 1 for a share nearer to it than the fit tells apart: an interval that ends there includes it."""
    return 0.0 if share <= LEAST_SHARE else 1.0 if share >= 1 - LEAST_SHARE else share


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
    measured = [run for run in runs if exam in run.measured and run.later_flops > 0]
    own = thin_runs(_prefer_own_features(measured, planned.data, MIN_EXAM_RUNS))
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
    low, high = (_round_to_ends(_share(end)) for end in (middle - radius, middle + radius))
    return Forecast(exam, _share(middle), low, high, len(groups), note)


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
    found.append(forecast_bits(planned, runs))
    if (last := forecast_last_bits(planned, runs)) is not None:
        found.append(last)
    found += [forecast for exam in exams if (forecast := forecast_exam(planned, runs, exam)) is not None]
    return found
