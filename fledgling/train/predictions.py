"""Predictions of the planner, each written once and before the step that it predicts.

    RUN/plan.json                      of the whole run, before the first step of its first stage
    RUN/STAGE/plan.json                of the same, before that stage's first step: with the speeds known by then
    RUN/STAGE/plan-2.json, plan-3 ...  when the stage is resumed with other settings, or on another machine

None is rewritten by a later stage, benchmark, resume or evaluation, so that the report compares what was measured with
what was predicted.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fledgling.config import STAGES, ModelConfig, Recipe, UserError, dump_toml
from fledgling.config.changes import keep_derived
from fledgling.config.load import parse_recipe
from fledgling.plan.budgeted_run import read_budgeted_run
from fledgling.plan.hardware import DeviceSpec
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.record import write_json
from fledgling.train.distill.teacher import read_teacher_config
from fledgling.train.source_sizes import count_generated_shares, count_source_sizes


def write_predictions(
    recipe: Recipe,
    stage: str,
    run_dir: Path,
    step: int,
    peak_flops: float | None = None,
    device: DeviceSpec | None = None,
) -> None:
    """Writes the predictions that are due before step `step` + 1 of a stage.

    Args:
        recipe: with the hardware, dtype and number of ranks that the run really has.
        stage: that trains.
        run_dir: of the run.
        step: number of finished steps.
        peak_flops: measured, of one rank; None: not measured.
        device: of a rank; None: the recipe's.
    """
    placeless = replace(recipe, run=replace(recipe.run, out=""))  # where a run is changes nothing
    settings = dump_toml(placeless)
    stage_dir, of_run = run_dir / stage, run_dir / "plan.json"
    written = _list_written(stage_dir)
    has_begun = {name: (run_dir / name / "metrics.jsonl").exists() for name in STAGES}
    is_new = not written or not _has_settings(_read_settings(written[-1]), placeless)
    is_due = not of_run.exists() or (is_new and not any(has_begun.values()))
    if not (is_new or is_due):
        return
    predicted, teacher = _choose_predicted(recipe, stage)
    sizes = count_source_sizes(recipe)
    generated = count_generated_shares(predicted)
    assumed = PlanSettings(device=device, peak_flops=peak_flops, strict=False)
    assumed = replace(assumed, sizes=sizes, teacher=teacher, generated=generated)
    if step == 0 and peak_flops:
        assumed = replace(assumed, mfu=_read_measured_mfu(run_dir, recipe.run.ranks, peak_flops))
    planned = make_plan(predicted, assumed)
    config = None if teacher is None else teacher.to_dict()
    plan = {**planned, "before_step": step + 1, "settings": settings, "teacher": config}
    if is_due:
        write_json(of_run, plan)
    if is_new:
        is_later = written and has_begun[stage]
        write_json(stage_dir / (f"plan-{len(written) + 1}.json" if is_later else "plan.json"), plan)


def _read_measured_mfu(run_dir: Path, ranks: int, peak_flops: float) -> float | None:
    """Returns the speed that a run with a budget measured before it began, as a share of the peak of its ranks.

    None for a run without a budget, and where it has another number of ranks now. peak_flops: of one rank.
    """
    try:
        run = read_budgeted_run(run_dir)
    except UserError:  # corrupt
        return None
    if run is None or run.ranks != ranks:
        return None
    return min(1.0, run.speed.flops / (ranks * peak_flops))


def _has_settings(text: str | None, recipe: Recipe) -> bool:
    """Returns whether recorded settings are those of a recipe: values that a rule has filled since are no change."""
    try:
        return text is not None and keep_derived(recipe, parse_recipe(text)) == recipe
    except UserError:
        return False


def _choose_predicted(recipe: Recipe, stage: str) -> tuple[Recipe, ModelConfig | None]:
    """Returns the recipe of the stages that can be predicted, and the configuration of its teacher, if there is one.

    A teacher that is gone is missed only in the stages that learn from it. Raises UserError where `stage` is one.
    """
    try:
        return recipe, read_teacher_config(recipe)
    except UserError:
        if recipe.has_teacher(stage):
            raise
    return replace(recipe, stages=tuple(name for name in recipe.stages if not recipe.has_teacher(name))), None


def find_teacher_config(recipe: Recipe, run_dir: Path) -> tuple[ModelConfig | None, str]:
    """Returns the configuration of the teacher of a run, and a line that says so where the teacher is gone, or "".

    If the teacher is gone, it is what the run's predictions have recorded; None if they have not, or if the run has no
    teacher. Raises UserError for a teacher that is gone and that `run_dir` was not made with.
    """
    try:
        return read_teacher_config(recipe), ""
    except UserError as error:
        if not (run_dir / "environment.json").is_file():
            raise
        for path in reversed([run_dir / "plan.json", *(p for name in STAGES for p in _list_written(run_dir / name))]):
            if config := _read_recorded_teacher(path, recipe.distill.teacher):
                place = path.relative_to(run_dir)
                return config, f"{error}; planned with its configuration, which {place} of the run has recorded"
        return None, f"{error}, and the run has not recorded what it was: its weights, memory and time are not counted"


def _list_written(stage_dir: Path) -> list[Path]:
    """Returns the predictions of a stage, oldest first."""
    numbers = {path: path.stem.removeprefix("plan-") for path in stage_dir.glob("plan-*.json")}
    later = sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda p: int(numbers[p]))
    return [path for path in (stage_dir / "plan.json", *later) if path.exists()]


def _read_recorded_teacher(path: Path, spec: str | None) -> ModelConfig | None:
    """Returns the configuration that a written plan has of the teacher called `spec`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if parse_recipe(value["settings"]).distill.teacher != spec or not value["teacher"]:
            return None
        return ModelConfig.from_dict(value["teacher"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError):
        return None


def _read_settings(path: Path) -> str | None:
    """Returns the settings of a written plan, with the defaults of fields that did not exist when it was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return dump_toml(parse_recipe(value["settings"]))
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return None
