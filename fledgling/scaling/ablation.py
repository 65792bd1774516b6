"""What one change of a recipe does to the loss, at equal FLOPs: differences to the base, paired by seed.

The one idea: a seed fixes the first weights and the order of the text for base and variant alike, so their difference
on that seed is one number, and what varies between seeds is the error of its mean. All runs are measured on the same
held-out rows, which therefore count in no interval.

Of twenty variants that do nothing, one has an interval of 95 % without 0 in it. Reads files only; no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fledgling.config import UserError, did_you_mean
from fledgling.scaling.results import CELL, SweepRun, read_run

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
    "residual-scalars": ("model.residual_scalars=true",),
    "no-softcap": ("model.logit_softcap=0",),
    "grouped": ("model.kv_heads=1",),
    "polar-express": ("optimizer.newton_schulz=polar_express",),
    "normuon": ("optimizer.matrix_optimizer=normuon",),
    "decay": ("optimizer.weight_decay=0.1",),
    "cautious-decay": ("optimizer.weight_decay=0.1", "optimizer.cautious_weight_decay=true"),
}
# Two-sided 95 % of Student's t by degrees of freedom; beyond them, those of the normal distribution are near enough.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Trial:
    """A finished run of a variant with a seed."""

    variant: str
    seed: int
    run: SweepRun


@dataclass(frozen=True)
class Effect:
    """Variant minus base in bits per byte, over `seeds` pairs, with its 95 % interval where there are two or more."""

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
        """In words: fewer bits per byte are better."""
        if self.low is None or self.low <= 0 <= self.high:
            return "not told apart"
        return "better" if self.difference < 0 else "worse"


def parse_variants(names: str) -> dict[str, tuple[str, ...]]:
    """The overrides of each variant named in a list with commas: a name of VARIANTS, "all", or table.key=value itself.

    Several overrides of one variant are joined by +. Raises UserError for a name that is none.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name == "all":
            found |= VARIANTS
        elif name in VARIANTS:
            found[name] = VARIANTS[name]
        elif "=" in name:
            found[name.replace("/", "-")] = tuple(name.split("+"))
        else:
            known = f"{', '.join(VARIANTS)}, all, or table.key=value{did_you_mean(name, VARIANTS)}"
            raise UserError(f'ablate: got "{name}", expected {known}')
    if not found:
        raise UserError(f"ablate: got nothing to change, expected some of {', '.join(VARIANTS)}, or all")
    return found


def trial_name(variant: str, seed: int) -> str:
    """The directory's name of a run."""
    return f"{variant}-s{seed}"


def load_trials(out: Path) -> list[Trial]:
    """The finished runs under `out`, the base's first."""
    trials = []
    for path in out.glob(f"*/{CELL}"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if "variant" in facts and (run := read_run(path.parent)):
            trials.append(Trial(facts["variant"], int(facts["seed"]), run))
    return sorted(trials, key=lambda one: (one.variant != BASE, one.variant, one.seed))


def compute_effects(trials: Sequence[Trial]) -> list[Effect]:
    """Every variant's difference to the base over the seeds that both have, the best first; the base itself on top."""
    base = {one.seed: one.run for one in trials if one.variant == BASE}
    names = list(dict.fromkeys(one.variant for one in trials))
    made = []
    for name in names:
        pairs = [(one.run, base[one.seed]) for one in trials if one.variant == name and one.seed in base]
        if not pairs:
            continue
        gaps = [run.bits_per_byte - other.bits_per_byte for run, other in pairs]
        half = confidence_margin(gaps) if name != BASE else None
        middle, first = mean(gaps), pairs[0][0]
        made.append(
            Effect(
                name,
                mean(run.bits_per_byte for run, _ in pairs),
                middle,
                None if half is None else middle - half,
                None if half is None else middle + half,
                len(pairs),
                first.parameters["all parameters"],
                first.tokens,
            )
        )
    return sorted(made, key=lambda one: (one.variant != BASE, one.difference))


def confidence_margin(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean (Student's t); None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    return (T95[n - 2] if n - 2 < len(T95) else 1.96) * stdev(values) / n**0.5


def effects_to_json(found: Sequence[Effect]) -> list[dict[str, Any]]:
    """The effects as JSON values."""
    return [{**vars(one), "verdict": one.verdict if one.variant != BASE else ""} for one in found]


def effect_rows(found: Sequence[Effect]) -> list[tuple[str, ...]]:
    """The effects as cells: variant, bits per byte, difference, interval, seeds, parameters, tokens, verdict."""
    from fledgling.record.progress_bar import format_count

    made = []
    for one in found:
        difference = "" if one.variant == BASE else f"{one.difference:+.4f}"
        interval = "" if one.low is None else f"{one.low:+.4f} to {one.high:+.4f}"
        verdict = "" if one.variant == BASE else one.verdict
        sizes = (str(one.seeds), format_count(one.parameters), format_count(one.tokens))
        made.append((one.variant, f"{one.bits_per_byte:.4f}", difference, interval, *sizes, verdict))
    return made


EFFECT_HEADER = ("variant", "bits per byte", "difference", "95 % interval", "seeds", "parameters", "tokens", "")
