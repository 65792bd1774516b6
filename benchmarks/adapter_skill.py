"""A new skill by an adapter and by full fine-tuning: what is learned and forgotten, memory and time next to the plan.

A run's weights are fine-tuned on a made-up language (`fledgling/tasks/skills/language.py`) mixed with the run's own sft
mixture, once with LoRA and once in full. Exams are those of held-out sentences and of the run's other skills, before
and after. Both are run directories, and exams are saved answer by answer, so an interrupted measurement is resumed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, UserError, load_recipe
from fledgling.evals.chat import build_exams, measure_exam
from fledgling.evals.session import EvalSession
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import read_checkpoint_state, resolve_checkpoint
from fledgling.tasks import SKILLS
from fledgling.tasks.task import TRAIN
from fledgling.train.hooks import NO_EVALS
from fledgling.train.run import run_stage

SKILL = "language"
WAYS = {
    "lora": ["adapter.method=lora", 'adapter.stages=["sft"]'],
    "full": ["adapter.method=none"],
}


def tuning_recipe(run: Path, out: Path, share: float, steps: int, settings: list[str]) -> Recipe:
    """Returns the recipe that fine-tunes the run's newest weights on the skill (`share` of the tokens) and its own."""
    recipe = load_recipe(str(run))
    own = {name: weight for name, weight in recipe.sft.mixture.items() if weight > 0}
    if not own:
        raise UserError(f"{run} has no sft mixture to rehearse: expected a run of a recipe such as quickstart")
    total = sum(own.values())
    mixture = {SKILL: share, **{name: (1 - share) * weight / total for name, weight in own.items()}}
    written = ", ".join(f'"{name}" = {weight:.6f}' for name, weight in mixture.items())
    base = [
        *(f"run.out={out}", f"run.init_from={resolve_checkpoint(run)}", 'stages=["sft"]', f"sft.steps={steps}"),
        *(f"sft.mixture={{{written}}}", "sft.eval_every=0", "sft.sample_every=0", "sft.save_every=50"),
    ]
    return load_recipe(str(run), [*base, *settings])


def measure_exams(checkpoint: Path, folder: Path, questions: int) -> dict[str, float]:
    """Returns the accuracy of the skill and of the run's other skills, in train wordings and held-out subjects.

    What has no such exam is measured in the wordings of the test.
    """
    exams = build_exams([SKILL, *SKILLS], {TRAIN: questions})
    with_exam = {exam.task.name for exam in exams}
    exams += build_exams([name for name in SKILLS if name not in with_exam], {"test": questions})
    session = EvalSession.open(checkpoint)
    return {exam.name: measure_exam(exam.name, session.run_exam(exam, folder))[0].value for exam in exams}


def measure_adapter_skill(
    run: Path, out: Path, steps: int, share: float, questions: int, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns exams before and after, peak memory and seconds, measured and planned, of both ways."""
    found: dict[str, Any] = {"run": str(run), "steps": steps, "share": share, "questions": questions}
    found["before"] = measure_exams(resolve_checkpoint(run), out / "exams-before", questions)
    for way, settings in WAYS.items():
        recipe = tuning_recipe(run, out / way, share, steps, [*settings, *overrides])
        print(f"{way}: {steps} steps", file=sys.stderr)
        run_stage(recipe, "sft", quiet=True, hooks=NO_EVALS)
        checkpoint = resolve_checkpoint(out / way)
        lines = read_jsonl(out / way / "sft" / "metrics.jsonl")
        planned = make_plan(recipe, PlanSettings(strict=False, peak_flops=lines[-1].get("peak_flops")))["stages"]["sft"]
        found[way] = {
            "exams": measure_exams(checkpoint, out / f"exams-{way}", questions),
            "memory": max(line.get("memory", 0) for line in lines),
            "planned_memory": planned["memory"],
            "seconds": sum(line["seconds"] for line in lines),
            "planned_seconds": planned["hours"] * 3600,
            "checkpoint_bytes": sum(file.stat().st_size for file in checkpoint.iterdir()),
            "step": read_checkpoint_state(checkpoint)["step"],
        }
    return found


def format_adapter_skill(values: dict[str, Any]) -> str:
    """Returns a table of exams in percent, then memory, time and size of a checkpoint."""
    lines = ["| | before | lora | full |", "|---|---|---|---|"]
    for name, before in values["before"].items():
        cells = (f"{100 * values[way]['exams'][name]:.1f}" for way in WAYS)
        lines.append(f"| {name} | {100 * before:.1f} | {' | '.join(cells)} |")
    for label, key, unit in (
        ("peak memory, MB", "memory", 1e6),
        ("planned", "planned_memory", 1e6),
        ("training, s", "seconds", 1),
        ("planned", "planned_seconds", 1),
        ("checkpoint, MB", "checkpoint_bytes", 1e6),
    ):
        lines.append(f"| {label} | - | {' | '.join(f'{values[way][key] / unit:,.1f}' for way in WAYS)} |")
    return "\n".join(lines)
