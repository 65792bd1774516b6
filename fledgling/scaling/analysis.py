"""Analyzes a sweep: surface and isoFLOP fits for every way of counting N, and predictions of the largest budget.

A fit is judged by its predictions: every fit is made twice, with all runs and without the largest budget; the runs left
out are then predicted, and the errors are reported next to the fit's own.

Losses are bits per byte. C is the FLOPs that the planner counts (attention included); the optimum of the surface is
computed on the C of the sweep, with the FLOPs per token of the trained sizes, not with 6 N D. Does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import UserError, require_number
from fledgling.plan.critical_batch import optimal_run
from fledgling.plan.scaling_laws import BYTES_PER_TOKEN, LAWS, WITH_HEAD, ChinchillaLoss, ScalingLaw, check_budget
from fledgling.record.progress_bar import format_count
from fledgling.scaling import fits
from fledgling.scaling.fits import Estimate, SurfaceFit
from fledgling.scaling.isoflop import IsoFlopFit, fit_isoflop
from fledgling.scaling.results import Sweep, SweepRun, finite_or_none, format_flops, load_sweep

PRIMARY_COUNT = WITH_HEAD  # the count that FLOPs follow most closely: shown first and used for predictions
MIN_SIZES, MIN_BUDGETS = 3, 3  # leaves six runs when the largest budget is held out


@dataclass(frozen=True)
class HeldOut:
    """The largest budget, predicted from the others: (run, predicted bits per byte), and the optimal N."""

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
        """Mean absolute relative error."""
        return sum(map(abs, self.errors)) / len(self.errors)


@dataclass(frozen=True)
class SweepFit:
    """All fits for one way of counting N; `count_names`: the ways that give the same number for these models."""

    count_names: tuple[str, ...]
    surface: SurfaceFit
    isoflop: IsoFlopFit
    held_out: HeldOut
    flops_per_N: tuple[float, float]  # log(FLOPs per token) = first + second log N, over the trained sizes

    @property
    def count_name(self) -> str:
        """One of the ways of counting, to look up N."""
        return self.count_names[0]

    @property
    def counts(self) -> str:
        """A description of which N is counted."""
        return " = ".join(self.count_names)

    def optimum(self, C: float, law: ChinchillaLoss | None = None) -> tuple[float, float]:
        """Returns the (N, D) of least loss for C FLOPs, with the FLOPs per token of these models.

        With F = exp(first) N^second FLOPs per token, D = C / F, and the surface's minimum in N has a closed form.
        """
        law = law or self.surface.law
        first, second = self.flops_per_N
        exponent = law.alpha + second * law.beta
        unit_tokens = C / math.exp(first)  # tokens if N were 1
        N = (law.alpha * law.A * unit_tokens**law.beta / (second * law.beta * law.B)) ** (1 / exponent)
        return N, unit_tokens / N**second

    def optimum_interval(self, C: float) -> tuple[Estimate, Estimate]:
        """Returns N and the loss at the surface's optimum for C FLOPs, with 95 % intervals."""
        N = self.surface.interval(lambda law: self.optimum(C, law)[0])
        loss = self.surface.interval(lambda law: law.loss(*self.optimum(C, law)))
        return N, loss

    def exponents(self) -> tuple[Estimate, Estimate]:
        """Returns a and b of N_opt ~ C^a and D_opt ~ C^b that the surface implies with C = 6 N D."""
        a = self.surface.interval(lambda law: law.beta / (law.alpha + law.beta))
        b = self.surface.interval(lambda law: law.alpha / (law.alpha + law.beta))
        return a, b

    def law(self, name: str) -> ScalingLaw:
        """Returns the fitted surface as a `ScalingLaw`."""
        return ScalingLaw(name, "this sweep", self.counts, self.surface.law, self.surface.law, in_bits_per_byte=True)


@dataclass(frozen=True)
class SweepAnalysis:
    """A sweep and its fits, one for every distinct way of counting N."""

    sweep: Sweep
    fits: tuple[SweepFit, ...]

    def fit_for(self, key: str) -> SweepFit:
        """Returns the fit for one way of counting, by its name."""
        return next(fit for fit in self.fits if key in fit.count_names)


