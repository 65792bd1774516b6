"""Distillation at equal time: a student of half the teacher's width, with the teacher and alone, for several seeds.

Both students are pretrained on the teacher's own recipe, the one by the weights that the teacher had after pretraining.
It takes `steps` steps, of which some ask the teacher (`distill.until`, `distill.every`) and the others are as those of
the other. How many steps of that one take the same time follows from the seconds of a step of each, those of the
teacher included: medians of steps of both in turn, in one process, so that other work on the machine slows both.
Every run is a run directory that resumes where it was interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from fledgling.bench.train import build_training
from fledgling.config import Recipe, UserError, load_recipe
from fledgling.plan.horizon import compute_horizon
from fledgling.record import read_jsonl, write_json
from fledgling.record.checkpoint import resolve_checkpoint
from fledgling.train.distill.teacher import load_teacher
from fledgling.train.loop import train_step
from fledgling.train.run import run_stage
from fledgling.train.trial_step import compile_teaching, make_random_stage

TURNS = 30  # of both ways, two steps each
WARMUP = 3  # steps of each way before them: the first compiles
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


def measure_step_seconds(recipes: dict[str, Recipe], teacher: Path) -> dict[str, float]:
    """Returns the median seconds of a pretraining step on random rows, by way; the ways take turns."""
    steps = {way: make_step(recipe, teacher) for way, recipe in recipes.items()}
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    seconds: dict[str, list[float]] = {way: [] for way in recipes}
    for _ in range(TURNS):
        for way, step in steps.items():
            seconds[way] += [step(), step()]
    return {way: median(values) for way, values in seconds.items()}


def make_step(recipe: Recipe, teacher: Path) -> Callable[[], float]:
    """Returns a function that makes one step of pretraining and returns its seconds."""
    world, setup, model, optimizer = build_training(recipe)
    rows = compute_horizon(model.config, recipe.pretrain.batch_tokens).batch_tokens // model.config.context
    own = recipe.pretrain.micro_batch_size or rows
    is_live = recipe.distill.teacher is not None and recipe.distill.top_k is None
    live = load_teacher(str(teacher), world.device, setup.dtype).model if is_live else None
    stage = make_random_stage(recipe, "pretrain", model.config, own, max(1, rows // own), live)
    stage = compile_teaching(stage, recipe, live, setup.compiled, world.device)

    def step() -> float:
        start = time.perf_counter()
        train_step(stage, model, optimizer, stage.batches.next(), world)
        return time.perf_counter() - start

    return step


def measure_distillation(
    teacher: Path, out: Path, steps: int, seeds: tuple[int, ...], top_k: int | None, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns for every seed the two students, with steps, seconds and evaluations.

    Args:
        teacher: a run directory; its weights after pretraining teach.
        out: the folder of the students' runs.
        top_k: tokens that are stored; None: a live teacher.
        overrides: of the students' recipes.
    """
    if not (teacher / "recipe.toml").is_file():
        raise UserError(f"{teacher} is no run directory: expected one, such as runs/quickstart")
    checkpoint = resolve_checkpoint(teacher / "pretrain")
    rows = []
    teaching = [f"distill.teacher={checkpoint}", *([f"distill.top_k={top_k}"] if top_k else [])]
    ways = {"distilled": [*overrides, *teaching], "alone": list(overrides)}
    timed = {way: student_recipe(teacher, out / f"{way}-{seeds[0]}", seeds[0], own) for way, own in ways.items()}
    saved = out / f"step-seconds-{top_k or 'live'}.json"  # an interrupted measurement resumes with the same steps
    if not saved.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(saved, measure_step_seconds(timed, checkpoint))
    of_step = json.loads(saved.read_text(encoding="utf-8"))
    for seed in seeds:
        own = [*ways["distilled"], f"pretrain.steps={steps}"]
        recipe = student_recipe(teacher, out / f"distilled-{seed}", seed, own)
        taught = train_student(teacher, recipe)
        number = sum(recipe.distill.teaches(step, steps) for step in range(steps))
        seconds = number * of_step["distilled"] + (steps - number) * of_step["alone"] + taught["seconds_of_storing"]
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
