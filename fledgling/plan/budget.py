"""A whole run from an amount of time or money: which depth, stages, steps and batch fit, and which learn most.

For every depth that fits the device, the stages keep the proportions of their steps in the recipe, and are made as long
as the time allows; `fledgling.plan.depth_choice` takes one of these runs. Time is all that a user waits
for: `fledgling.plan.stage_seconds`. Where evaluations would take more than `MAX_EVALUATION` of it, the cheaper of
`EVALUATIONS` is taken. Start with `choose_run`; `fledgling speedrun --minutes` and `fledgling plan --minutes` call it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from fledgling.config import PHASES, LoopConfig, ModelConfig, Recipe, StageConfig, UserError, scaling_rules
from fledgling.config.model import choose_heads
from fledgling.plan import stage_seconds
from fledgling.plan.amount import Budget
from fledgling.plan.comparable_runs import Planned
from fledgling.plan.depth_choice import choose_laws
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.hardware import DeviceSpec
from fledgling.plan.parameters import count_law_parameters
from fledgling.plan.past_runs import PastRun, describe_data
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.stage_length import SourceSize, explain_unknown_length
from fledgling.plan.stage_seconds import (
    EVALUATIONS,
    CoreTime,
    EvaluationPlan,
    StageContent,
    StageSeconds,
    estimate_core_time,
    total_seconds,
)

TARGET = 0.97  # of the budget, that is planned: the rest is for what a run does not foresee
MAX_EVALUATION = 0.2  # of the budget, for evaluations and samples
MIN_STEPS = {"pretrain": 20, "midtrain": 10, "sft": 20, "dpo": 5, "rl": 3}  # a stage of fewer is left out
MAX_DEPTH = 64
SMALL_DEPTH = 8  # up to which each depth is compared, and beyond it every second one


@dataclass(frozen=True)
class TrainingSpeed:
    """FLOP/s of all ranks together, in training a model of `flops_per_token`. source: where the figure is from.

    core_share: the time of a core's other work (`fledgling.plan.core_speed`); None: not measured. cores: of all.
    """

    flops: float
    flops_per_token: float
    source: str
    core_share: float | None = None
    cores: int = stage_seconds.PARALLEL_CORES


@dataclass(frozen=True)
class RunChoice:
    """The run that a budget becomes.

    Attributes:
        recipe: with depth, stages, steps, batches and evaluations.
        stages: their time, and that of what is before and after them.
        planned: the sizes that the forecast depends on.
        evaluations: which of them are made.
        law: by which sizes were compared.
        speed: FLOP/s that the time was counted with.
    """

    recipe: Recipe
    stages: tuple[StageSeconds, ...]
    planned: Planned
    evaluations: EvaluationPlan
    law: str
    speed: TrainingSpeed


def speed_at(speeds: Sequence[TrainingSpeed], flops_per_token: float) -> TrainingSpeed:
    """Returns the speed of a model of that size: on a line between the two measured around it, else the nearest."""
    known = sorted(speeds, key=lambda speed: speed.flops_per_token)
    for low, high in pairwise(known):
        if low.flops_per_token < flops_per_token < high.flops_per_token:
            part = math.log(flops_per_token / low.flops_per_token) / math.log(
                high.flops_per_token / low.flops_per_token
            )
            return replace(low, flops=low.flops ** (1 - part) * high.flops**part, flops_per_token=flops_per_token)
    return min(known, key=lambda speed: abs(math.log(speed.flops_per_token / flops_per_token)))


def with_depth(recipe: Recipe, depth: int) -> Recipe:
    """Returns the recipe with another depth, from which width and heads follow.

    Heads are about as wide as those of a recipe that states their number, or as usual where that is less.
    """
    if depth == recipe.model.depth:
        return recipe
    model = replace(recipe.model.unpin("width", "heads", "kv_heads"), depth=depth)
    if recipe.model.heads is not None:
        resolved = replace(recipe, model=model).resolve_model()
        heads = choose_heads(resolved.width, recipe.resolve_model().head_width)
        model = replace(model, heads=heads) if heads > resolved.heads else model
    return replace(recipe, model=model)


def list_depths(depth: int, is_pinned: bool) -> list[int]:
    """Returns the depths to compare: the recipe's `depth`, and where that is not pinned all small and even ones."""
    if is_pinned:
        return [depth]
    return sorted({depth, *range(1, SMALL_DEPTH), *range(SMALL_DEPTH, MAX_DEPTH + 1, 2)})


