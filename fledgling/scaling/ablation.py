"""Ablations: the effect of one change of a recipe on the loss, at equal FLOPs, as paired differences to the base.

A seed fixes the initial weights and the order of the text for base and variant alike, so their difference on that seed
is one number, and the variation between seeds is the error of its mean. All runs are measured on the same held-out
rows, which therefore enter no interval. Of twenty variants without effect, one has a 95 % interval without 0 in it.

Start with `run_ablation` (trains), then `compute_effects` (reads files), `build_ablation_page` (one HTML page). torch
is imported only to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fledgling.config import Recipe, UserError, did_you_mean, dump_toml
from fledgling.evals.intervals import student_to_normal_ratio
from fledgling.evals.measurement import Z95
from fledgling.plan.flops import training_flops_per_token
from fledgling.record import write_text
from fledgling.record.progress_bar import format_count, format_duration
from fledgling.record.run_lock import hold_lock
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.report.template import render_page
from fledgling.scaling.results import SweepRun, format_flops, read_sweep_run, select_cells
from fledgling.scaling.settings import dump_settings, pin_settings, read_cell, require_same_cell

BASE = "base"
ABLATION_SETTINGS = "ablation.toml"
VARIANTS: dict[str, tuple[str, ...]] = {
    "gelu": ("model.activation=gelu",),
    "swiglu": ("model.activation=swiglu",),
    "adamw": ("optimizer.matrix_optimizer=adamw", "optimizer.matrix_lr=0.003"),
    "adamw-low": ("optimizer.matrix_optimizer=adamw", "optimizer.matrix_lr=0.001"),
    "adamw-high": ("optimizer.matrix_optimizer=adamw", "optimizer.matrix_lr=0.01"),
    "tied": ("model.tie_embeddings=true",),
    "no-qk-norm": ("model.qk_norm=false",),
    "flash-norm": ("model.flash_norm=true",),
    "value-embeddings": ("model.value_embeddings=2",),
    "windows": ("model.window_pattern=SL",),
    "nanochat-2026": ("model.preset=nanochat-2026",),
    "small-2026": ("model.preset=small-2026",),
    "value-gates": ("model.value_embeddings=2", "model.value_gates=true"),
    "residual-scalars": ("model.residual_scalars=true",),
    "skip-scalars": ("model.skip_scalars=true",),
    "back-out": ("model.back_out=true",),
    "smear": ("model.smear=true",),
    "head-gates": ("model.head_gates=true",),
    "exclusive-attention": ("model.exclusive_attention=true",),
    "no-softcap": ("model.logit_softcap=0",),
    "softcap-30": ("model.logit_softcap=30",),
    "shifted-softcap": ("model.logit_softcap=11.5", "model.logit_shift=3.83"),
    "grouped": ("model.kv_heads=1",),
    "polar-express": ("optimizer.newton_schulz=polar_express",),
    "normuon": ("optimizer.matrix_optimizer=normuon",),
    "muon-eq": ("optimizer.equilibrate=true",),
    "muon-plus": ("optimizer.normalize_update=true",),
    "batch-warmup": ("pretrain.batch_warmup_steps=200",),
    "context-warmup": ("pretrain.context_warmup_steps=200",),
    "mtp-targets": ("pretrain.mtp_targets=2", "pretrain.mtp_decay_steps=200"),
    "tied-then-untied": ("optimizer.tied_updates=200",),
    "decay": ("optimizer.weight_decay=0.1",),
    "cautious-decay": ("optimizer.weight_decay=0.1", "optimizer.cautious_weight_decay=true"),
}
VERDICT_COLORS = {"better": 2, "worse": 3, "not significant": 1}
EFFECT_HEADER = ("variant", "bits per byte", "difference", "95 % interval", "seeds", "parameters", "tokens", "")

RecipeLoader = Callable[[Sequence[str]], Recipe]  # returns the base recipe with additional overrides


@dataclass(frozen=True)
class Ablation:
    """Variants of one recipe that are compared at equal FLOPs.

    Attributes:
        load_recipe: overrides -> the base recipe with them.
        variants: overrides by name.
        seeds: of each variant.
        budget: FLOPs of a run.
        out: folder of the runs.
    """

    load_recipe: RecipeLoader
    variants: Mapping[str, tuple[str, ...]]
    seeds: int
    budget: float
    out: Path


@dataclass(frozen=True)
class Trial:
    """A finished run of a variant with a seed."""

    variant: str
    seed: int
    run: SweepRun


@dataclass(frozen=True)
class Effect:
    """Variant minus base in bits per byte, over `seeds` pairs, with its 95 % interval if there are two or more."""

    variant: str
    bits_per_byte: float
    difference: float
    low: float | None
    high: float | None
    seeds: int
    parameters: int
    tokens: int

    @property
    def verdict(self) -> str:
        """Returns "better", "worse" or "not significant"; fewer bits per byte are better."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "not significant"
        return "better" if self.difference < 0 else "worse"


