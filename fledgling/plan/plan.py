"""A whole plan as one dictionary: what `fledgling plan --json` prints and the report holds against the run.

Keys are stable: `parameters.total`, `flops.per_token`, `flops.total`, `memory.per_rank.total` (bytes),
`time.hours` and `cost.usd` stay where they are; new keys may join. Parameters and FLOPs are exact, memory is counted,
hours and cost are estimates. `time`, `flops.total` and `cost` are of pretraining; `stages` has every stage whose steps
are known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fledgling.config import ModelConfig, Recipe, RLConfig, UserError
from fledgling.optim.partition import partition_parameters
from fledgling.plan import communication, cost, flops, hardware, measured_speed, memory
from fledgling.plan.horizon import recipe_horizon
from fledgling.plan.inference import plan_inference
from fledgling.plan.parameters import count_matrix_parameters, count_parameters, parameter_formula, parameter_shapes

CHARACTERS_PER_TOKEN = 4.8  # English web text with 65,536 entries; fewer with a small vocabulary
CHARACTERS_PER_SHARD = 250_000_000  # of the public sets' files
BYTES_PER_SHARD = 100_000_000  # of such a file, compressed


@dataclass(frozen=True)
class _StageContext:
    """What all stages share; step: one row of it."""

    recipe: Recipe
    config: ModelConfig
    device: hardware.DeviceSpec
    mfu: float
    price: float | None
    step: memory.TrainingStep
    batch_tokens: int
    strict: bool


def make_plan(
    recipe: Recipe,
    gpu: str | None = None,
    gpus: int | None = None,
    mfu: float | None = None,
    price: float | None = None,
    link: str | None = None,
    layout: str = "fledgling",
    strict: bool = True,
) -> dict[str, Any]:
    """Return the plan of a recipe on `gpus` devices called `gpu` (default: run.ranks of run.hardware).

    mfu: utilization in (0, 1] (default: measured here, else the table's), price: dollars an hour for one device, link:
    between the devices; layout: of `fledgling.plan.memory`. Raises UserError for a device, a link and, if strict, for a
    split of the batch that does not divide or a step that does not fit the device.
    """
    device = hardware.find_device(gpu or recipe.run.hardware)
    ranks = recipe.run.ranks if gpus is None else gpus
    if ranks < 1:
        raise UserError(f"gpus: got {ranks}, expected at least 1")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"mfu: got {mfu}, expected a share above 0 and at most 1, for example 0.45")
    if price is not None and price < 0:
        raise UserError(f"price: got {price}, expected dollars an hour, at least 0")
    if layout not in memory.LAYOUTS:
        raise UserError(f"layout: got {layout!r}, expected one of {', '.join(memory.LAYOUTS)}")
    config = recipe.resolve_model()
    length, counts = recipe_horizon(recipe), count_parameters(config)
    time, device = choose_utilization(device, mfu)
    dtype = recipe.run.dtype
    if dtype == "auto":
        dtype = "float32" if device.name == "cpu" else "bfloat16"
    step = replace(one_row_step(recipe, config, ranks, device.kind, dtype, recipe.run.compile != "off"), layout=layout)
    setting = _StageContext(recipe, config, device, time["mfu"], price, step, length.batch_tokens, strict)
    found = {name: _stage(name, setting) for name in ("pretrain", *recipe.stages)}
    stages = {name: found[name][0] for name in recipe.stages if found[name]}
    pretrain, step = found["pretrain"]
    characters = round(length.tokens * CHARACTERS_PER_TOKEN)
    split = {key: pretrain[key] for key in ("micro_batch_size", "grad_accumulation")} | {"dtype": dtype}
    per_token = flops.training_flops(config)
    return {
        "recipe": recipe.name,
        "model": {**asdict(config), "head_width": config.head_width},
        "parameters": counts,
        "formula": dict(zip(("terms", "simplified"), parameter_formula(config), strict=True)),
        "flops": {
            "per_token": per_token["total"],
            "total": per_token["total"] * length.tokens,
            "forward": flops.forward_flops(config),
            "training": per_token,
            "attention": "full",
            "per_token_causal": flops.training_flops(config, counted="causal")["total"],
        },
        "horizon": {
            "tokens": length.tokens,
            "tokens_per_parameter": round(length.tokens / counts["total"], 2),
            "batch_tokens": length.batch_tokens,
            "steps": length.steps,
            **split,
        },
        "data": {
            "characters": characters,
            "shards": -(-characters // CHARACTERS_PER_SHARD),
            "bytes_text": -(-characters // CHARACTERS_PER_SHARD) * BYTES_PER_SHARD,
            "bytes_tokenized": length.tokens * (2 if config.vocab_size <= 65_536 else 4),
            "bytes_checkpoint": 4
            * (
                counts["total"]
                + partition_parameters(parameter_shapes(config), matrix_optimizer=step.matrix_optimizer)
                .estimate_memory()
                .optimizer_state
            ),
        },
        "memory": _memory(config, step, device),
        "inference": plan_inference(config, device.memory),
        "hardware": {"name": device.name, "ranks": ranks, "peak_flops": device.peak_flops, "watts": device.watts},
        "time": {"estimate": True, "hours": pretrain["hours"], **time},
        "cost": {
            "estimate": True,
            "usd": cost.estimate_usd(pretrain["hours"], device, ranks, price),
            "kwh": cost.estimate_kwh(pretrain["hours"], device, ranks),
        },
        "communication": communication.plan_communication(
            counts["total"],
            per_token["total"] * length.batch_tokens,
            device,
            time["mfu"],
            split["grad_accumulation"],
            ranks,
            link,
            count_matrix_parameters(config),
        ),
        "stages": stages,
    }


def one_row_step(
    recipe: Recipe, config: ModelConfig, ranks: int, kind: str, dtype: str, compiled: bool
) -> memory.TrainingStep:
    """Return one row of a training step of the recipe, as `plan` and `train` both size their micro-batches from it."""
    table = recipe.optimizer
    return memory.TrainingStep(
        rows=1,
        context=config.context,
        dtype=dtype,
        ranks=ranks,
        zero_stage=1 if table.zero_stage is None else table.zero_stage,
        device=kind,
        compiled=compiled,
        deterministic=None if table.deterministic == "auto" else table.deterministic == "on",
        copies_weights_for_eval=True,
        matrix_optimizer=table.matrix_optimizer,
    )


def choose_utilization(device: hardware.DeviceSpec, given: float | None) -> tuple[dict[str, Any], hardware.DeviceSpec]:
    """Return the utilization to reckon with, where it is from, and the device with the peak that it is a share of."""
    if given is not None:
        return {"mfu": given, "mfu_source": "given"}, device
    found = measured_speed.load_speed(device.name)
    if found is None:
        return {"mfu": cost.assumed_mfu(device), "mfu_source": "table"}, device
    told = {"mfu": found.mfu, "mfu_source": "measured", "mfu_of": f"{found.model}, {found.date}"}
    return told, replace(device, peak_flops=found.peak_flops)


def _memory(config: ModelConfig, step: memory.TrainingStep, device: hardware.DeviceSpec) -> dict[str, Any]:
    """The section on a rank's memory in pretraining."""
    held = memory.memory_by_phase(config, step)
    moment = max(held, key=lambda name: held[name]["total"])
    slack = memory.memory_slack(held[moment]["total"], step.device)
    return {
        "estimate": step.compiled or step.device != "cpu",
        "per_rank": held[moment],
        "moment": moment,
        "moments": {name: one["total"] for name, one in held.items()},
        "layer": memory.layer_activation_bytes(config, step),
        "layout": step.layout,
        "zero": step.zero_stage,
        "slack": slack,
        "device": device.memory,
        "fits": held[moment]["total"] + slack <= device.memory,
        "rule_of_thumb": memory.rule_of_thumb_bytes(count_parameters(config)["total"]),
    }


def _stage(name: str, setting: _StageContext) -> tuple[dict[str, Any], memory.TrainingStep] | None:
    """Return steps, tokens, hours, cost, micro-batch and peak memory of a stage, and its step; None: no steps known.

    Of RL: at most so many tokens, prompts as long as the longest answer; each is drawn once and learned `epochs` times.
    """
    recipe, config, device, ranks = setting.recipe, setting.config, setting.device, setting.step.ranks
    table = recipe.stage_config(name)
    steps = recipe_horizon(recipe).steps if name == "pretrain" else table.steps
    if not steps:
        return None
    per_token = flops.training_flops_per_token(config)
    if isinstance(table, RLConfig):
        tokens = steps * table.prompts_per_round * table.group_size * min(2 * table.max_new_tokens, config.context)
        rows, per_token = memory.MAX_MICRO_BATCH_ROWS, per_token + flops.forward_flops_per_token(config) // table.epochs
    else:
        tokens = steps * (table.batch_tokens or setting.batch_tokens)
        rows, left = divmod(tokens // steps // config.context, ranks)
        if setting.strict and (left or not rows):
            raise UserError(
                f"{tokens // steps // config.context} rows a step do not divide by {ranks} ranks: choose a divisor, "
                f"or another {name}.batch_tokens"
            )
    step = _split(name, table.micro_batch_size, max(1, rows), setting)
    hours = cost.estimate_hours(per_token * tokens, device, ranks, setting.mfu)
    found = {
        "steps": steps,
        "tokens": tokens,
        "hours": hours,
        "tokens_per_second": tokens / (hours * 3600),
        "usd": cost.estimate_usd(hours, device, ranks, setting.price),
        "kwh": cost.estimate_kwh(hours, device, ranks),
        "micro_batch_size": step.rows,
        "grad_accumulation": step.micro_batches,
        "memory": memory.estimate_peak_memory(config, step)["total"],
    }
    return found, step


def _split(name: str, pinned: int | None, rows: int, setting: _StageContext) -> memory.TrainingStep:
    """Return the step with its rows: those pinned, or the most that fit; raises UserError where none do, if strict."""
    config, device = setting.config, setting.device
    table = setting.recipe.stage_config(name)
    compares = isinstance(table, RLConfig) and table.kl_weight > 0
    step = replace(setting.step, saves_checkpoints=table.save_every > 0, has_reference_model=compares)
    if pinned is None:
        try:
            size = memory.choose_micro_batch_size(config, rows, device.memory, step)
        except UserError as problem:
            if setting.strict:
                raise UserError(f"{name} does not fit {device.name}: {problem}") from None
            size = 1
        return replace(step, rows=size, micro_batches=rows // size)
    if not setting.strict:
        return replace(step, rows=pinned, micro_batches=-(-rows // pinned))
    if rows % pinned:
        near = [size for size in range(1, rows + 1) if rows % size == 0]
        fit = min(near, key=lambda size: abs(size - pinned))
        raise UserError(
            f"{name}.micro_batch_size: got {pinned}, expected a divisor of a rank's {rows} rows a step, for example {fit}"
        )
    chosen = replace(step, rows=pinned, micro_batches=rows // pinned)
    if not memory.fits_memory(config, chosen, device.memory):
        problem = memory.explain_memory_shortage(config, chosen, device.memory)
        raise UserError(f"{name}.micro_batch_size={pinned} does not fit {device.name}: {problem}")
    return chosen
