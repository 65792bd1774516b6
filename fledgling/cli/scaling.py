"""`fledgling scaling`: sweeps of depths and budgets, their fits, ablations, and predictions of scaling laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from fledgling.cli.inference import inference
from fledgling.cli.lists import CountList, NumberList
from fledgling.cli.options import Json, Overrides, print_to_stderr
from fledgling.config import UserError, load_recipe, require_number
from fledgling.runtime.exit_codes import STOPPED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fledgling.train.loop import TrainingStopped

app = App(name="scaling", help="How loss falls with size, data and compute, and errors with samples.")
app.command(inference)

OUT = Path("runs/scaling")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str, wrap: bool = True) -> None:
    """Prints rows of text as a table; wrap: whether the first column may wrap."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column(header[0], no_wrap=not wrap), *header[1:], title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def report_stop(stopped: TrainingStopped) -> int:
    """Prints that the command stopped and saved its state; returns the exit code."""
    print_to_stderr(f"{stopped}; run the same command again to resume")
    return STOPPED


@app.command
def run(
    *,
    depths: CountList = (),
    budgets: NumberList = (),
    recipe: str = "scaling",
    out: Path | None = None,
    ablate: str | None = None,
    seeds: int | None = None,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Train every depth at every budget, as ordinary runs; run it again to resume.

    Parameters
    ----------
    depths
        Layers, comma-separated; width and heads follow. Default: 1,2,3,4.
    budgets
        Training FLOPs per run, comma-separated. Default: 1e13,2e13,4e13; for an ablation one, 1e13.
    recipe
        A recipe's name or TOML file: everything but depth, steps and directory.
    out
        Directory of the runs. Default: runs/scaling, or runs/ablation.
    ablate
        Compare variants with the unchanged recipe at equal FLOPs, instead of sizes: comma-separated names
        (gelu, swiglu, adamw, tied, ...; all: those that the recipe lacks), or table.key=value, several joined by +.
    seeds
        For an ablation: runs of each variant, with different initial weights and order of the text. Default: 3.
    """
    from fledgling.record.outside import require_no_part_of_run

    out = out or (OUT if ablate is None else Path("runs/ablation"))
    require_no_part_of_run(out)
    if ablate is not None:
        seeds = 3 if seeds is None else seeds
        return compare(ablate, depths, budgets, seeds, recipe, overrides, out, as_json)
    if seeds is not None:
        raise UserError(f"--seeds {seeds} has no effect without --ablate: each size of a sweep is trained once")
    depths, budgets = depths or (1, 2, 3, 4), budgets or (1e13, 2e13, 4e13)
    chosen = load_recipe(recipe, overrides)
    from fledgling.scaling.results import describe_run
    from fledgling.scaling.sweep import make_grid, run_sweep
    from fledgling.train.loop import TrainingStopped

    print_line = print_to_stderr if as_json else print
    cells = make_grid(chosen, depths, budgets, out)
    try:
        trained = run_sweep(chosen, cells, out, print_to_stderr, lambda run: print_line(describe_run(run)))
    except TrainingStopped as stopped:
        return report_stop(stopped)
    if as_json:
        print(json.dumps({"out": str(out), "runs": len(cells), "trained": trained}, indent=2))
    else:
        print(f"{len(cells)} runs in {out}, {trained} of them trained now; next: fledgling scaling fit {out}")
    return 0


def compare(
    names: str,
    depths: Sequence[int],
    budgets: Sequence[float],
    seeds: int,
    recipe: str,
    overrides: Overrides,
    out: Path,
    as_json: bool,
) -> int:
    """Runs an ablation, prints the differences of the finished runs, and writes its page."""
    from fledgling.plan.scaling_laws import check_budget
    from fledgling.scaling import ablation

    flops = budgets or (1e13,)
    if depths:
        shown = ",".join(map(str, depths))
        raise UserError(f"--depths {shown} with --ablate, which has the recipe's size: use --set model.depth=N")
    if len(flops) != 1 or seeds < 1:
        shown = ",".join(f"{each:g}" for each in flops)
        raise UserError(f"--budgets {shown}, --seeds {seeds}: expected one budget and at least 1 seed")
    from fledgling.train.loop import TrainingStopped

    variants = ablation.choose_variants(names, lambda more: load_recipe(recipe, (*overrides, *more)), print_to_stderr)
    try:
        ablation.run_ablation(
            ablation.Ablation(
                lambda more: load_recipe(recipe, (*overrides, *more)),
                variants,
                seeds,
                check_budget(flops[0], "budgets"),
                out,
            ),
            print_to_stderr,
            lambda name, seed, run: print_to_stderr(f"{name}, seed {seed}: {run.bits_per_byte:.4f} bits per byte"),
        )
    except TrainingStopped as stopped:
        return report_stop(stopped)
    trials, notes = ablation.load_trials(out)
    effects = ablation.compute_effects(trials)
    page = ablation.build_ablation_page(out, trials, effects, notes)
    for line in notes:
        print_to_stderr(line)
    if as_json:
        values = {"effects": ablation.effects_to_json(effects), "left_out": notes, "page": str(page)}
        print(json.dumps(values, indent=2))
        return 0
    title = f"variant minus base, {flops[0]:.4g} FLOPs per run, paired by seed"
    print_table(ablation.EFFECT_HEADER, ablation.effect_rows(effects), title, wrap=False)
    print(f"page: {page}")
    return 0


@app.command
def fit(out: Path = OUT, /, *, as_json: Json = False) -> None:
    """Fit a sweep's runs, print the fits with their intervals and write OUT/scaling.html. Only reads the runs' files.

    Parameters
    ----------
    out
        The directory of a sweep.
    """
    from fledgling.scaling.analysis import PRIMARY_COUNT, analysis_to_json, analyze_sweep
    from fledgling.scaling.results import check_to_json, describe_check, load_checks, load_sweep
    from fledgling.scaling.sweep_page import ISOFLOP_HEADER, build_sweep_page, fit_rows, isoflop_row

    analysis = analyze_sweep(load_sweep(out))
    page = build_sweep_page(analysis)
    checks = load_checks(out)
    for line in analysis.sweep.notes:
        print_to_stderr(line)
    if as_json:
        values = {**analysis_to_json(analysis), "checks": [check_to_json(check) for check in checks], "page": str(page)}
        print(json.dumps(values, indent=2))
        return
    header, *rows = fit_rows(analysis.fits)
    print_table(header, rows, "L = E + A / N^alpha + B / D^beta, bits per byte, by which N")
    shown = analysis.fit_for(PRIMARY_COUNT)
    print_table(ISOFLOP_HEADER, map(isoflop_row, shown.isoflop.curves), f"isoFLOP curves, N: {shown.counts}")
    for check in checks:
        print(describe_check(check))
    print(f"page: {page}")


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
    """Predict a budget beyond the sweep's largest, write the prediction to disk, train that run and compare.

    The run has the sweep's settings; overrides are for settings that change no result, such as run.threads.

    Parameters
    ----------
    out
        The directory of a sweep.
    times
        The budget, in units of the sweep's largest.
    depth
        Layers of the run; default: those nearest to the predicted optimal size.
    """
    from fledgling.config.load import SWEEP_SETTINGS
    from fledgling.scaling.analysis import analyze_sweep
    from fledgling.scaling.results import check_to_json, describe_check, load_sweep

    analysis = analyze_sweep(load_sweep(out))
    for line in analysis.sweep.notes:
        print_to_stderr(line)
    chosen = load_recipe(out / SWEEP_SETTINGS, overrides)
    from fledgling.scaling.sweep import run_forecast_check
    from fledgling.train.loop import TrainingStopped

    try:
        result = run_forecast_check(chosen, analysis, times, depth, print_to_stderr)
    except TrainingStopped as stopped:
        return report_stop(stopped)
    print(json.dumps(check_to_json(result), indent=2) if as_json else describe_check(result))
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
    """Print each law's optimum for a budget of training FLOPs: parameters, tokens and loss.

    Parameters
    ----------
    budget
        Training FLOPs, such as 5.76e23.
    bytes_per_token
        Bytes of text per token, to convert nats per token to bits per byte; default: 4.8, or the measurement of RUNS.
    runs
        The directory of a sweep, whose fit is then one of the laws.
    """
    from fledgling.scaling.analysis import PREDICTION_HEADER, predict_budget, prediction_row

    found = predict_budget(budget, bytes_per_token, runs)
    for line in found["left_out"]:
        print_to_stderr(line)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    title = f"{found['budget']:.4g} FLOPs, {found['bytes_per_token']:.3g} bytes per token"
    print_table(PREDICTION_HEADER, map(prediction_row, found["laws"]), title)
    kaplan = found["kaplan_at_critical_batch"]
    print(
        f"Kaplan's learning curves at the critical batch: {kaplan['parameters']:.3g} parameters, "
        f"{kaplan['steps']:,.0f} steps of {kaplan['batch_tokens']:,.0f} tokens, {kaplan['nats_per_token']:.3f} nats"
    )


@app.command
def recover(*, seeds: int = 100, noise: float = 0.003, as_json: Json = False) -> None:
    """Fit synthetic sweeps of a known law and count how often the intervals contain it.

    Parameters
    ----------
    seeds
        Number of sweeps.
    noise
        Standard deviation of log loss.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: expected at least 1")
    require_number("--noise", noise, 1.0)
    from fledgling.scaling.recovery import run_recovery

    def log_seed(done: int, inside: int) -> None:
        if done % 10 == 0:
            print_to_stderr(f"{done}/{seeds} sweeps, {inside} with all coefficients inside")

    result = run_recovery(seeds, noise, log_seed)
    if as_json:
        print(json.dumps(vars(result), indent=2))
        return
    print(
        f"{result.all_five} of {result.seeds} sweeps of {result.runs} runs: all five coefficients inside their "
        "intervals"
    )
    print("each alone: " + ", ".join(f"{name} {count}" for name, count in result.each.items()))