def analyze_sweep(sweep: Sweep, resamples: int = fits.RESAMPLES) -> SweepAnalysis:
    """Returns the fits of a sweep. Raises UserError with a working command if it has too few runs."""
    require_enough_runs(sweep)
    names_by_sizes: dict[tuple[int, ...], list[str]] = {}
    for key in sweep.runs[0].parameters:
        sizes = tuple(run.parameters[key] for run in sweep.runs)
        names_by_sizes.setdefault(sizes, []).append(key)
    return SweepAnalysis(
        sweep, tuple(_fit_sweep(tuple(keys), sweep.runs, resamples) for keys in names_by_sizes.values())
    )


def require_enough_runs(sweep: Sweep) -> None:
    """Raises UserError unless there are three budgets with three sizes each."""
    budgets = sorted({run.budget for run in sweep.runs})
    sizes = {budget: {run.depth for run in sweep.runs if run.budget == budget} for budget in budgets}
    complete = [budget for budget in budgets if len(sizes[budget]) >= MIN_SIZES]
    if len(complete) >= MIN_BUDGETS and len(complete) == len(budgets):
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
        f"{sweep.path} has {len(sweep.runs)} finished runs, {len(complete)} budgets with {MIN_SIZES} sizes or more; "
        f"a fit needs {MIN_BUDGETS} budgets of {MIN_SIZES} sizes each: "
        f"fledgling scaling run {command} --out {sweep.path}"
    )


def _fit_sweep(keys: tuple[str, ...], runs: Sequence[SweepRun], resamples: int) -> SweepFit:
    N, D, C, loss = _select_columns(runs, keys[0])
    per_token = [math.log(run.flops_per_token) for run in runs]
    second, first = np.polyfit(np.log(N), per_token, 1)
    surface = fits.fit_surface(N, D, loss, resamples)
    isoflop = fit_isoflop(N, D, C, loss, resamples)
    return SweepFit(keys, surface, isoflop, _held_out(runs, keys[0], isoflop, resamples), (float(first), float(second)))


