"""Compares the rules of learning rates with sweeps: at each depth, runs whose rates are multiples of a reference.

The reference is what rules 4 to 7 give at g = 1, so that a run keeps its name when rule 8 changes; the multiple that
rule 8 gives is a run of every sweep, and is compared with the sweep's best.

A run is an ordinary training run of the recipe `scaling` on tokens that are prepared once; only depth, rates, batch and
steps differ, and what else follows from them (`fledgling.config.scaling_rules`: weight decay, warm-up). A finished run
is not trained again and an interrupted one is resumed, so the command can be stopped at any time. The result has all
runs of the directory that were made with the same settings, those of earlier calls too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import fledgling
from fledgling.config import ModelConfig, Recipe, UserError, dump_toml, load_recipe
from fledgling.config.load import SWEEP_SETTINGS
from fledgling.config.scaling_rules import RunSize, batch_factor, warmup_steps, weight_decay, width_rates
from fledgling.plan.parameters import count_law_parameters
from fledgling.record import write_text
from fledgling.record.run_lock import hold_lock
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.scaling.results import read_sweep_run, select_cells
from fledgling.scaling.settings import dump_settings, pin_settings, read_cell, require_same_cell
from fledgling.scaling.sweep import prepare_sweep_data, train_run

ALL = "all"
ROLES = ("matrix", "embedding", "head", "scalar")
HEAD_WIDTH = 64
COLORS = (0, 1, 2, 3, 6)  # of the report's style, those that differ
# Compiled fp32 on one thread: the runs are too small for more.
SMALL = ("tokenizer.vocab_size=1024", "model.context=128", "run.dtype=float32", "run.threads=1")
EXAMPLES = {"depths": "2 4 6", "batch-tokens": "1024", "multiples": "0.25 0.5 1 2 4"}
CHECKPOINTS_PER_RUN = 2  # so that an interrupted run can be resumed


@dataclass(frozen=True)
class RateRun:
    """A run of the sweep: `multiple` times the reference rates of `role` or of "all" roles; others at the rule's."""

    depth: int
    batch_tokens: int
    tokens: int
    role: str = ALL
    multiple: float = 1.0
    decay: float = 1.0  # of the rule's weight decay

    @property
    def name(self) -> str:
        """Of its directory."""
        parts = [f"d{self.depth}", f"b{self.batch_tokens}", f"t{self.tokens}", self.role, f"{self.multiple:g}"]
        return "-".join([*parts, *([f"decay{self.decay:g}"] if self.decay != 1 else [])])


def make_runs(
    depths: Sequence[int],
    multiples: Sequence[float],
    batch_tokens: Sequence[int],
    tokens: int,
    roles: Sequence[str],
    decays: Sequence[float] = (1.0,),
) -> list[RateRun]:
    """Returns the runs of a sweep, the smallest depths and the rates nearest to the rule first.

    Raises UserError for what is no depth, multiple, batch, number of tokens or role.
    """
    for name, values in (("depths", depths), ("batch-tokens", batch_tokens), ("multiples", multiples)):
        if not values or any(not value > 0 or not math.isfinite(value) for value in values):
            raise UserError(f"--{name}: got {list(values)}, expected numbers above 0, such as {EXAMPLES[name]}")
    if any(not 0 <= decay < math.inf for decay in decays):
        raise UserError(f"--decays: got {list(decays)}, expected numbers of at least 0, such as 0 1 3")
    if unknown := [role for role in roles if role not in (ALL, *ROLES)]:
        raise UserError(f"--roles: got {unknown[0]}, expected some of {', '.join((ALL, *ROLES))}")
    if tokens < 20 * max(batch_tokens):
        raise UserError(f"--tokens: got {tokens:,}, expected at least 20 steps of {max(batch_tokens):,} tokens")
    runs = []
    for depth, batch, role, decay in product(sorted(set(depths)), batch_tokens, roles, decays):
        rule = find_rule(batch, tokens)
        near = sorted({rule, *multiples}, key=lambda multiple: (abs(math.log(multiple / rule)), multiple))
        kinds = [(ALL if multiple == rule else role, multiple) for multiple in near]
        runs += [RateRun(depth, batch, tokens, kind, multiple, decay) for kind, multiple in kinds]
    return list(dict.fromkeys(runs))


def find_rule(batch_tokens: int, tokens: int) -> float:
    """Returns the multiple of the reference that rule 8 gives, to two digits: a sweep's run, not one of its own."""
    return float(f"{batch_factor(batch_tokens, tokens // batch_tokens * batch_tokens):.2g}")