def choose_run(
    recipe: Recipe,
    budget: Budget,
    speeds: Sequence[TrainingSpeed],
    device: DeviceSpec,
    ranks: int,
    runs: Sequence[PastRun],
    *,
    spent: float = 0.0,
    is_pinned: bool = False,
    sizes: Mapping[str, SourceSize] | None = None,
    contents: Mapping[str, StageContent] | None = None,
    unique_tokens: float | None = None,
    digests: Mapping[str, str] | None = None,
    teacher: ModelConfig | None = None,
) -> RunChoice:
    """Returns the run that learns most in a budget.

    Args:
        speeds: measured or assumed, of one or more sizes of the model.
        spent: seconds of the budget that are spent already.
        is_pinned: whether the recipe's depth is the user's.
        sizes: of the sources that open steps follow from.
        contents: of the stages.
        unique_tokens: of the largest source of pretraining, in one pass; None: not known.
        digests: of the user's texts, which identify them in past runs.
        teacher: the configuration of `distill.teacher`, if the recipe has one.

    Raises UserError, in one line, where nothing can be learned in the time.
    """
    if recipe.stages[0] != "pretrain":
        raise UserError(f"{budget.text}: expected a recipe that begins with pretrain, got {', '.join(recipe.stages)}")
    parameters, data = count_law_parameters(recipe.resolve_model()), describe_data(recipe, digests)
    comparison = choose_laws(runs, data, parameters, len(recipe.stages) > 1)
    found: dict[int, RunChoice] = {}
    reason: UserError | None = None
    for depth in list_depths(recipe.model.depth, is_pinned or not comparison.laws):
        try:
            sized = with_depth(recipe, depth)
            options = (spent, sizes or {}, contents or {}, unique_tokens, data, teacher)
            choice = fit_run(sized, budget, speeds, device, ranks, *options)
        except UserError as error:
            reason = reason or error
            if depth > recipe.model.depth:
                break  # deeper ones need more time and memory still
            continue
        found[depth] = replace(choice, law=comparison.name)
    if not found:
        assert reason is not None
        raise reason
    if own := found.get(recipe.model.depth):  # another depth is no better if it leaves out a stage that this one makes
        found = {depth: each for depth, each in found.items() if set(own.recipe.stages) <= set(each.recipe.stages)}
    return found[comparison.choose({depth: choice.planned for depth, choice in found.items()}, recipe.model.depth)]


def fit_run(
    recipe: Recipe,
    budget: Budget,
    speeds: Sequence[TrainingSpeed],
    device: DeviceSpec,
    ranks: int,
    spent: float,
    sizes: Mapping[str, SourceSize],
    contents: Mapping[str, StageContent],
    unique_tokens: float | None,
    data: str,
    teacher: ModelConfig | None,
) -> RunChoice:
    """Returns the recipe with as many steps as its budget allows; the arguments are those of `choose_run`.

    data: of the recipe (`describe_data`).
    """
    config = recipe.resolve_model()
    speed = speed_at(speeds, training_flops_per_token(config))
    seconds = TARGET * budget.seconds - spent
    core = estimate_core_time(device.kind, speed.flops, speed.flops_per_token, speed.core_share, speed.cores)
    here = replace(device, peak_flops=speed.flops / ranks, peaks=dict.fromkeys(device.peaks, speed.flops / ranks))
    generated = {name: content.generated for name, content in contents.items()}
    settings = PlanSettings(gpus=ranks, mfu=1.0, device=here, sizes=sizes, teacher=teacher, generated=generated)
    for attempt in (
        recipe,
        *(_remove_stages(recipe, names) for names in (("rl",), ("rl", "midtrain"), ("midtrain", "sft", "dpo", "rl"))),
    ):
        plan = make_plan(attempt, settings)
        found = _fit_steps(attempt, plan, speed, seconds, contents, budget, core)
        if found is None:
            continue
        steps, stages, evaluations = found
        sized = _with_steps(attempt, plan, steps, evaluations)
        stages = tuple(
            _rescale_to_made_steps(stage, sized.stage_config(stage.name).steps) if stage.steps else stage
            for stage in stages
        )
        tokens = int(steps["pretrain"] * plan["horizon"]["batch_tokens"])
        share = max(recipe.pretrain.mixture.values(), default=1.0) / (sum(recipe.pretrain.mixture.values()) or 1.0)
        per_token = plan["flops"]["per_token"]
        later = sum(
            plan["stages"][name]["tokens"] / plan["stages"][name]["steps"] * count * per_token
            for name, count in steps.items()
            if name != "pretrain"
        )
        memory = _plan_memory(sized, list(map(attempt.stage_config, sized.stages)), plan, settings)
        planned = Planned(
            data,
            count_law_parameters(config),
            tokens,
            tokens * share / unique_tokens if unique_tokens else None,
            later,
            spent + total_seconds(stages),
            memory,
        )
        return RunChoice(sized, stages, planned, evaluations, "", speed)
    first = make_plan(_remove_stages(recipe, ("midtrain", "sft", "dpo", "rl")), settings)

    def least(flops: float, steps: int) -> float:
        return stage_seconds.least_seconds(recipe, first["stages"], flops, core, contents, steps)

    raise _explain_least(recipe, budget, spent, speed.flops, least)


