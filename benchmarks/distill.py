"""Distillation at equal time: a student of half the teacher's width, with the teacher and alone, for several seeds.

Both students are pretrained on the teacher's own recipe. The one that learns from the teacher takes `steps` steps, and
its seconds, those of the teacher included, are the time of the other, whose steps follow from its measured speed. Every
run is a run directory that resumes where it was interrupted.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from fledgling.config import Recipe, UserError, load_recipe
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import resolve_checkpoint
from fledgling.train.run import run_stage

CALIBRATION_STEPS = 12  # of the student alone, before its length is known; the first four are left out
WAYS = ("distilled", "alone")


def student_recipe(teacher: Path, out: Path, seed: int, settings: list[str]) -> Recipe:
    """Returns the teacher's recipe, pretraining alone, with half the width."""
    recipe = load_recipe(str(teacher))
    model = recipe.resolve_model()
    base = [
        *(f"run.out={out}", f"seed={seed}", 'stages=["pretrain"]', f"model.width={model.width // 2}"),
        *("pretrain.save_every=100", "pretrain.eval_every=0", "pretrain.sample_every=0", "pretrain.core_every=0"),
    ]
    return load_recipe(str(teacher), [*base, *settings])


def train_student(teacher: Path, recipe: Recipe) -> dict[str, Any]:
    """Runs the student's pretraining to its end, or on to it; returns its time and its last evaluations."""
    out = Path(recipe.run.out)
    if not (out / "tokenizer").exists():
        shutil.copytree(teacher / "tokenizer", out / "tokenizer")
    run_stage(recipe, "pretrain", quiet=True)
    steps = recipe.pretrain.steps
    evals = {
        line["name"]: line["value"] for line in read_jsonl(out / "pretrain" / "evals.jsonl") if line["step"] == steps
    }
    manifests = [json.loads(path.read_text()) for path in (out / "data").glob("teacher-*/shard-*/manifest.json")]
    stored = sum(manifest["seconds"] for manifest in manifests)
    seconds = sum(line["seconds"] for line in read_jsonl(out / "pretrain" / "metrics.jsonl"))
    return {"steps": steps, "seconds": seconds + stored, "seconds_of_storing": stored, "evals": evals}


def measure_speed(teacher: Path, recipe: Recipe) -> float:
    """Returns the seconds of a step of the student alone."""
    short = replace(recipe, pretrain=replace(recipe.pretrain, steps=CALIBRATION_STEPS, save_every=0))
    train_student(teacher, short)
    lines = read_jsonl(Path(short.run.out) / "pretrain" / "metrics.jsonl")
    return mean(line["seconds"] for line in lines[4:])


def measure_distillation(
    teacher: Path, out: Path, steps: int, seeds: tuple[int, ...], top_k: int | None, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns for every seed the two students, with steps, seconds and evaluations.

    Args:
        teacher: a run directory; its newest checkpoint teaches.
        out: the folder of the students' runs.
        top_k: tokens that are stored; None: a live teacher.
        overrides: of the students' recipes.
    """
    if not (teacher / "recipe.toml").is_file():
        raise UserError(f"{teacher} is no run directory: expected one, such as runs/quickstart")
    checkpoint = resolve_checkpoint(teacher)
    rows = []
    for seed in seeds:
        teaching = [f"distill.teacher={checkpoint}", *([f"distill.top_k={top_k}"] if top_k else [])]
        both = [f"pretrain.steps={steps}", *overrides]
        taught = train_student(teacher, student_recipe(teacher, out / f"distilled-{seed}", seed, [*both, *teaching]))
        plain = student_recipe(teacher, out / f"speed-{seed}", seed, both)
        of_step = measure_speed(teacher, plain)
        own_steps = max(1, round(taught["seconds"] / of_step))
        settings = [*both, f"pretrain.steps={own_steps}"]
        alone = train_student(teacher, student_recipe(teacher, out / f"alone-{seed}", seed, settings))
        rows.append({"seed": seed, "distilled": taught, "alone": alone})
    return {"teacher": str(checkpoint), "top_k": top_k, "rows": rows}


def format_distillation(values: dict[str, Any]) -> str:
    """Returns the steps, the seconds and every evaluation of both students, middles over the seeds."""
    rows = values["rows"]
    names = [name for name in rows[0]["distilled"]["evals"] if all(name in row["alone"]["evals"] for row in rows)]
    lines = [f"| {len(rows)} seed{'s' if len(rows) > 1 else ''} | distilled | alone |", "|---|---|---|"]
    for key, digits in (("steps", 0), ("seconds", 0)):
        cells = (f"{median(row[way][key] for row in rows):,.{digits}f}" for way in WAYS)
        lines.append(f"| {key} | {' | '.join(cells)} |")
    for name in names:
        found = [[row[way]["evals"][name] for row in rows] for way in WAYS]
        cells = (f"{median(each):.4f} ({min(each):.4f} to {max(each):.4f})" for each in found)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