def size_run(recipe: Recipe, run: RateRun, width_per_layer: int) -> tuple[ModelConfig, RunSize]:
    """Returns the model of a run, and what the rules follow from."""
    width = width_per_layer * run.depth
    table = replace(recipe.model.unpin("kv_heads"), depth=run.depth, width=width, heads=max(1, width // HEAD_WIDTH))
    config = table.resolve(recipe.tokenizer.vocab_size)
    if run.batch_tokens % config.context:
        raise UserError(f"--batch-tokens: got {run.batch_tokens}, expected whole rows of {config.context}")
    steps, parameters = run.tokens // run.batch_tokens, count_law_parameters(config)
    return config, RunSize(width, parameters, steps * run.batch_tokens, run.batch_tokens)


def make_run_recipe(recipe: Recipe, run: RateRun, width_per_layer: int, out: Path) -> Recipe:
    """Returns the recipe of one run."""
    config, size = size_run(recipe, run, width_per_layer)
    reference = width_rates(size.width, recipe.optimizer.matrix_optimizer)
    rule = find_rule(run.batch_tokens, run.tokens)
    rates = {role: reference[role] * (run.multiple if run.role in (ALL, role) else rule) for role in ROLES}
    optimizer: dict[str, Any] = {f"{role}_lr": rate for role, rate in rates.items()}
    optimizer["weight_decay"] = run.decay * weight_decay(size, rates["matrix"])
    steps = size.tokens // size.batch_tokens
    pretrain = replace(
        recipe.pretrain,
        steps=steps,
        batch_tokens=size.batch_tokens,
        micro_batch_size=min(64, size.batch_tokens // config.context),
        learning_rate=1.0,
        warmup_steps=warmup_steps(steps, recipe.optimizer.adam_betas[1]),
        save_every=max(1, steps // CHECKPOINTS_PER_RUN),
        keep_checkpoints=1,
    )
    return replace(
        recipe,
        name=run.name,
        model=replace(recipe.model.unpin("kv_heads"), depth=run.depth, width=config.width, heads=config.heads),
        optimizer=replace(recipe.optimizer, **optimizer),
        pretrain=pretrain,
        run=replace(recipe.run, out=str(out / run.name)),
    )


def measure_rates(
    out: Path,
    runs: Sequence[RateRun],
    overrides: Sequence[str] = (),
    width_per_layer: int = 32,
    seconds: float | None = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Trains the runs that are not finished, in order; returns all finished ones of `out` with their bits per byte.

    Args:
        seconds: no run is begun after that many; None: all are made.
        plot: the file of the chart.
    """
    recipe, begun = load_recipe("scaling", [*SMALL, *overrides]), time.monotonic()
    for run in runs:
        size_run(recipe, run, width_per_layer)  # before any work, what has no model or no whole rows
    with hold_lock(out, "this sweep", print, remedy="choose another --out"):
        shared = replace(recipe, run=replace(recipe.run, out="run"))
        pin_settings(
            out / SWEEP_SETTINGS, f"# width {width_per_layer} a layer\n{dump_toml(shared)}", "a sweep of rates"
        )
        prepare_sweep_data(recipe, out, print)
        cells = {run.name: make_run_recipe(recipe, run, width_per_layer, out) for run in runs}
        for run in runs:
            require_same_cell(out / run.name, describe_rate_run(run, cells[run.name]))
        for run in runs:
            if read_sweep_run(out / run.name) is not None:
                continue
            if seconds is not None and time.monotonic() - begun > seconds:
                break
            print(run.name, flush=True)
            train_run(cells[run.name], out, describe_rate_run(run, cells[run.name]))
    rows, copies = read_rates(out)
    missing = [run.name for run in runs if read_sweep_run(out / run.name) is None]
    summaries = {"summary": summarize(rows), "decays": summarize_decays(rows)}
    result = {"width_per_layer": width_per_layer, "runs": rows, **summaries, "missing": missing, "left_out": copies}
    if plot is not None:
        write_text(plot, draw_rates(rows))
    return result


def describe_rate_run(run: RateRun, recipe: Recipe) -> dict[str, Any]:
    """Returns what the cell.json of a run says."""
    return {"depth": run.depth, "budget": 0.0, "rates": vars(run), "settings": dump_settings(recipe)}


def read_rates(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the finished runs under `out` as JSON values, and a line for each copy that is left out.

    They are ordered by depth, batch, role and multiple.
    """

    def identify(cell: dict[str, Any]) -> tuple[RateRun, str]:
        run = RateRun(**{field.name: cell["rates"][field.name] for field in fields(RateRun)})
        return run, run.name

    rows, (paths, copies) = [], select_cells(out, identify)
    for path in paths:
        if done := read_sweep_run(path):
            run, _ = identify(read_cell(path))
            figures = {"bits_per_byte": done.bits_per_byte, "low": done.low, "high": done.high}
            rows.append(
                {**vars(run), **figures, "parameters": done.parameters["all parameters"], "seconds": done.seconds}
            )
    return sorted(rows, key=lambda row: tuple(row[field.name] for field in fields(RateRun))), copies


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each sweep of rates the best multiple, and by how much the rule's loss exceeds the best one's."""
    sweeps: dict[tuple[Any, ...], dict[float, float]] = {}
    for row in rows:
        key = (row["depth"], row["batch_tokens"], row["tokens"], row["decay"])
        sweeps.setdefault((*key, row["role"]), {})[row["multiple"]] = row["bits_per_byte"]
    found = []
    for (*shared, role), losses in sweeps.items():
        values = dict(zip(("depth", "batch_tokens", "tokens", "decay"), shared, strict=True))
        rule = find_rule(values["batch_tokens"], values["tokens"])
        if (at_rule := sweeps.get((*shared, ALL), {}).get(rule)) is None:  # the run of all roles is each role's too
            continue
        losses = dict(sorted({**losses, rule: at_rule}.items()))
        if len(losses) < 3:
            continue
        best = min(losses, key=losses.__getitem__)
        excess = at_rule / losses[best] - 1
        found.append({**values, "role": role, "losses": losses, "rule": rule, "best": best, "excess": excess})
    return found


def summarize_decays(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the losses at multiples of the rule's weight decay, where all rates are the rule's."""
    found: dict[tuple[int, int, int], dict[float, float]] = {}
    for row in rows:
        key = (row["depth"], row["batch_tokens"], row["tokens"])
        if row["role"] == ALL and row["multiple"] == find_rule(row["batch_tokens"], row["tokens"]):
            found.setdefault(key, {})[row["decay"]] = row["bits_per_byte"]
    names = ("depth", "batch_tokens", "tokens")
    several = {key: losses for key, losses in found.items() if len(losses) > 1}
    return [{**dict(zip(names, key, strict=True)), "losses": losses} for key, losses in several.items()]


def format_rates(result: dict[str, Any]) -> str:
    """Returns the sweeps as a Markdown table: bits per byte at each multiple, the rule's multiple and its excess."""
    multiples = sorted({float(multiple) for sweep in result["summary"] for multiple in sweep["losses"]})
    columns = [f"x {multiple:g}" for multiple in multiples]
    head = ["depth", "batch", "tokens", "roles", *columns, "rule", "best", "rule above best"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for sweep in result["summary"]:
        losses = {float(multiple): loss for multiple, loss in sweep["losses"].items()}
        cells = [str(sweep["depth"]), f"{sweep['batch_tokens']:,}", f"{sweep['tokens']:,}"]
        cells.append(sweep["role"] + ("" if sweep["decay"] == 1 else f", decay x {sweep['decay']:g}"))
        cells += [f"{losses[multiple]:.4f}" if multiple in losses else "" for multiple in multiples]
        cells += [f"x {sweep['rule']:g}", f"x {sweep['best']:g}", f"{sweep['excess']:.2%}"]
        lines.append("| " + " | ".join(cells) + " |")
    for each in result["decays"]:
        shown = ", ".join(f"x {float(decay):g} {loss:.4f}" for decay, loss in each["losses"].items())
        of = f"depth {each['depth']}, {each['batch_tokens']:,} tokens a step, {each['tokens']:,} tokens"
        lines.append(f"weight decay as multiples of the rule's, {of}: {shown}")
    if result["missing"]:
        lines.append(f"{len(result['missing'])} runs are open; the same command resumes {result['missing'][0]}")
    return "\n".join(lines)


def draw_rates(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the chart of the sweeps of all roles as an SVG file: loss above the best one against the multiple."""
    lines = []
    for index, sweep in enumerate(each for each in summarize(rows) if each["role"] == ALL and each["decay"] == 1):
        best = min(sweep["losses"].values())
        xs = [math.log2(multiple / sweep["rule"]) for multiple in sweep["losses"]]
        ys = [100 * (loss / best - 1) for loss in sweep["losses"].values()]
        label = f"depth {sweep['depth']}, {sweep['batch_tokens']:,} tokens a step"
        lines.append(Line(label, xs, ys, color=COLORS[index % len(COLORS)], dots=True))
    ticks = sorted({round(x) for line in lines for x in line.xs})
    chart = Chart(
        "loss above the sweep's best, %",
        lines,
        "learning rates, as multiples of the rule's",
        format_y=lambda y: f"{y:g} %",
        x_ticks=[(x, f"x {2**x:g}") for x in ticks],
        floor=0.0,
    )
    style = (Path(fledgling.__file__).parent / "report" / "style.css").read_text(encoding="utf-8")
    names = [
        f'<text x="110" y="{30 + 14 * index}" style="fill: var(--c{line.color})">{line.label}</text>'
        for index, line in enumerate(lines)
    ]
    opening, _, drawing = str(render_chart(chart)).partition(">")
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{opening}><style>{style}</style>{''.join(names)}{drawing}\n"
