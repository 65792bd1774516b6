"""Distillation at equal time: a student of half the teacher's width, with the teacher and alone, for several seeds.

Both students are pretrained on the teacher's own recipe. The one that learns from the teacher takes `steps` steps. How
many steps of the other take the same time follows from the seconds of a step of each, those of the teacher included:
medians of short trainings in alternating turns, so that other work on the machine slows both. Every run is a run
directory that resumes where it was interrupted.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from fledgling.config import Recipe, UserError, load_recipe
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import resolve_checkpoint
from fledgling.train.run import run_stage

TURNS = 3  # of both ways, one after the other
TURN_STEPS = 12  # of which the first four are left out
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
    if not (out / "tokenizer").exists():  # a link, because one that is linked to is never trained again
        out.mkdir(parents=True, exist_ok=True)
        (out / "tokenizer").symlink_to((teacher / "tokenizer").resolve(), target_is_directory=True)
    run_stage(recipe, "pretrain", quiet=True)
    steps = recipe.pretrain.steps
    evals = {
        line["name"]: line["value"] for line in read_jsonl(out / "pretrain" / "evals.jsonl") if line["step"] == steps
    }
    manifests = [json.loads(path.read_text()) for path in (out / "data").glob("teacher-*/shard-*/manifest.json")]
    stored = sum(manifest["seconds"] for manifest in manifests)
    seconds = sum(line["seconds"] for line in read_jsonl(out / "pretrain" / "metrics.jsonl"))
    return {"steps": steps, "seconds": seconds + stored, "seconds_of_storing": stored, "evals": evals}


def measure_step_seconds(teacher: Path, out: Path, seed: int, settings: dict[str, list[str]]) -> dict[str, float]:
    """Returns the median seconds of a step of each way, in alternating turns; `settings` are those of a way."""
    seconds: dict[str, list[float]] = {way: [] for way in settings}
    for turn in range(TURNS):
        for way, own in settings.items():
            folder = out / f"speed-{way}-{seed}-{turn}"
            recipe = student_recipe(teacher, folder, seed, [*own, f"pretrain.steps={TURN_STEPS}"])
            train_student(teacher, replace(recipe, pretrain=replace(recipe.pretrain, save_every=0)))
            lines = read_jsonl(folder / "pretrain" / "metrics.jsonl")
            seconds[way] += [line["seconds"] for line in lines[4:]]
    return {way: median(values) for way, values in seconds.items()}


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
    teaching = [f"distill.teacher={checkpoint}", *([f"distill.top_k={top_k}"] if top_k else [])]
    ways = {"distilled": [*overrides, *teaching], "alone": list(overrides)}
    of_step = measure_step_seconds(teacher, out, seeds[0], ways)
    for seed in seeds:
        own = [*ways["distilled"], f"pretrain.steps={steps}"]
        taught = train_student(teacher, student_recipe(teacher, out / f"distilled-{seed}", seed, own))
        seconds = steps * of_step["distilled"] + taught["seconds_of_storing"]
        own = [*ways["alone"], f"pretrain.steps={max(1, round(seconds / of_step['alone']))}"]
        alone = train_student(teacher, student_recipe(teacher, out / f"alone-{seed}", seed, own))
        rows.append({"seed": seed, "distilled": taught, "alone": alone})
    return {"teacher": str(checkpoint), "top_k": top_k, "seconds_of_a_step": of_step, "rows": rows}


def format_distillation(values: dict[str, Any]) -> str:
    """Returns steps, seconds of a step and every evaluation of both students, middles over the seeds."""
    rows = values["rows"]
    names = [name for name in rows[0]["distilled"]["evals"] if all(name in row["alone"]["evals"] for row in rows)]
    lines = [f"| {len(rows)} seed{'s' if len(rows) > 1 else ''} | distilled | alone |", "|---|---|---|"]
    steps = (f"{median(row[way]['steps'] for row in rows):,.0f}" for way in WAYS)
    seconds = (f"{values['seconds_of_a_step'][way]:.3f}" for way in WAYS)
    lines += [f"| steps | {' | '.join(steps)} |", f"| seconds of a step | {' | '.join(seconds)} |"]
    for name in names:
        found = [[row[way]["evals"][name] for row in rows] for way in WAYS]
        cells = (f"{median(each):.4f} ({min(each):.4f} to {max(each):.4f})" for each in found)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
