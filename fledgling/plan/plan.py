"""Builds a complete plan as one dictionary: `fledgling plan --json` prints it and the report compares it with the run.

Keys are stable: `parameters.total`, `flops.per_token`, `flops.total`, `memory.per_rank.total` (bytes), `time.hours` and
`cost.usd` keep their names; new keys may be added. Parameters and FLOPs are exact, memory is counted, hours and cost
are estimates. `horizon`, `time`, `flops.total`, `memory`, `data` and `cost` describe pretraining, also where it is not
`in_run`; what depends on a length that only its data show is None there. `stages` has every stage whose steps are
known, `unknown_stages` the names of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fledgling.config import DPOConfig, ModelConfig, Recipe, RLConfig, StageConfig, UserError, load_recipe
from fledgling.plan import communication, cost, flops, hardware, memory
from fledgling.plan.derive import derive_known, list_derived
from fledgling.plan.inference import plan_inference
from fledgling.plan.optimizer_state import find_fitting_state
from fledgling.plan.parameters import (
    count_law_parameters,
    count_matrix_parameters,
    count_parameters,
    parameter_formula,
    rule_of_thumb_bytes,
)
from fledgling.plan.published_sizes import published_sizes
from fledgling.plan.split import (
    MAX_MICRO_BATCH_ROWS,
    choose_split,
    empty_share,
    explain_memory_shortage,
    require_row_each,
)
from fledgling.plan.stage_length import SourceSize, derive_dpo_steps, derive_length, derive_rl_steps, find_rows
from fledgling.plan.stage_step import device_row_step, stage_step
from fledgling.plan.teacher import plan_teacher
from fledgling.plan.utilization import choose_utilization, find_adapter_share

CHARACTERS_PER_TOKEN = 4.8  # English web text with 65,536 entries; lower for a small vocabulary
CHARACTERS_PER_SHARD = 250_000_000  # of the files of the public data sets
BYTES_PER_SHARD = 100_000_000  # of such a file, compressed
# Overrides of quickstart that leave everything to the depth, and the published run's vocabulary, context and device.
DEPTH_ONLY = ("optimizer={}", "pretrain={}", "midtrain={}", "sft={}", "rl={}", "model={}", 'stages=["pretrain"]')
PUBLISHED = ("tokenizer.vocab_size=65536", "model.context=2048", "run.hardware=h100")


@dataclass(frozen=True)
class PlanSettings:
    """What a plan assumes besides the recipe.

    Attributes:
        gpu: name of the device; None: `run.hardware`.
        gpus: number of devices; None: `run.ranks`.
        mfu: utilization in (0, 1]; None: measured on this machine, else the table's.
        price: US dollars per hour for one device.
        link: name of the link between the devices.
        layout: one of `fledgling.plan.memory.LAYOUTS`.
        strict: whether to raise for a step of fewer rows than ranks, and for one that does not fit the device.
        peak_flops: FLOP/s of a device, measured by the run that is planned; None: the table's or the benchmark's.
        sizes: of the sources that open steps and batches follow from (`fledgling.train.source_sizes`); None: those that
            the public sets are known for.
        device: replaces `gpu`: a GPU given by its figures.
        teacher: the configuration of `distill.teacher` (`fledgling.train.distill.teacher`); None: it is not counted.
        generated: the share of a stage's rows that are generated conversations, by stage
            (`fledgling.train.source_sizes`).
    """

    gpu: str | None = None
    gpus: int | None = None
    mfu: float | None = None
    price: float | None = None
    link: str | None = None
    layout: str = "fledgling"
    strict: bool = True
    peak_flops: float | None = None
    sizes: Mapping[str, SourceSize] | None = None
    device: hardware.DeviceSpec | None = None
    teacher: ModelConfig | None = None
    generated: Mapping[str, float] = field(default_factory=dict)

    def require_valid(self) -> None:
        """Raises UserError for a value out of range."""
        if self.gpus is not None and self.gpus < 1:
            raise UserError(f"gpus: got {self.gpus}, expected at least 1")
        cost.require_utilization(self.mfu)
        if self.price is not None:
            cost.require_price(self.price)
        if self.layout not in memory.LAYOUTS:
            raise UserError(f"layout: got {self.layout!r}, expected one of {', '.join(memory.LAYOUTS)}")


DEFAULT_SETTINGS = PlanSettings()


@dataclass(frozen=True)
class _PlanContext:
    """The values that all stages share.

    step: one row of a training step. sizes: all that are known. pretrain: the step of pretraining, in micro-batches.
    """

    recipe: Recipe
    settings: PlanSettings
    config: ModelConfig
    device: hardware.DeviceSpec
    step: memory.TrainingStep
    sizes: Mapping[str, SourceSize]
    pretrain: memory.TrainingStep
    utilization: Mapping[str, Any]  # of `choose_utilization`

    @property
    def mfu(self) -> float:
        """The utilization that hours are estimated with."""
        return self.utilization["mfu"]

    def is_strict(self, name: str) -> bool:
        """Whether stage `name` raises for what it cannot do: an unused [pretrain] is described, whatever it says."""
        return self.settings.strict and name in self.recipe.stages


def make_plan(recipe: Recipe, settings: PlanSettings = DEFAULT_SETTINGS) -> dict[str, Any]:
    """Returns the plan of a recipe.

    Raises UserError for an unknown device or link, for invalid values and, if `settings.strict`, as described there.
    """
    context = _make_context(recipe, settings)
    config, device, ranks = context.config, context.device, context.step.ranks
    parameters = count_parameters(config)
    planned = {name: _plan_stage(name, context) for name in dict.fromkeys(("pretrain", *recipe.stages))}
    stages = {name: stage for name in recipe.stages if (stage := planned[name]) is not None}
    tokens, hours = (planned["pretrain"] or {}).get("tokens"), (planned["pretrain"] or {}).get("hours")
    flops_section = _plan_flops(config, tokens)
    of = {"stage": "pretrain", "in_run": "pretrain" in recipe.stages}
    return {
        "recipe": recipe.name,
        "model": {**asdict(config), "head_width": config.head_width},
        "parameters": parameters,
        "formula": dict(zip(("terms", "simplified"), parameter_formula(config), strict=True)),
        "flops": flops_section,
        "horizon": of | _plan_horizon(context, planned["pretrain"]),
        "data": _plan_data(config, tokens, context.pretrain),
        "memory": of | _plan_memory(config, context.pretrain, device),
        "inference": plan_inference(config, device.memory * device.sharers),
        "hardware": {"name": device.name, "ranks": ranks, "peak_flops": device.peak_flops, "watts": device.watts},
        "time": {**of, "estimate": True, "hours": hours, **context.utilization},
        "cost": {
            **of,
            "estimate": True,
            "usd": None if hours is None else cost.estimate_usd(hours, device, ranks, settings.price),
            "kwh": None if hours is None else cost.estimate_kwh(hours, device, ranks),
        },
        "communication": _plan_communication(context, parameters["total"], flops_section["per_token"]),
        "stages": stages,
        "unknown_stages": [name for name in recipe.stages if name not in stages],
        "derived": _list_derived(context, stages),
    }


def _make_context(recipe: Recipe, settings: PlanSettings) -> _PlanContext:
    """Returns the values that all stages share. Raises UserError as `make_plan`."""
    settings.require_valid()
    ranks = recipe.run.ranks if settings.gpus is None else settings.gpus
    device = settings.device
    if device is None:
        device = hardware.share_device(hardware.find_device(settings.gpu or recipe.run.hardware), ranks)
    if device.kind == "mps" and ranks > 1:
        raise UserError(f"gpus: got {ranks} of {device.name}, expected 1: a Mac trains with one rank")
    config = recipe.resolve_model()
    dtype = device.dtype if recipe.run.dtype == "auto" else recipe.run.dtype
    if settings.strict and recipe.run.fp8:
        device.require_fp8()
    if settings.strict or dtype in device.peaks:
        device = device.with_dtype(dtype)
    step = device_row_step(recipe.optimizer, recipe.run, config, ranks, device)
    step = replace(step, layout=settings.layout)
    known_sizes = published_sizes(config.context) | dict(settings.sizes or {})
    context = _PlanContext(recipe, settings, config, device, step, known_sizes, step, {})
    rows = _find_pretrain_rows(context) or MAX_MICRO_BATCH_ROWS * ranks
    pretrain = _split("pretrain", rows, context)
    per_token = flops.training_flops_per_token(config)
    utilization, device = choose_utilization(
        device, settings.mfu, settings.peak_flops, per_token, pretrain.tokens, step.compiled
    )
    return replace(context, device=device, utilization=utilization, pretrain=pretrain)


def _find_pretrain_rows(context: _PlanContext) -> int | None:
    """Returns the rows of a step of pretraining over all ranks; None if the sizes of its sources decide."""
    found = find_rows("pretrain", context.recipe.pretrain, context.config, context.sizes)
    return found[0] if found else None


def _plan_communication(context: _PlanContext, parameters: int, flops_per_token: int) -> dict[str, Any]:
    """Returns the section on communication in a step of pretraining."""
    device, ranks, given = context.device, context.step.ranks, context.settings.link
    step, rows = context.pretrain, _find_pretrain_rows(context)
    rows = rows or step.rows * step.micro_batches * ranks
    link = given or communication.default_link(device.name, ranks)
    section = communication.plan_communication(
        parameters,
        flops_per_token * rows * step.context / (device.peak_flops * context.mfu),
        step.micro_batches,
        ranks,
        link,
        count_matrix_parameters(context.config),
    )
    section["link"] |= communication.describe_assumption(given, link, ranks)
    if device.sharers > 1:  # more ranks do not compute faster
        section["ring_bound_from_ranks"] = None
    return section


def _plan_horizon(context: _PlanContext, pretrain: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the section on the length of pretraining; pretrain: its planned values, None if its steps are unknown."""
    rows, step = _find_pretrain_rows(context), context.pretrain
    tokens = pretrain["tokens"] if pretrain else None
    parameters = count_law_parameters(context.config)
    return {
        "tokens": tokens,
        "tokens_per_parameter": None if tokens is None else round(tokens / parameters, 2),
        "batch_tokens": None if rows is None else rows * step.context,
        "steps": pretrain["steps"] if pretrain else None,
        "micro_batch_size": step.rows,
        "grad_accumulation": step.micro_batches,
        "dtype": step.dtype,
    }


