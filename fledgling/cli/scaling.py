"""`fledgling scaling`: a sweep of depths and budgets, its fits, and what scaling laws advise for a budget."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from fledgling.cli.inference import inference
from fledgling.cli.options import Json, Overrides
from fledgling.config import UserError, load_recipe
from fledgling.runtime.exit_codes import STOPPED

if TYPE_CHECKING:
    from fledgling.scaling.analysis import SweepAnalysis
    from fledgling.scaling.results import CheckResult, SweepRun

app = App(name="scaling", help="How loss falls with size, data and compute, and errors with samples.")
app.command(inference)

OUT = Path("runs/scaling")


def say(text: str) -> None:
    """Print one line of progress."""
    print(text, file=sys.stderr)


def numbers(option: str, text: str) -> list[float]:
    """Return the numbers of a list with commas; raises UserError for anything else."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f'{option}: got "{text}", expected numbers with commas, such as 1e13,2e13') from None


@app.command
def run(
    *,
    depths: str | None = None,
    budgets: str | None = None,
    recipe: str = "scaling",
    out: Path | None = None,
    ablate: str | None = None,
    seeds: int = 3,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Train every depth at every budget, as ordinary runs; run it again to go on where it stopped.

    Parameters
    ----------
    depths
        Layers, with commas; width and heads follow. Default: 1,2,3,4.
    budgets
        Training FLOPs of a run, with commas. Default: 1e13,2e13,4e13; of an ablation one, 1e13.
    recipe
        A recipe's name or TOML file: everything but depth, steps and directory.
    out
        Where the runs go. Default: runs/scaling, or runs/ablation.
    ablate
        Instead of sizes, compare variants with the recipe as it is, at equal FLOPs: names with commas (gelu, swiglu,
        adamw, tied, ...; all), or table.key=value, several joined by +.
    seeds
        Of an ablation: how many runs of each, with different first weights and order of the text.
    """
    if ablate is not None:
        return compare(ablate, depths, budgets, seeds, recipe, overrides, out or Path("runs/ablation"), as_json)
    depths, budgets, out = depths or "1,2,3,4", budgets or "1e13,2e13,4e13", out or OUT
    chosen = load_recipe(recipe, overrides)
    layers = numbers("depths", depths)
    if any(depth != int(depth) for depth in layers):
        raise UserError(f'depths: got "{depths}", expected whole numbers, such as 1,2,3,4')
    sizes, amounts = [int(depth) for depth in layers], numbers("budgets", budgets)
    from fledgling.scaling.sweep import make_grid, run_sweep
    from fledgling.train.loop import TrainingStopped

    cells = make_grid(chosen, sizes, amounts, out)
    try:
        worked = run_sweep(chosen, cells, out, say, lambda one: print(line(one), flush=True))
    except TrainingStopped as stopped:
        say(f"{stopped}; the same command goes on from there")
        return STOPPED
    print(f"{len(cells)} runs in {out}, {worked} of them made now; next: fledgling scaling fit {out}")
    return 0


def compare(
    names: str,
    depths: str | None,
    budgets: str | None,
    seeds: int,
    recipe: str,
    overrides: Overrides,
    out: Path,
    as_json: bool,
) -> int:
    """Run an ablation, print the differences of what is finished, and write its page."""
    from fledgling.plan.scaling_laws import check_budget as checked
    from fledgling.scaling.ablation import (
        EFFECT_HEADER,
        compute_effects,
        effect_rows,
        effects_to_json,
        load_trials,
        parse_variants,
    )
    from fledgling.scaling.ablation_page import build_ablation_page

    variants, amounts = parse_variants(names), numbers("budgets", budgets or "1e13")
    if depths is not None:
        raise UserError(f"depths: got {depths} with --ablate, which has the recipe's size: use --set model.depth=N")
    if len(amounts) != 1 or seeds < 1:
        raise UserError(f"budgets {budgets}, seeds {seeds}: expected one budget and at least 1 seed")
    from fledgling.scaling.ablate import run_ablation
    from fledgling.train.loop import TrainingStopped

    try:
        run_ablation(
            lambda more: load_recipe(recipe, (*overrides, *more)),
            variants,
            seeds,
            checked(amounts[0]),
            out,
            say,
            lambda name, seed, one: say(f"{name}, seed {seed}: {one.bits_per_byte:.4f} bits per byte"),
        )
    except TrainingStopped as stopped:
        say(f"{stopped}; the same command goes on from there")
        return STOPPED
    trials = load_trials(out)
    found = compute_effects(trials)
    page = build_ablation_page(out, trials, found)
    if as_json:
        print(json.dumps({"effects": effects_to_json(found), "page": str(page)}, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Column, Table

    title = f"variant minus base, {amounts[0]:.4g} FLOPs a run, paired by seed"
    table = Table(Column(EFFECT_HEADER[0], no_wrap=True), *EFFECT_HEADER[1:], title=title)
    for row in effect_rows(found):
        table.add_row(*row)
    Console().print(table)
    print(f"page: {page}")
    return 0


def line(one: SweepRun) -> str:
    """Return a finished run as one line."""
    from fledgling.record.progress_bar import format_count, format_duration

    sizes = f"{format_count(one.parameters['all parameters'])} parameters, {format_count(one.tokens)} tokens"
    return f"{one.name:<12} {sizes}, {one.bits_per_byte:.4f} bits per byte, {format_duration(one.seconds)}"


@app.command
def fit(out: Path = OUT, /, *, as_json: Json = False) -> None:
    """Fit a sweep's runs, print the table of fits with their intervals and write OUT/scaling.html. Reads files only.

    Parameters
    ----------
    out
        The directory of a sweep.
    """
    from fledgling.scaling.analysis import analysis_to_json, analyze_sweep
    from fledgling.scaling.results import load_checks, load_sweep
    from fledgling.scaling.sweep_page import build_sweep_page

    analysis = analyze_sweep(load_sweep(out))
    page = build_sweep_page(analysis)
    found = load_checks(out)
    if as_json:
        print(
            json.dumps(
                {**analysis_to_json(analysis), "checks": [outcome_json(one) for one in found], "page": str(page)},
                indent=2,
            )
        )
        return
    print_fits(analysis)
    for one in found:
        print(outcome_line(one))
    print(f"page: {page}")


def print_fits(analysis: SweepAnalysis) -> None:
    """Print the fits of a sweep as tables."""
    from rich.console import Console
    from rich.table import Table

    from fledgling.scaling.analysis import PRIMARY_COUNT
    from fledgling.scaling.sweep_page import fit_rows, isoflop_row

    shown, console = analysis.fit_for(PRIMARY_COUNT), Console()
    head, *rows = fit_rows(analysis.fits)
    table = Table(*head, title="L = E + A / N^alpha + B / D^beta, bits per byte, by which N")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    head = ("budget", "best N", "best D", "D / N", "bits per byte", "minimum")
    bowls = Table(*head, title=f"isoFLOP bowls, N: {shown.counts}")
    for bowl in shown.isoflop.curves:
        bowls.add_row(*isoflop_row(bowl))
    console.print(bowls)


def outcome_json(one: CheckResult) -> dict:
    """Return a check as JSON values."""
    measured = {"bits_per_byte": one.run.bits_per_byte, "low": one.run.low, "high": one.run.high}
    return {
        "name": one.run.name,
        "predicted": one.prediction,
        "measured": measured,
        "error": one.error,
        "held": one.within_interval,
    }


def outcome_line(one: CheckResult) -> str:
    """Return a check as one line: predicted with its interval beside measured."""
    said = one.prediction["bits_per_byte"]
    interval = f" ({said['low']:.4f} to {said['high']:.4f})" if said["low"] is not None else ""
    kept = "inside" if one.within_interval else "outside"
    return (
        f"check {one.run.name}: predicted {said['value']:.4f}{interval} bits per byte, "
        f"measured {one.run.bits_per_byte:.4f}, error {100 * one.error:+.2f} %, {kept} the interval"
    )


@app.command
def check(
    out: Path = OUT,
    /,
    *,
    times: float = 4.0,
    depth: int | None = None,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Predict a budget beyond the sweep's largest, write the prediction down, make that run and compare.

    The run has the sweep's settings; overrides are for what changes no result, such as run.threads.

    Parameters
    ----------
    out
        The directory of a sweep.
    times
        The budget, in units of the sweep's largest.
    depth
        Layers of the run; default: those nearest to the predicted best size.
    """
    from fledgling.scaling.analysis import analyze_sweep
    from fledgling.scaling.results import SWEEP_SETTINGS, load_sweep

    analysis = analyze_sweep(load_sweep(out))
    chosen = load_recipe(out / SWEEP_SETTINGS, overrides)
    from fledgling.scaling.check import run_check as make
    from fledgling.train.loop import TrainingStopped

    try:
        found = make(chosen, analysis, times, depth, say)
    except TrainingStopped as stopped:
        say(f"{stopped}; the same command goes on from there")
        return STOPPED
    print(json.dumps(outcome_json(found), indent=2) if as_json else outcome_line(found))
    return 0


@app.command
def predict(
    budget: float,
    /,
    *,
    bytes_per_token: Annotated[float | None, Parameter(negative=())] = None,
    runs: Path | None = None,
    as_json: Json = False,
) -> None:
    """Print what each law, by name, advises for a budget of training FLOPs: parameters, tokens and loss.

    Parameters
    ----------
    budget
        Training FLOPs, such as 5.76e23.
    bytes_per_token
        Bytes of text a token stands for, to turn nats a token into bits per byte; default 4.8, or what RUNS measured.
    runs
        The directory of a sweep, whose own fit is then one of the laws.
    """
    from fledgling.plan.scaling_laws import BYTES_PER_TOKEN, LAWS
    from fledgling.plan.scaling_laws import check_budget as checked

    C, laws, size = checked(budget), list(LAWS.values()), bytes_per_token or BYTES_PER_TOKEN
    if not size > 0:
        raise UserError(f"bytes-per-token: got {size:g}, expected a number above 0, such as 4.8")
    if runs:
        from fledgling.scaling.analysis import PRIMARY_COUNT, analyze_sweep
        from fledgling.scaling.results import load_sweep

        sweep = load_sweep(runs)
        size = bytes_per_token or sweep.bytes_per_token
        laws.append(analyze_sweep(sweep).fit_for(PRIMARY_COUNT).law(runs.name))
    found = [one.predict(C, size) for one in laws]
    from fledgling.plan.critical_batch import optimal_run

    run = optimal_run(C)
    steps = {"parameters": run.N, "batch_tokens": run.B, "steps": run.S, "nats_per_token": run.loss}
    if as_json:
        print(
            json.dumps(
                {"budget": C, "bytes_per_token": size, "laws": found, "kaplan_at_critical_batch": steps}, indent=2
            )
        )
        return
    print_predictions(found, C, size)
    print(
        f"Kaplan's learning curves at the critical batch: {run.N:.3g} parameters, {run.S:,.0f} steps of "
        f"{run.B:,.0f} tokens, {run.loss:.3f} nats"
    )


def print_predictions(found: list[dict], C: float, size: float) -> None:
    """Print the laws' advice as a table."""
    from rich.console import Console
    from rich.table import Table

    from fledgling.record.progress_bar import format_count

    table = Table(
        "law", "N", "D", "D / N", "nats", "bits per byte", "which N", title=f"{C:.4g} FLOPs, {size:.3g} bytes a token"
    )
    for one in found:
        loss, bits = one["nats_per_token"], one["bits_per_byte"]
        table.add_row(
            one["law"],
            format_count(one["parameters"]),
            format_count(one["tokens"]),
            f"{one['tokens_per_parameter']:.3g}",
            "-" if loss is None else f"{loss:.3f}",
            "-" if bits is None else f"{bits:.3f}",
            one["counts"],
        )
    Console().print(table)


@app.command
def recover(*, seeds: int = 100, noise: float = 0.003, as_json: Json = False) -> None:
    """Fit made-up sweeps whose law is known and count how often the intervals hold it.

    Parameters
    ----------
    seeds
        How many sweeps.
    noise
        Standard deviation of log loss.
    """
    if seeds < 1 or not noise > 0:
        raise UserError(f"seeds {seeds}, noise {noise:g}: expected at least 1, and noise above 0")
    from fledgling.scaling.recovery import run_recovery as try_out

    def told(done: int, inside: int) -> None:
        if done % 10 == 0:
            say(f"{done}/{seeds} sweeps, {inside} with all coefficients inside")

    found = try_out(seeds, noise, told)
    if as_json:
        print(json.dumps(vars(found), indent=2))
        return
    print(
        f"{found.all_five} of {found.seeds} sweeps of {found.runs} runs: all five coefficients inside their intervals"
    )
    print("each alone: " + ", ".join(f"{name} {count}" for name, count in found.each.items()))
