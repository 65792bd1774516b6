"""A sweep analysed: surface and isoFLOP bowls in every way of counting N, and the largest budget foretold.

The one idea: a fit is worth what it predicts. Every fit is made twice, with all runs and without the largest budget;
the runs left out are then predicted and the errors reported beside the fit's own.

Losses are bits per byte. C is the FLOPs that the planner counts (attention included); the surface's optimum is
sought on the C of the sweep, by the FLOPs a token of the sizes that were run, not by 6 N D. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fledgling.config import UserError
from fledgling.plan.scaling_laws import WITH_HEAD, ChinchillaLoss, ScalingLaw
from fledgling.scaling import fits, isoflop
from fledgling.scaling.fits import Estimate, SurfaceFit
from fledgling.scaling.isoflop import IsoFlopFit
from fledgling.scaling.results import Sweep, SweepRun, finite_or_none, format_flops

PRIMARY_COUNT = WITH_HEAD  # the count that FLOPs follow most closely: what is shown first and predicted with
MIN_SIZES, MIN_BUDGETS = 3, 3  # so that the largest budget can be held out and six runs remain


@dataclass(frozen=True)
class HeldOut:
    """The largest budget, predicted from the others: (run, predicted bits per byte with interval) and the bowl."""

    budget: float
    runs: tuple[tuple[SweepRun, Estimate], ...]
    predicted_N: Estimate | None
    measured_N: float | None

    @property
    def errors(self) -> list[float]:
        """predicted / measured - 1 of every run."""
        return [estimate.value / run.bits_per_byte - 1 for run, estimate in self.runs]

    @property
    def mean_error(self) -> float:
        """Mean size of the relative error."""
        return sum(map(abs, self.errors)) / len(self.errors)


@dataclass(frozen=True)
class SweepFit:
    """Everything fitted in one way of counting N; `keys`: the ways that give the same number for these models."""

    count_names: tuple[str, ...]
    surface: SurfaceFit
    isoflop: IsoFlopFit
    held_out: HeldOut
    flops_per_N: tuple[float, float]  # log(FLOPs a token) = first + second log N, over the sizes run

    @property
    def count_name(self) -> str:
        """One of the ways, to look N up by."""
        return self.count_names[0]

    @property
    def counts(self) -> str:
        """Which N, in words."""
        return " = ".join(self.count_names)

    def optimum(self, C: float, law: ChinchillaLoss | None = None) -> tuple[float, float]:
        """Return the (N, D) of least loss for C FLOPs, with the FLOPs a token of these models.

        With F = exp(first) N^second FLOPs a token, D = C / F, and the surface's minimum in N is in closed form.
        """
        law = law or self.surface.law
        first, second = self.flops_per_N
        power = law.alpha + second * law.beta
        D_of_one = C / math.exp(first)  # tokens if N were 1
        N = (law.alpha * law.A * D_of_one**law.beta / (second * law.beta * law.B)) ** (1 / power)
        return N, D_of_one / N**second

    def optimum_interval(self, C: float) -> tuple[Estimate, Estimate]:
        """Return N and the loss at the surface's optimum for C FLOPs, with 95 % intervals."""
        N = self.surface.interval(lambda law: self.optimum(C, law)[0])
        loss = self.surface.interval(lambda law: law.loss(*self.optimum(C, law)))
        return N, loss

    def exponents(self) -> tuple[Estimate, Estimate]:
        """Return a and b of N_opt ~ C^a and D_opt ~ C^b that the surface implies with C = 6 N D."""
        a = self.surface.interval(lambda law: law.beta / (law.alpha + law.beta))
        b = self.surface.interval(lambda law: law.alpha / (law.alpha + law.beta))
        return a, b

    def law(self, name: str) -> ScalingLaw:
        """Return the fitted surface as a law beside the published ones."""
        return ScalingLaw(name, "this sweep", self.counts, self.surface.law, self.surface.law, in_bits_per_byte=True)


@dataclass(frozen=True)
class SweepAnalysis:
    """A sweep and its fits, one for every way of counting N that differs."""

    sweep: Sweep
    fits: tuple[SweepFit, ...]

    def fit_for(self, key: str) -> SweepFit:
        """Return the fits of one way of counting, by its name."""
        return next(one for one in self.fits if key in one.count_names)


def analyze_sweep(sweep: Sweep, resamples: int = fits.RESAMPLES) -> SweepAnalysis:
    """Return the fits of a sweep. Raises UserError, saying what would work, when its runs are too few."""
    require_enough_runs(sweep)
    seen: dict[tuple[int, ...], list[str]] = {}
    for key in sweep.runs[0].parameters:
        sizes = tuple(run.parameters[key] for run in sweep.runs)
        seen.setdefault(sizes, []).append(key)
    return SweepAnalysis(sweep, tuple(_fits(tuple(keys), sweep.runs, resamples) for keys in seen.values()))