def parse_variants(names: str) -> dict[str, tuple[str, ...]]:
    """Returns the overrides of each variant in a comma-separated list: a name of VARIANTS, "all", or table.key=value.

    Several overrides of one variant are joined by +. Raises UserError for an unknown name.
    """
    variants: dict[str, tuple[str, ...]] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name == "all":
            variants |= VARIANTS
        elif name in VARIANTS:
            variants[name] = VARIANTS[name]
        elif "=" in name:
            variants[name.replace("/", "-")] = tuple(name.split("+"))
        else:
            expected = f"{', '.join(VARIANTS)}, all, or table.key=value{did_you_mean(name, VARIANTS)}"
            raise UserError(f'ablate: got "{name}", expected {expected}')
    if not variants:
        raise UserError(f"ablate: got nothing to change, expected some of {', '.join(VARIANTS)}, or all")
    return variants


def trial_name(variant: str, seed: int) -> str:
    """Returns the directory name of a run."""
    return f"{variant}-s{seed}"


def trains_the_same(recipe: Recipe, base: Recipe) -> bool:
    """Returns whether two recipes train the same, whether a setting is written out or a default."""
    same_model = recipe.resolve_model() == base.resolve_model()
    return same_model and replace(recipe, model=base.model, stated=base.stated) == base


def choose_variants(names: str, load: RecipeLoader, log: Callable[[str], None]) -> dict[str, tuple[str, ...]]:
    """Returns the variants of a list as `parse_variants` does, but of "all" only those that change the base.

    What the list names itself stays, for `require_change` to reject.

    Args:
        names: the list.
        load: overrides -> the base recipe with them.
        log: receives one line with the variants that are left out.
    """
    variants, named = parse_variants(names), {part.strip() for part in names.split(",")}
    if "all" not in named:
        return variants
    base = load(())
    unchanged = [name for name in variants if name not in named and trains_the_same(load(variants[name]), base)]
    if unchanged:
        log(f"left out, because the base has it already: {', '.join(unchanged)}")
    return {name: overrides for name, overrides in variants.items() if name not in unchanged}


def require_change(name: str, recipe: Recipe, base: Recipe) -> None:
    """Raises UserError where a recipe with the variant `name` trains the same as the base."""
    if trains_the_same(recipe, base):
        raise UserError(
            f"{name}: the base has it, so there is nothing to compare; leave it out, or change the base, for example "
            "with --set model.preset=nanochat-2025"
        )


# ---- running ----