def _select_columns(runs: Sequence[SweepRun], key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Returns N, D, the budget and the loss of every run."""
    return (
        [float(run.parameters[key]) for run in runs],
        [float(run.tokens) for run in runs],
        [run.budget for run in runs],
        [run.bits_per_byte for run in runs],
    )


def _held_out(runs: Sequence[SweepRun], key: str, isoflop: IsoFlopFit, resamples: int) -> HeldOut:
    largest = max(run.budget for run in runs)
    smaller = [run for run in runs if run.budget < largest]
    N, D, C, loss = _select_columns(smaller, key)
    surface = fits.fit_surface(N, D, loss, resamples)
    size_trend = fit_isoflop(N, D, C, loss, resamples).N
    left_out = [run for run in runs if run.budget == largest]
    predicted = tuple((run, predict_loss(surface, run.parameters[key], run.tokens)) for run in left_out)
    measured = next((curve for curve in isoflop.curves if curve.budget == largest), None)
    return HeldOut(
        largest, predicted, size_trend.value_at(largest) if size_trend else None, measured.N.value if measured else None
    )


def predict_loss(surface: SurfaceFit, N: float, D: float) -> Estimate:
    """Returns the loss of a future run, with an interval that includes the run's own noise.

    The interval of the surface and the noise of a run are two independent deviations, so they add in squares.
    """
    fitted = surface.interval(lambda law: law.loss(N, D))
    run_noise = 1.96 * surface.widening * surface.noise
    low, high = (math.hypot(math.log(edge / fitted.value), run_noise) for edge in (fitted.low, fitted.high))
    return Estimate(fitted.value, fitted.value * math.exp(-low), fitted.value * math.exp(high))


# ---- JSON ----


def analysis_to_json(analysis: SweepAnalysis) -> dict[str, Any]:
    """Returns the analysis as JSON values: every fit with its intervals."""
    sweep = analysis.sweep
    return {
        "runs": [{**vars(run), "flops": run.flops} for run in sweep.runs],
        "bytes_per_token": sweep.bytes_per_token,
        "epochs": sweep.epochs,
        "fits": [_fit_json(fit) for fit in analysis.fits],
    }


def _fit_json(fit: SweepFit) -> dict[str, Any]:
    a, b = fit.exponents()
    trends = {name: getattr(fit.isoflop, name) for name in ("N", "D", "loss")}
    return {
        "counts": fit.counts,
        "surface": {
            **{name: estimate_to_json(value) for name, value in fit.surface.intervals.items()},
            "noise": fit.surface.noise,
            "N_exponent": estimate_to_json(a),
            "D_exponent": estimate_to_json(b),
        },
        "isoflop_curves": [
            {
                "budget": curve.budget,
                "interior": curve.is_interior,
                "N": estimate_to_json(curve.N),
                "D": estimate_to_json(curve.D),
                "bits_per_byte": estimate_to_json(curve.loss),
            }
            for curve in fit.isoflop.curves
        ],
        "frontier": {
            name: {"scale": trend.law.scale, "exponent": estimate_to_json(trend.exponent)}
            for name, trend in trends.items()
            if trend
        },
        "held_out": {
            "budget": fit.held_out.budget,
            "mean_error": fit.held_out.mean_error,
            "worst_error": max(map(abs, fit.held_out.errors)),
            "runs": [
                {"name": run.name, "measured": run.bits_per_byte, "predicted": estimate_to_json(value)}
                for run, value in fit.held_out.runs
            ],
            "N_predicted": estimate_to_json(fit.held_out.predicted_N) if fit.held_out.predicted_N else None,
            "N_measured": fit.held_out.measured_N,
        },
    }


def estimate_to_json(value: Estimate) -> dict[str, float | None]:
    """Returns an estimate as JSON values; an unknown interval is null."""
    return {"value": value.value, "low": finite_or_none(value.low), "high": finite_or_none(value.high)}


# ---- predictions of published laws ----

PREDICTION_HEADER = ("law", "N", "D", "D / N", "nats", "bits per byte", "which N")


def predict_budget(budget: float, bytes_per_token: float | None = None, runs: Path | None = None) -> dict[str, Any]:
    """Returns the optimum of every published law, and of the sweep in `runs`, for a budget of FLOPs, as JSON values.

    bytes_per_token: converts nats per token to bits per byte; default: what the sweep measured, else 4.8. Raises
    UserError for an invalid budget or number of bytes.
    """
    C, laws, size = check_budget(budget), list(LAWS.values()), BYTES_PER_TOKEN
    notes: tuple[str, ...] = ()
    if bytes_per_token is not None:
        size = require_number("--bytes-per-token", bytes_per_token, 1_000, "4.8")
    if runs:
        sweep = load_sweep(runs)
        notes = sweep.notes
        size = sweep.bytes_per_token if bytes_per_token is None else bytes_per_token
        laws.append(analyze_sweep(sweep).fit_for(PRIMARY_COUNT).law(runs.name))
    run = optimal_run(C)
    kaplan = {"parameters": run.N, "batch_tokens": run.B, "steps": run.S, "nats_per_token": run.loss}
    predictions = [law.predict(C, size) for law in laws]
    values = {"budget": C, "bytes_per_token": size, "laws": predictions, "kaplan_at_critical_batch": kaplan}
    return {**values, "left_out": list(notes)}


def prediction_row(prediction: dict[str, Any]) -> tuple[str, ...]:
    """Returns one law's optimum as cells."""
    nats, bits = prediction["nats_per_token"], prediction["bits_per_byte"]
    return (
        prediction["law"],
        format_count(prediction["parameters"]),
        format_count(prediction["tokens"]),
        f"{prediction['tokens_per_parameter']:.3g}",
        "-" if nats is None else f"{nats:.3f}",
        "-" if bits is None else f"{bits:.3f}",
        prediction["counts"],
    )