def _plan_memory(made: Recipe, tables: Sequence[LoopConfig], plan: Mapping[str, Any], settings: PlanSettings) -> float:
    """Returns the peak memory of the recipe that is made: that of `plan`, of its `tables`, unless a batch has grown."""
    pairs = zip(tables, map(made.stage_config, made.stages), strict=True)
    batches = ([getattr(table, "batch_tokens", None) for table in pair] for pair in pairs)
    final = plan if all(before == after for before, after in batches) else make_plan(made, settings)
    return max(stage["memory"] for stage in final["stages"].values())


def _explain_least(
    recipe: Recipe, budget: Budget, spent: float, flops: float, least: Callable[[float, int], float]
) -> UserError:
    """Returns the error of a budget that is too small.

    Args:
        spent: seconds of measuring, or assumed for it.
        flops: the speed of training.
        least: the seconds of a run of pretraining alone, at some FLOP/s and with some steps.
    """
    fixed, whole, depth = least(flops, 0), least(flops, MIN_STEPS["pretrain"]), recipe.model.depth
    fits_without_products = spent + least(math.inf, 0) < TARGET * budget.seconds
    can_shrink = depth != 1 and recipe.run.init_from is None and fits_without_products
    measuring = f"measuring this machine takes {spent:,.0f} s, " if spent >= 0.5 else ""
    smaller = "a smaller model (--set model.depth=1) or " if can_shrink else ""
    return UserError(
        f"{budget.text}: nothing can be learned in {budget.seconds:,.0f} s: {measuring}start, text, tokenizer and one "
        f"evaluation take {fixed:,.0f} s here, and {MIN_STEPS['pretrain']} steps at depth {depth} "
        f"{whole - fixed:,.0f} s; expected {smaller}at least {budget.describe((spent + whole) / TARGET)}"
    )