def _plan_flops(config: ModelConfig, tokens: int | None) -> dict[str, Any]:
    """Returns the section on floating-point operations of pretraining on `tokens` tokens; None: not known."""
    per_token = flops.training_flops(config)
    return {
        "per_token": per_token["total"],
        "total": None if tokens is None else per_token["total"] * tokens,
        "forward": flops.forward_flops(config),
        "training": per_token,
        "attention": "full",
        "per_token_causal": flops.training_flops(config, counted="causal")["total"],
    }


def _plan_data(config: ModelConfig, tokens: int | None, step: memory.TrainingStep) -> dict[str, int | None]:
    """Returns the section on text and files of pretraining on `tokens` tokens; None: not known."""
    characters = None if tokens is None else round(tokens * CHARACTERS_PER_TOKEN)
    shards = None if characters is None else -(-characters // CHARACTERS_PER_SHARD)
    return {
        "characters": characters,
        "shards": shards,
        "bytes_text": None if shards is None else shards * BYTES_PER_SHARD,
        "bytes_tokenized": None if tokens is None else tokens * (2 if config.vocab_size <= 65_536 else 4),
        "bytes_checkpoint": memory.checkpoint_bytes(config, step),
    }


def _list_derived(context: _PlanContext, stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the fields that rules fill; stages: the planned values of those whose steps are known."""
    recipe, lengths = context.recipe, {}
    for name, stage in stages.items():
        is_supervised = isinstance(recipe.stage_config(name), StageConfig)
        lengths[name] = (stage["steps"], stage["rows_per_step"] * context.config.context if is_supervised else 0)
    return [asdict(each) for each in list_derived(recipe, derive_known(recipe, lengths))]


def load_planned_recipe(
    name: str | None, depth: int | None, pinned: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Recipe:
    """Returns the recipe to plan: the one called `name`, or (None) one in which the depth determines the rest."""
    if name is None and depth is not None:
        return load_recipe("quickstart", [*DEPTH_ONLY, f"name=d{depth}", *PUBLISHED, *pinned, *overrides])
    return load_recipe(name or "quickstart", [*pinned, *overrides])


def _plan_memory(config: ModelConfig, step: memory.TrainingStep, device: hardware.DeviceSpec) -> dict[str, Any]:
    """Returns the section on a rank's memory in pretraining."""
    phases = memory.memory_by_phase(config, step)
    peak_phase = max(phases, key=lambda name: phases[name]["total"])
    slack = memory.memory_slack(phases[peak_phase]["total"], step.device)
    fits = phases[peak_phase]["total"] + slack <= device.memory
    return {
        "estimate": step.compiled or step.device != "cpu",
        "per_rank": phases[peak_phase],
        "phase": peak_phase,
        "phases": {name: components["total"] for name, components in phases.items()},
        "layer": memory.layer_activation_bytes(config, step),
        "layout": step.layout,
        "zero_stage": step.zero_stage,
        "slack": slack,
        "device": device.memory,
        "fits": fits,
        "optimizer_state": step.optimizer_state,
        "fits_with_state": None if fits else find_fitting_state(config, step, device.memory),
        "rule_of_thumb": rule_of_thumb_bytes(count_parameters(config)["total"]),
    }


def _plan_stage(name: str, context: _PlanContext) -> dict[str, Any] | None:
    """Returns the values of a stage (steps, tokens, hours, cost, memory, ...); None if no steps are known.

    The tokens of RL are an assumption, those of DPO an upper bound. RL: prompts as long as the longest answer, which
    they may exceed, and answers of full length; each token is sampled once and learned `epochs` times. DPO: both
    answers of a pair fill the context; the reference model, if there is one, reads them once. KTO: an answer fills the
    context; the reference model reads it, and both models read it again with another prompt.
    """
    recipe, config, device, ranks = context.recipe, context.config, context.device, context.step.ranks
    stage, length = recipe.stage_config(name), _find_length(name, context)
    if length is None:
        return None
    rows, steps, is_assumed = length
    adapter = recipe.adapter if recipe.adapter.trains_in(name) else None
    per_token: float = flops.training_flops_per_token(config, adapter=adapter)
    if isinstance(stage, StageConfig) and stage.train_on == "assistant":
        per_token -= flops.count_idle_head_flops(config, context.settings.generated.get(name, 0.0), adapter)
    trained = per_token
    if isinstance(stage, RLConfig):
        tokens = steps * stage.prompts_per_round * stage.group_size * min(2 * stage.max_new_tokens, config.context)
        tokens //= stage.minibatches  # which share the answers of a round
        per_token += flops.forward_flops_per_token(config) // stage.epochs
    elif isinstance(stage, DPOConfig):
        answers, reads = (1, 3) if stage.labels_answers else (2, int(stage.uses_reference))
        tokens = steps * stage.batch_size * answers * config.context
        per_token += reads * flops.forward_flops_per_token(config)
    else:
        tokens = steps * rows * config.context
        if context.is_strict(name):
            require_row_each(name, stage, rows, ranks)
    step = _split(name, rows, context)
    per_token += step.teacher.added_flops(config) if step.teacher else 0
    empty = 0.0 if isinstance(stage, RLConfig | DPOConfig) else empty_share(rows, step)
    slower = cost.find_eager_share(step.device, step.compiled, step.adapter is not None)
    slower /= cost.find_eager_share(device.kind, context.step.compiled)
    measured = find_adapter_share(device, per_token, step) if context.settings.mfu is None else None
    share = measured or context.mfu * slower
    hours = cost.estimate_hours(per_token * tokens, device, ranks, share) / (1 - empty)
    return {
        "steps": steps,
        "rows_per_step": rows,
        "tokens": tokens,
        "assumed_lengths": is_assumed,
        "empty_share": empty,
        "flops_per_token": trained,  # without a teacher, a reference, rollouts
        "hours": hours,
        "tokens_per_second": tokens / (hours * 3600),
        "usd": cost.estimate_usd(hours, device, ranks, context.settings.price),
        "kwh": cost.estimate_kwh(hours, device, ranks),
        "micro_batch_size": step.rows,
        "grad_accumulation": step.micro_batches,
        "memory": memory.estimate_peak_memory(config, step)["total"],
    }


def _find_length(name: str, context: _PlanContext) -> tuple[int, int, bool] | None:
    """Returns (rows of a step over all ranks, steps, whether an assumed size decides); None if no steps are known."""
    recipe, sizes = context.recipe, context.sizes
    stage = recipe.stage_config(name)
    if name not in recipe.stages and stage.num_epochs is not None:
        return None  # the text of a pretraining that is not made is not counted
    if isinstance(stage, DPOConfig):
        if stage.steps is None and stage.pairs not in sizes:
            return None
        pairs = 0 if stage.steps else int(sizes[str(stage.pairs)].examples)
        return MAX_MICRO_BATCH_ROWS * context.step.ranks, derive_dpo_steps(stage, pairs), False
    if isinstance(stage, RLConfig):
        tasks = [task for task, weight in stage.tasks.items() if weight > 0]
        if stage.steps is None and (not tasks or any(task not in sizes for task in tasks)):
            return None
        prompts = {task: sizes[task].examples for task in tasks if task in sizes}
        return MAX_MICRO_BATCH_ROWS * context.step.ranks, derive_rl_steps(stage, prompts), False
    return derive_length(recipe, name, context.config, sizes)


def _split(name: str, rows: int, context: _PlanContext) -> memory.TrainingStep:
    """Returns the step with its rows: pinned, or the most that fit. Raises UserError if none fit and strict is set."""
    config, device = context.config, context.device
    stage, is_strict = context.recipe.stage_config(name), context.is_strict(name)
    pinned = stage.micro_batch_size
    adapter = context.recipe.adapter if context.recipe.adapter.trains_in(name) else None
    step = stage_step(context.step, stage, adapter, plan_teacher(context.recipe, name, context.settings.teacher))
    recompute = context.recipe.run.recompute
    try:
        split = choose_split(config, rows, device.memory, step, pinned, recompute)
    except UserError as problem:
        if is_strict:
            raise UserError(f"{name} does not fit {device.name}: {problem}") from None
        return choose_split(config, rows, device.memory, step, 1, recompute)
    if is_strict and pinned is not None and not memory.fits_memory(config, split, device.memory):
        shortage = explain_memory_shortage(config, split, device.memory)
        raise UserError(f"{name}.micro_batch_size={pinned} does not fit {device.name}: {shortage}")
    return split
