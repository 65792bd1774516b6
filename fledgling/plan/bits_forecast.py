"""The bits per byte that a run will come to, by a law of parameters and tokens that is fitted to the past runs.

Past runs are predicted by a fit to the others, without those that began in the same way; such a group has one error,
its largest. Where a law extrapolates, the interval ends at the loss of past runs that were smaller and read less
text, and begins at that of larger ones that read more. The bits per byte at the end are those after pretraining, times
the median of what later stages have made of them. Start with `forecast_bits`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import median

from fledgling.plan.comparable_runs import (
    MIN_LAW_RUNS,
    Planned,
    describe_run_count,
    get_extent,
    get_size,
    leave_out_each,
    prefer_own_features,
    select_runs,
    split_by_features,
)
from fledgling.plan.interval import (
    NORMAL_95,
    UNKNOWN_SPREAD,
    Forecast,
    count_doublings_outside,
    error_inside,
    limit_ends,
    quantile_radius,
    widen,
)
from fledgling.plan.past_runs import FIRST_BITS, PastRun, count_vocabulary_doublings, group_dependent
from fledgling.plan.scaling_laws import find_law
from fledgling.plan.shifted_loss import MISFIT, ShiftedLoss, fit_laws
from fledgling.record.forecast_names import BITS

OTHER_FEATURES = 0.06  # of the logarithm: what the features of nanochat-2026 change (docs/features.md); also taken for
# each doubling of the vocabulary
MAX_PASSES = 40  # after which text that is repeated is worth nothing, and may do harm (arXiv 2305.16264)


def fit_runs(
    runs: Sequence[PastRun], target: PastRun | Planned | None = None, quantity: str = FIRST_BITS
) -> list[ShiftedLoss]:
    """Returns the law of the past runs, and then others that fit about as well.

    Args:
        runs: to which it is fitted.
        target: the run that the law is for: runs of about its length count most. None: all count alike.
        quantity: `FIRST_BITS` after pretraining, or `BITS` at the end of the run.
    """
    tokens = get_size(target, quantity)[1] if target else None
    return fit_laws([get_size(run, quantity) for run in runs], [run.measured[quantity] for run in runs], tokens)


class BitsForecaster:
    """Forecasts of the bits per byte of runs on one text.

    Attributes:
        data: of the planned runs (`describe_data`); own runs are those with the same.
        quantity: `FIRST_BITS`, after pretraining, or `BITS`, at the end of the run.
        runs: those that a law is fitted to: own ones, and with few of them others, scaled (`_scale_others`).
        groups: of them, independent of each other.
    """

    def __init__(self, runs: Sequence[PastRun], data: str, quantity: str = FIRST_BITS) -> None:
        """Selects among all past runs; data and quantity as above."""
        self.data, self.quantity = data, quantity
        self._own, self._others = split_by_features(select_runs(runs, data, quantity), data)
        is_enough = len(group_dependent(self._others)) >= MIN_LAW_RUNS
        self._law_of_others = fit_runs(self._others, None, quantity)[0] if self._own and is_enough else None
        self.runs = self._scale_others(self._own)
        self.groups = group_dependent(self.runs)

    @property
    def is_fitted(self) -> bool:
        """Whether there are enough past runs for a law of their own."""
        return len(self.groups) >= MIN_LAW_RUNS

    def _scale_others(self, own: list[PastRun]) -> list[PastRun]:
        """Returns own runs, and those with another vocabulary or other features, with a loss as own ones have it.

        The factor is the median of the losses of `own` to those that a law of the others gives their sizes; 1 without
        own runs, or with too few others for a law.
        """
        law, quantity = self._law_of_others, self.quantity
        if law is None:
            return [*own, *self._others]
        factor = median(run.measured[quantity] / law.loss(*get_size(run, quantity)) for run in own)
        scaled = [{**run.measured, quantity: factor * run.measured[quantity]} for run in self._others]
        return [*own, *(replace(run, measured=each) for run, each in zip(self._others, scaled, strict=True))]

    def _leave_out_each(self) -> Iterator[tuple[list[PastRun], list[PastRun]]]:
        """Yields each group of runs, and all other runs, scaled without the group where other own ones are left."""
        for group, rest in leave_out_each(self.groups):
            own, _ = split_by_features(rest, self.data)
            yield group, self._scale_others(own) if own and group[0].data == self.data else rest

    @cached_property
    def _has_own_errors(self) -> bool:
        return len(group_dependent(self._own)) >= MIN_LAW_RUNS

    def _counts_error(self, run: PastRun) -> bool:
        """Returns whether the error of a past run says how far off a forecast is.

        With enough own runs it is theirs; with fewer, the factor that scales the others depends too much on each.
        """
        is_own = run.data == self.data
        return is_own if self._has_own_errors else not is_own or self._law_of_others is None

    @cached_property
    def usual_error(self) -> float:
        """The 90 % quantile of the past runs' errors, each predicted from the others; of the natural logarithm.

        Errors count as they would inside of the range of the past runs. It takes a fit for each group, once.
        """
        errors = []
        for group, others in self._leave_out_each():
            if self._counts_error(group[0]):
                found = [math.log(run.measured[self.quantity] / self._predict(run, others)) for run in group]
                errors.append(max(map(error_inside, found, [self._count_outside(run, others) for run in group])))
        return quantile_radius(errors)

    def _predict(self, run: PastRun | Planned, others: Sequence[PastRun]) -> float:
        return fit_runs(others, run, self.quantity)[0].loss(*get_size(run, self.quantity))

    def _count_outside(self, run: PastRun | Planned, known: Sequence[PastRun]) -> float:
        """Returns by how many doublings a run lies outside of the known ones, or if others are scaled, of these.

        The same depth has another number of parameters with another vocabulary.
        """
        outside = count_size_outside(run, known, self.quantity)
        _, others = split_by_features(known, self.data)
        is_scaled = self._law_of_others is not None and others
        return min(outside, count_size_outside(run, others, self.quantity)) if is_scaled else outside

    def forecast(self, planned: Planned) -> Forecast:
        """Returns the quantity by the law of the past runs, or with few of them by a published one.

        The interval has the usual error and what laws that fit as well, or lack a group of runs, say of this size. It
        is wider outside of the past runs (`widen`), up to the ends of `_find_ends`.
        """
        if not self.is_fitted:
            return self._by_published_law(planned)
        law, *others = fit_runs(self.runs, planned, self.quantity)
        size = get_size(planned, self.quantity)
        middle, values = math.log(law.loss(*size)), [math.log(other.loss(*size)) for other in others]
        values += [math.log(self._predict(planned, rest)) for _, rest in self._leave_out_each()]
        spread = max(abs(value - middle) for value in values)  # large where the laws extrapolate
        error = math.hypot(self.usual_error, NORMAL_95 * MISFIT, NORMAL_95 * self._error_of_others(planned))
        outside = self._count_outside(planned, self.runs)
        note = "past runs with another vocabulary or other features of the model count too" if self._others else ""
        wide = widen(self.quantity, middle, math.hypot(error, spread), outside, len(self.groups), note)
        return limit_ends(wide, *self._find_ends(planned, law, error)) if outside else wide

    def _error_of_others(self, planned: Planned) -> float:
        """Returns the error that runs with another vocabulary or other features add; of the natural logarithm.

        With enough own runs it counts outside of their sizes alone: inside, the usual error has it.
        """
        if not self._others:
            return 0.0
        doublings = max(count_vocabulary_doublings(run.data, planned.data) for run in self._others)
        beyond = count_size_outside(planned, self._own, self.quantity) if self._has_own_errors else 1.0
        return OTHER_FEATURES * max(1.0, doublings) * min(1.0, beyond)

    def _find_ends(self, planned: Planned, law: ShiftedLoss, error: float) -> tuple[float, float]:
        """Returns between which losses a run outside of the past ones lies, as more parameters or text do no harm.

        The upper end is the law's loss of the best past run with no more parameters and no more text of each stage,
        plus the error; beyond `MAX_PASSES` over its text it rises in proportion. The lower end is the law's loss of the
        worst past run with no fewer parameters and no less text, minus the error. Without such a run, and where the
        passes are not known, the ends are inf and 0.
        """
        if planned.passes is None:
            return 0.0, math.inf
        here = get_extent(planned, self.quantity)
        same = [run for run in self.runs if run.data == planned.data and (run.passes or 0.0) <= MAX_PASSES]
        losses = [(get_extent(run, self.quantity), law.loss(*get_size(run, self.quantity))) for run in same]
        less = [loss for there, loss in losses if all(map(operator.le, there, here))]
        more = [loss for there, loss in losses if all(map(operator.ge, there, here))]
        high = min(less, default=math.inf) * math.exp(error) * max(1.0, planned.passes / MAX_PASSES)
        return max(more, default=0.0) * math.exp(-error), high

    def _by_published_law(self, planned: Planned) -> Forecast:
        published, flops = find_law("nanochat"), 6.0 * planned.parameters * planned.tokens
        value = float(published.predict(flops)["bits_per_byte"])
        outside = count_doublings_outside(flops, (1e18, 1e19)) / 2
        few = f"{describe_run_count(self.runs, self.groups)} of this text, of at least {MIN_LAW_RUNS}"
        note = f"law {published.name}: {few}; of web text"
        return widen(self.quantity, math.log(value), UNKNOWN_SPREAD, outside, len(self.groups), note)


def forecast_bits(planned: Planned, runs: Sequence[PastRun]) -> Forecast:
    """Returns the bits per byte after pretraining."""
    return BitsForecaster(runs, planned.data).forecast(planned)


def forecast_last_bits(planned: Planned, runs: Sequence[PastRun], first: Forecast) -> Forecast | None:
    """Returns the bits per byte at the end: those after pretraining, times what later stages have made of them.

    None without later stages, or where too few past runs had some. Where enough of them had the same vocabulary and
    features, only these count, and of these where enough had the same wordings, only those: later stages consist of
    them for the most part.

    Args:
        planned: the run.
        runs: all past runs.
        first: `forecast_bits` of the same run and past runs.
    """
    whole = [run for run in runs if run.later_flops > 0]
    whole = select_runs(select_runs(whole, planned.data, BITS), planned.data, FIRST_BITS)
    whole = prefer_own_features(whole, planned.data, MIN_LAW_RUNS)
    groups = group_dependent([run for run in whole if run.wordings == planned.wordings])
    groups = groups if len(groups) >= MIN_LAW_RUNS else group_dependent(whole)
    if planned.later_flops <= 0 or len(groups) < MIN_LAW_RUNS:
        return None
    changes = [[math.log(run.measured[BITS] / run.measured[FIRST_BITS]) for run in group] for group in groups]
    usual = median(change for group in changes for change in group)
    spread = quantile_radius([max(abs(change - usual) for change in group) for group in changes])
    down, up = (math.hypot(math.log(end / first.value), spread) for end in (first.low, first.high))
    value = first.value * math.exp(usual)
    return Forecast(BITS, value, value * math.exp(-down), value * math.exp(up), len(groups), first.note)


def count_size_outside(run: PastRun | Planned, known: Sequence[PastRun], quantity: str = FIRST_BITS) -> float:
    """Returns by how many doublings the size of a run lies outside of the known ones', in parameters and in tokens.

    The tokens are compared with those of the runs of its size: of the next sizes above and below, where none has it.
    """
    parameters, tokens = get_size(run, quantity)
    sizes = {each.parameters for each in known}
    near = {max((size for size in sizes if size <= parameters), default=0.0)}
    near |= {min((size for size in sizes if size >= parameters), default=0.0)}
    of_size = [get_size(each, quantity)[1] for each in known if each.parameters in near]
    return count_doublings_outside(parameters, list(sizes)) + count_doublings_outside(tokens, of_size)