def plan_ablation(ablation: Ablation) -> list[tuple[str, int, Recipe]]:
    """Returns (variant, seed, recipe) of every run, seeds outermost, the base first.

    Raises UserError for an invalid override, for a variant that is the base itself and for a budget of too few steps.
    """
    from fledgling.scaling.sweep import BATCH_TOKENS, MIN_STEPS, shorten_recipe

    runs, budget = [], ablation.budget
    recipes = {name: ablation.load_recipe(overrides) for name, overrides in {BASE: (), **ablation.variants}.items()}
    base = recipes[BASE]
    for name in ablation.variants:
        require_change(name, recipes[name], base)
    for seed in range(ablation.seeds):
        for name, recipe in recipes.items():
            batch = recipe.pretrain.batch_tokens or BATCH_TOKENS
            flops = training_flops_per_token(recipe.resolve_model()) * batch
            steps = round(budget / flops)
            if steps < MIN_STEPS:
                min_budget = format_flops(1.01 * MIN_STEPS * flops)
                raise UserError(
                    f"{name}: a budget of {format_flops(budget)} FLOPs is {steps} steps; give {min_budget} or more"
                )
            seeded = replace(recipe, seed=recipe.seed + seed)
            runs.append((name, seed, shorten_recipe(seeded, steps, batch, ablation.out / trial_name(name, seed))))
    return runs


def run_ablation(
    ablation: Ablation, log: Callable[[str], None], on_finished: Callable[[str, int, SweepRun], None]
) -> int:
    """Trains the unfinished runs; returns their number.

    A variant is the base recipe with a few more overrides; its steps are what the budget allows, so a variant that
    costs more per token sees fewer tokens. Seeds are the outermost loop: after an interruption the numbers of seeds of
    the variants differ by at most one. A finished run is skipped, an interrupted one resumes from its checkpoint.

    Args:
        ablation: what is compared.
        log: receives notices.
        on_finished: called with (variant, seed, run) for every run, old or new.

    Raises UserError for settings other than those already in `out`, TrainingStopped after a signal.
    """
    from fledgling.scaling.sweep import prepare_sweep_data, train_run

    runs, out, budget = plan_ablation(ablation), ablation.out, ablation.budget
    base = replace(runs[0][2], run=replace(runs[0][2].run, out="run"))
    with hold_lock(out, "this ablation", log, remedy="choose another --out"):
        pin_settings(out / ABLATION_SETTINGS, f"# {format_flops(budget)} FLOPs a run\n{dump_toml(base)}", "an ablation")
        for name, seed, recipe in runs:
            require_same_cell(Path(recipe.run.out), describe_trial(name, seed, recipe, budget))
        prepare_sweep_data(ablation.load_recipe(()), out, log)
        trained, seconds = 0, list[float]()
        for index, (name, seed, recipe) in enumerate(runs):
            run_dir = Path(recipe.run.out)
            if (run := read_sweep_run(run_dir)) is None:
                time_left = (
                    f", about {format_duration(sum(seconds) / len(seconds) * (len(runs) - index))} left"
                    if seconds
                    else ""
                )
                log(f"ablation: run {index + 1} of {len(runs)}, {name} with seed {seed}{time_left}")
                train_run(recipe, out, describe_trial(name, seed, recipe, budget))
                trained += 1
                if (run := read_sweep_run(run_dir)) is None:
                    raise UserError(f"{run_dir} is done but has no bits per byte; remove it and run again")
                seconds.append(run.seconds)
            on_finished(name, seed, run)
    return trained


def describe_trial(variant: str, seed: int, recipe: Recipe, budget: float) -> dict[str, Any]:
    """Returns what the cell.json of a run says, which no other run shares."""
    facts = {"depth": recipe.model.depth, "budget": budget, "variant": variant, "seed": seed}
    return {**facts, "settings": dump_settings(recipe)}


# ---- comparing ----


def load_trials(out: Path) -> tuple[list[Trial], list[str]]:
    """Returns the finished runs under `out`, the base's first, and a line for each copy that is left out."""

    def identify(cell: dict[str, Any]) -> tuple[tuple[str, int], str]:
        key = str(cell["variant"]), int(cell["seed"])
        return key, trial_name(*key)

    paths, notes = select_cells(out, identify)
    trials = []
    for path in paths:
        (variant, seed), _ = identify(read_cell(path))
        if run := read_sweep_run(path):
            trials.append(Trial(variant, seed, run))
    return sorted(trials, key=lambda trial: (trial.variant != BASE, trial.variant, trial.seed)), notes