def require_enough_runs(sweep: Sweep) -> None:
    """Raise UserError unless there are three budgets with three sizes each."""
    budgets = sorted({run.budget for run in sweep.runs})
    sizes = {budget: {run.depth for run in sweep.runs if run.budget == budget} for budget in budgets}
    full = [budget for budget in budgets if len(sizes[budget]) >= MIN_SIZES]
    if len(full) >= MIN_BUDGETS and len(full) == len(budgets):
        return
    depths = sorted({run.depth for run in sweep.runs})
    more_depths = (depths + [d for d in range(1, 9) if d not in depths])[: max(MIN_SIZES, len(depths))]
    more_budgets = (budgets + [budgets[-1] * 2 ** (i + 1) for i in range(MIN_BUDGETS)])[
        : max(MIN_BUDGETS, len(budgets))
    ]
    command = (
        f"--depths {','.join(map(str, sorted(more_depths)))} --budgets {','.join(map(format_flops, more_budgets))}"
    )
    raise UserError(
        f"{sweep.path} has {len(sweep.runs)} finished runs, {len(full)} budgets with {MIN_SIZES} sizes or more; "
        f"a fit needs {MIN_BUDGETS} budgets of {MIN_SIZES} sizes each: "
        f"fledgling scaling run {command} --out {sweep.path}"
    )


def _fits(keys: tuple[str, ...], runs: Sequence[SweepRun], resamples: int) -> SweepFit:
    N, D, C, loss = _columns(runs, keys[0])
    per_token = [math.log(run.flops_per_token) for run in runs]
    second, first = np.polyfit(np.log(N), per_token, 1)
    whole = fits.fit_surface(N, D, loss, resamples)
    bowls = isoflop.fit_isoflop(N, D, C, loss, resamples)
    return SweepFit(keys, whole, bowls, _held_out(runs, keys[0], bowls, resamples), (float(first), float(second)))


def _columns(runs: Sequence[SweepRun], key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """N, D, the budget and the loss of every run."""
    return (
        [float(run.parameters[key]) for run in runs],
        [float(run.tokens) for run in runs],
        [run.budget for run in runs],
        [run.bits_per_byte for run in runs],
    )


def _held_out(runs: Sequence[SweepRun], key: str, bowls: IsoFlopFit, resamples: int) -> HeldOut:
    largest = max(run.budget for run in runs)
    known = [run for run in runs if run.budget < largest]
    N, D, C, loss = _columns(known, key)
    surface = fits.fit_surface(N, D, loss, resamples)
    trend = isoflop.fit_isoflop(N, D, C, loss, resamples).N
    left_out = [run for run in runs if run.budget == largest]
    predicted = tuple((run, predict_loss(surface, run.parameters[key], run.tokens)) for run in left_out)
    measured = next((bowl for bowl in bowls.curves if bowl.budget == largest), None)
    return HeldOut(
        largest, predicted, trend.value_at(largest) if trend else None, measured.N.value if measured else None
    )


def predict_loss(surface: SurfaceFit, N: float, D: float) -> Estimate:
    """Return the loss of a run yet to be made, with an interval that has its own noise in it.

    The interval of the surface there and a run's noise, two independent deviations, add in squares.
    """
    there = surface.interval(lambda law: law.loss(N, D))
    own = 1.96 * surface.widening * surface.noise
    low, high = (math.hypot(math.log(edge / there.value), own) for edge in (there.low, there.high))
    return Estimate(there.value, there.value * math.exp(-low), there.value * math.exp(high))


# ---- for programs --------------------------------------------------------------------------------


def analysis_to_json(analysis: SweepAnalysis) -> dict[str, Any]:
    """Return the analysis as JSON values: every fit with its intervals."""
    sweep = analysis.sweep
    return {
        "runs": [{**vars(run), "flops": run.flops} for run in sweep.runs],
        "bytes_per_token": sweep.bytes_per_token,
        "epochs": sweep.epochs,
        "fits": [_fit_json(one) for one in analysis.fits],
    }


def _fit_json(one: SweepFit) -> dict[str, Any]:
    a, b = one.exponents()
    trends = {name: getattr(one.isoflop, name) for name in ("N", "D", "loss")}
    return {
        "counts": one.counts,
        "surface": {
            **{name: estimate_to_json(value) for name, value in one.surface.intervals.items()},
            "noise": one.surface.noise,
            "N_exponent": estimate_to_json(a),
            "D_exponent": estimate_to_json(b),
        },
        "bowls": [
            {
                "budget": bowl.budget,
                "inside": bowl.is_interior,
                "N": estimate_to_json(bowl.N),
                "D": estimate_to_json(bowl.D),
                "bits_per_byte": estimate_to_json(bowl.loss),
            }
            for bowl in one.isoflop.curves
        ],
        "frontier": {
            name: {"scale": trend.law.scale, "exponent": estimate_to_json(trend.exponent)}
            for name, trend in trends.items()
            if trend
        },
        "held_out": {
            "budget": one.held_out.budget,
            "mean_error": one.held_out.mean_error,
            "worst_error": max(map(abs, one.held_out.errors)),
            "runs": [
                {"name": run.name, "measured": run.bits_per_byte, "predicted": estimate_to_json(value)}
                for run, value in one.held_out.runs
            ],
            "N_predicted": estimate_to_json(one.held_out.predicted_N) if one.held_out.predicted_N else None,
            "N_measured": one.held_out.measured_N,
        },
    }


def estimate_to_json(value: Estimate) -> dict[str, float | None]:
    """Return an estimate as JSON values; an interval that is not known is null."""
    return {"value": value.value, "low": finite_or_none(value.low), "high": finite_or_none(value.high)}
