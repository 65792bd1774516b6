"""A whole plan as one dictionary: what `fledgling plan --json` prints and the report holds against the run.

Keys are stable: `parameters.total`, `flops.per_token`, `flops.total`, `memory.per_rank.total` (bytes),
`time.hours` and `cost.usd` stay where they are; new keys may join. Parameters and FLOPs are exact, memory,
hours and cost are estimates. `time`, `flops.total` and `cost` are of pretraining; `stages` adds those whose
steps are pinned.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fledgling.config import STAGES, Recipe, UserError
from fledgling.model.config import ModelConfig, from_table
from fledgling.plan import comm, cost, flops, hardware, memory
from fledgling.plan.horizon import horizon
from fledgling.plan.size import parameters

CHARACTERS_PER_TOKEN = 4.8  # English web text with 65,536 entries; fewer with a small vocabulary
CHARACTERS_PER_SHARD = 250_000_000  # of the public sets' files


def plan(
    recipe: Recipe,
    gpu: str | None = None,
    gpus: int | None = None,
    mfu: float | None = None,
    price: float | None = None,
    link: str | None = None,
) -> dict[str, Any]:
    """Return the plan of a recipe on `gpus` devices called `gpu` (default: run.ranks of run.hardware).

    mfu: utilization in (0, 1], price: dollars an hour for one device, link: between the devices; all have
    defaults (`fledgling.plan.cost`, `fledgling.plan.comm`). Raises UserError for a device, a link or a split of
    the batch that does not work.
    """
    device = hardware.device(gpu or recipe.run.hardware)
    ranks = gpus or recipe.run.ranks
    if ranks < 1:
        raise UserError(f"gpus: got {ranks}, expected at least 1")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"mfu: got {mfu}, expected a share above 0 and at most 1, for example 0.45")
    if price is not None and price < 0:
        raise UserError(f"price: got {price}, expected dollars an hour, at least 0")
    config = from_table(recipe.model, recipe.tokenizer.vocab_size)
    length = horizon(recipe)
    counts = parameters(config)
    split = _split(recipe, config, device, ranks, length.batch_tokens)
    per_token = flops.per_token(config)
    hours = cost.hours(per_token * length.tokens, device, ranks, mfu)
    peak = memory.per_rank(config, split["micro_batch"], split["dtype"], ranks)
    characters = round(length.tokens * CHARACTERS_PER_TOKEN)
    return {
        "recipe": recipe.name,
        "model": {**asdict(config), "head_width": config.head_width},
        "parameters": counts,
        "flops": {"per_token": per_token, "total": per_token * length.tokens},
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
            "bytes_tokenized": length.tokens * (2 if config.vocab_size <= 65_536 else 4),
        },
        "memory": {
            "estimate": True,
            "per_rank": peak,
            "device": device.memory,
            "fits": peak["total"] <= device.memory,
        },
        "hardware": {"name": device.name, "ranks": ranks, "peak_flops": device.peak_flops},
        "time": {"estimate": True, "hours": hours, "mfu": mfu or cost.assumed_mfu(device)},
        "cost": {"estimate": True, "usd": cost.usd(hours, device, ranks, price)},
        "communication": comm.communication(
            counts["total"],
            per_token * length.batch_tokens,
            device,
            mfu or cost.assumed_mfu(device),
            split["grad_accumulation"],
            ranks,
            link,
        ),
        "stages": _stages(recipe, per_token, device, ranks, mfu, length.batch_tokens),
    }


def _split(
    recipe: Recipe, config: ModelConfig, device: hardware.Device, ranks: int, batch_tokens: int
) -> dict[str, Any]:
    """Return how a step is split: rows of a micro-batch, micro-batches a rank, dtype of the products."""
    dtype = recipe.run.dtype
    if dtype == "auto":
        dtype = "float32" if device.name == "cpu" else "bfloat16"
    rows, left = divmod(batch_tokens // config.context, ranks)
    if left or not rows:
        raise UserError(
            f"{batch_tokens // config.context} rows a step do not divide by {ranks} ranks: choose a divisor, "
            "or another pretrain.batch_tokens"
        )
    micro = recipe.pretrain.micro_batch or memory.micro_batch(config, rows, device.memory, dtype, ranks)
    if rows % micro:
        raise UserError(f"pretrain.micro_batch: got {micro}, expected a divisor of a rank's {rows} rows a step")
    return {"micro_batch": micro, "grad_accumulation": rows // micro, "dtype": dtype}


def _stages(
    recipe: Recipe, per_token: int, device: hardware.Device, ranks: int, mfu: float | None, batch_tokens: int
) -> dict[str, Any]:
    """Return steps, tokens and hours of midtraining and SFT where their steps are pinned."""
    planned = {}
    for name in STAGES[1:3]:
        table = recipe.stage(name)
        if name in recipe.stages and table.steps:
            tokens = table.steps * (table.batch_tokens or batch_tokens)
            hours = cost.hours(per_token * tokens, device, ranks, mfu)
            planned[name] = {"steps": table.steps, "tokens": tokens, "hours": hours}
    return planned