def _remove_stages(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """Returns the recipe without some of its later stages, and as if it had stated nothing of these."""
    stages = tuple(name for name in recipe.stages if name not in names or name == recipe.stages[0])
    tables: dict[str, Any] = {
        name: type(getattr(recipe, name))()
        for name in ("adapter", "distill")
        if not set(getattr(recipe, name).stages) & set(stages)
    }
    removed = {*recipe.stages, *tables} - set(stages)
    stated = {name for name in recipe.stated if name.split(".")[0] not in removed}
    stated -= {"optimizer.adapter_lr"} if "adapter" in tables else set()
    return replace(recipe, **tables, stages=stages, stated=frozenset(stated))


def _fit_steps(
    recipe: Recipe,
    plan: Mapping[str, Any],
    speed: TrainingSpeed,
    seconds: float,
    contents: Mapping[str, StageContent],
    budget: Budget,
    core: CoreTime,
) -> tuple[dict[str, float], tuple[StageSeconds, ...], EvaluationPlan] | None:
    """Returns steps by stage, the time of all that is made, and the evaluations; None if a stage would have too few."""
    if any(name not in plan["stages"] for name in recipe.stages):
        missing = next(name for name in recipe.stages if name not in plan["stages"])
        raise UserError(f"{budget.text}: {explain_unknown_length(missing, recipe.stage_config(missing))}")
    base = {name: plan["stages"][name] for name in recipe.stages}
    for evaluations in EVALUATIONS:
        share, capped = 1.0, set[str]()
        for _ in range(3):  # stages of open length are not longer than their data
            none, whole = (
                stage_seconds.estimate_run(
                    recipe,
                    base,
                    {name: (1.0 if name in capped else part) * stage["steps"] for name, stage in base.items()},
                    *(speed.flops, core, contents, evaluations),
                )
                for part in (0.0, 1.0)
            )
            fixed = total_seconds(none)  # the time of the whole is linear in the share: text that is tokenized too
            share = (seconds - fixed) / (total_seconds(whole) - fixed) if total_seconds(whole) > fixed else 0.0
            if share <= 0:
                break
            too_long = {n for n in base if share > 1 and n not in capped and _has_end(n, recipe.stage_config(n))}
            if not too_long:
                break
            capped |= too_long
        if share <= 0:
            continue
        parts = {name: 1.0 if name in capped else share for name in base}
        steps = {name: _count_steps(name, recipe.stage_config(name), base[name], part) for name, part in parts.items()}
        stages = stage_seconds.estimate_run(recipe, base, steps, speed.flops, core, contents, evaluations)
        spent_on_evals = sum(s.between + s.end for s in stages)
        if any(steps[name] < min(MIN_STEPS[name], base[name]["steps"]) for name in steps):
            continue
        if spent_on_evals > MAX_EVALUATION * budget.seconds and evaluations is not EVALUATIONS[-1]:
            continue
        return steps, stages, evaluations
    return None


def _count_steps(name: str, table: LoopConfig, stage: Mapping[str, Any], part: float) -> float:
    """Returns the steps of a part of a stage; of one whose data are few no fewer than would leave it out."""
    steps = float(int(part * stage["steps"]))
    return max(steps, float(min(MIN_STEPS[name], stage["steps"]))) if _has_end(name, table) and part > 0.5 else steps


def _rescale_to_made_steps(stage: StageSeconds, made: int | None) -> StageSeconds:
    """Returns the time of a stage that makes `made` steps, which are fewer where its batch has grown; None: as planned.

    Its tokens, and so its time, stay.
    """
    return replace(stage, steps=made, step_seconds=stage.step_seconds * stage.steps / made) if made else stage


def _has_end(name: str, table: LoopConfig) -> bool:
    """Returns whether the steps of a later stage follow from its data, which are read once."""
    return name != "pretrain" and table.steps is None


def _with_steps(
    recipe: Recipe, plan: Mapping[str, Any], steps: Mapping[str, float], evaluations: EvaluationPlan
) -> Recipe:
    """Returns the recipe with its steps, with intervals in proportion to them, and with warm-ups that fit."""
    tables: dict[str, Any] = {}
    for name, count in steps.items():
        table, before = recipe.stage_config(name), plan["stages"][name]["steps"]
        made, batches = scale_batch(table, count, count / before)
        ratio = made / before
        every: dict[str, Any] = {
            key: max(1, round(getattr(table, key) * ratio)) if getattr(table, key) else 0
            for key in ("eval_every", "sample_every", "save_every", "core_every")
            if hasattr(table, key)
        }
        every["save_every"] = every["save_every"] or max(1, made // 3)
        if not evaluations.between:
            every |= {"eval_every": 0, "sample_every": 0}
            every |= {"core_every": 2 * made} if every.get("core_every") else {}  # a stage may grow
        tables[name] = replace(
            table,
            steps=made,
            num_epochs=None,
            **fit_phases(table, made, ratio),
            eval_questions=max(1, round(table.eval_questions * evaluations.questions)),
            **batches,
            **every,
        )
    return replace(recipe, **tables)


def fit_phases(table: LoopConfig, steps: int, growth: float) -> dict[str, Any]:
    """Returns the settings of `table` that count steps from the first, for a stage of `steps`, `growth` times as long.

    The rate's warm-up is at most a tenth of the stage. Phases of rows and targets shrink with the stage and never grow.
    """
    phases = {name: value for name in PHASES if (value := getattr(table, name, 0))}
    fitted = {name: max(1, round(value * min(1.0, growth))) for name, value in phases.items()}
    return fitted if table.warmup_steps is None else {"warmup_steps": min(table.warmup_steps, steps // 10), **fitted}


def scale_batch(table: Any, steps: float, growth: float) -> tuple[int, dict[str, Any]]:
    """Returns the steps of a stage and its batch, where it has a pinned one and reads `growth` times the tokens.

    The batch grows with the tokens to the power .383 (arXiv 2505.13738), by powers of two, and never falls below the
    recipe's; the tokens stay the same.
    """
    if not isinstance(table, StageConfig) or table.batch_tokens is None or growth <= 1:
        return max(1, int(steps)), {}
    factor = 2 ** max(0, math.floor(scaling_rules.BATCH_EXPONENT * math.log2(growth) + 0.25))
    return max(1, int(steps / factor)), {"batch_tokens": table.batch_tokens * factor} if factor > 1 else {}
