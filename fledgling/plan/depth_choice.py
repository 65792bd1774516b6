"""Which of the depths that fit a budget is taken.

A law that was fitted to few runs, or that extrapolates, changes with every run that it is fitted to. So depths are
compared by the upper end of the 90 % interval of their forecast, which is higher where the law extrapolates, and among
those with the same upper end by the forecast itself. Start with `choose_laws`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fledgling.plan.bits_forecast import BitsForecaster, fit_runs
from fledgling.plan.comparable_runs import (
    MIN_LAW_RUNS,
    Planned,
    describe_run_count,
    get_size,
    leave_out_each,
    select_runs,
)
from fledgling.plan.interval import Forecast
from fledgling.plan.past_runs import FIRST_BITS, PastRun, group_dependent, of_same_text
from fledgling.plan.scaling_laws import REFIT
from fledgling.plan.shifted_loss import LossLaw
from fledgling.record.forecast_names import BITS

PUBLISHED_PARAMETERS = 20_000_000  # of the smallest models that a published law says something about
MIN_DEPTH_GAIN = 0.005  # of the loss: what is nearer counts as the same
MAX_COMPARED = 6  # depths of which a forecast is made: each takes as many fits as there are past runs


@dataclass(frozen=True)
class SizeComparison:
    """The laws and past runs by which sizes are compared.

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

    def choose(self, found: Mapping[int, Planned], own: int) -> int:
        """Returns a depth.

        Of the depths whose interval has the lowest upper end, within `MIN_DEPTH_GAIN`, the one with the least forecast.
        If the recipe's depth is among them it stays, unless all laws and the forecast find another one better.

        Args:
            found: what is planned of each depth; at least one.
            own: the recipe's depth, which need not be among them.
        """
        if len(found) == 1 or not self.laws:
            return own if own in found else next(iter(found))
        losses = {depth: self.losses(planned) for depth, planned in found.items()}
        if self.runs:
            forecasts = self._forecast(found, losses, own)
            limit = (1 + MIN_DEPTH_GAIN) * min(each.high for each in forecasts.values())
            values = {depth: each.value for depth, each in forecasts.items() if each.high <= limit}
        else:  # of a published law, which has no interval
            values = {depth: each[0] for depth, each in losses.items()}
        if own in values:
            enough = [loss * (1 - MIN_DEPTH_GAIN) for loss in losses[own]]
            better = [depth for depth in values if all(map(operator.lt, losses[depth], enough))]
            values = {depth: values[depth] for depth in (own, *better)}
        return min(values, key=lambda depth: values[depth])

    def _forecast(
        self, found: Mapping[int, Planned], losses: Mapping[int, Sequence[float]], own: int
    ) -> dict[int, Forecast]:
        """Returns the forecasts of the recipe's depth and of those that are best by their worst law."""
        shortlist = sorted(found, key=lambda depth: (depth != own, max(losses[depth])))[:MAX_COMPARED]
        data = self.runs[0].data
        forecaster = BitsForecaster(self.runs, data, self.quantity)
        return {depth: forecaster.forecast(replace(found[depth], data=data)) for depth in shortlist}


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
    few = f"{describe_run_count(own, groups)} of this text, of at least {MIN_LAW_RUNS}"
    if parameters >= PUBLISHED_PARAMETERS:
        return SizeComparison((REFIT,), f"refit-2024 (arXiv 2404.10102): {few}")
    return SizeComparison((), f"none: {few}, so the depth is the recipe's")


def _fit_comparison(runs: Sequence[PastRun], quantity: str, when: str) -> SizeComparison:
    groups = group_dependent(runs)
    laws = fit_runs(runs, None, quantity)
    laws += [fit_runs(others, None, quantity)[0] for _, others in leave_out_each(groups)]
    name = f"of bits per byte {when}, fitted to {describe_run_count(runs, groups)}"
    return SizeComparison(tuple(laws), name, quantity, tuple(runs))