def compute_effects(trials: Sequence[Trial]) -> list[Effect]:
    """Returns every variant's difference to the base over their common seeds, the base first, then the best."""
    base = {trial.seed: trial.run for trial in trials if trial.variant == BASE}
    names = list(dict.fromkeys(trial.variant for trial in trials))
    found = []
    for name in names:
        pairs = [(trial.run, base[trial.seed]) for trial in trials if trial.variant == name and trial.seed in base]
        if not pairs:
            continue
        differences = [run.bits_per_byte - other.bits_per_byte for run, other in pairs]
        margin = confidence_margin(differences) if name != BASE else None
        difference, first = mean(differences), pairs[0][0]
        found.append(
            Effect(
                name,
                mean(run.bits_per_byte for run, _ in pairs),
                difference,
                None if margin is None else difference - margin,
                None if margin is None else difference + margin,
                len(pairs),
                first.parameters["all parameters"],
                first.tokens,
            )
        )
    return sorted(found, key=lambda trial: (trial.variant != BASE, trial.difference))


def confidence_margin(values: Sequence[float]) -> float | None:
    """Returns half of the 95 % interval of a mean (Student's t); None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    return Z95 * student_to_normal_ratio(n - 1) * stdev(values) / n**0.5


def effects_to_json(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """Returns the effects as JSON values."""
    return [{**vars(effect), "verdict": effect.verdict if effect.variant != BASE else ""} for effect in effects]


def effect_rows(effects: Sequence[Effect]) -> list[tuple[str, ...]]:
    """Returns effects as cells: variant, bits per byte, difference, interval, seeds, parameters, tokens, verdict."""
    rows: list[tuple[str, ...]] = []
    for effect in effects:
        difference = "" if effect.variant == BASE else f"{effect.difference:+.4f}"
        interval = "" if effect.low is None else f"{effect.low:+.4f} to {effect.high:+.4f}"
        verdict = "" if effect.variant == BASE else effect.verdict
        sizes = (str(effect.seeds), format_count(effect.parameters), format_count(effect.tokens))
        rows.append((effect.variant, f"{effect.bits_per_byte:.4f}", difference, interval, *sizes, verdict))
    return rows


# ---- page ----


def build_ablation_page(out: Path, trials: Sequence[Trial], effects: Sequence[Effect], notes: Sequence[str]) -> Path:
    """Writes OUT/ablation.html and returns its path. notes: lines about runs that are left out."""
    path = out / "ablation.html"
    run_rows = [
        (trial.variant, str(trial.seed), f"{trial.run.bits_per_byte:.4f}", f"{trial.run.seconds:.0f} s")
        for trial in trials
    ]
    values = {
        "title": out.name,
        "chart": effect_chart(effects),
        "head": EFFECT_HEADER,
        "rows": effect_rows(effects),
        "runs": run_rows,
        "notes": notes,
    }
    write_text(path, render_page("scaling", "ablation.html", **values))
    return path


def effect_chart(effects: Sequence[Effect]) -> Any:
    """Returns the differences as dots with whiskers, numbered in the order of the table; 0 is the base."""
    shown = [effect for effect in effects if effect.variant != BASE]
    ends = [0.5, len(shown) + 0.5]
    lines = [Line(BASE, ends, [0.0, 0.0], color=1, faint=True)]
    for index, effect in enumerate(shown, start=1):
        has_interval = effect.low is not None
        lines.append(
            Line(
                effect.variant,
                [index],
                [effect.difference],
                lows=[effect.low] if has_interval else (),
                highs=[effect.high] if has_interval else (),
                color=VERDICT_COLORS[effect.verdict],
                connected=False,
                point_labels=[effect.variant],
            )
        )
    ticks = [(float(index), str(index)) for index in range(1, len(shown) + 1)]
    x_label = "variant, in the order of the table"
    return render_chart(Chart("difference to the base", lines, x_label, format_y=lambda y: f"{y:+.3f}", x_ticks=ticks))
