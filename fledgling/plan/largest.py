"""The largest model that each device trains, with dtype, hours and cost: the table of `fledgling plan devices`.

A model is given by its depth, which determines the rest (`horizon.py`). It trains on one device if a step of one row at
a time fits its memory with the planner's slack; hours and cost are those of its whole pretraining, 20 tokens a
parameter without value embeddings, with the most rows that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fledgling.config import ModelConfig, Recipe, UserError, require_number
from fledgling.plan import cost, flops, memory
from fledgling.plan.amount import MOST
from fledgling.plan.cost import require_utilization
from fledgling.plan.hardware import DeviceSpec
from fledgling.plan.horizon import compute_horizon
from fledgling.plan.parameters import count_parameters
from fledgling.plan.plan import load_planned_recipe
from fledgling.plan.split import find_split
from fledgling.plan.stage_step import device_row_step
from fledgling.plan.utilization import choose_utilization

MAX_DEPTH = 160  # beyond any device of the table
DEPTH_STEP = 2  # heads of odd depths have another width


@dataclass(frozen=True)
class TrainedModel:
    """A model on a device, and what its pretraining takes there."""

    depth: int
    parameters: int
    rows: int  # of a forward/backward
    recompute: bool  # whether blocks recompute their activations: one row fits only so
    bytes: int  # at the peak, without slack
    hours: float
    usd: float | None
    kwh: float
    mfu: float
    mfu_source: str


def describe_devices(
    devices: Iterable[DeviceSpec],
    recipe: Recipe,
    hours: float,
    prices: Mapping[str, float],
    mfu: float | None = None,
) -> list[dict[str, Any]]:
    """Returns an entry for each device: its figures, the largest model that trains, and the largest within `hours`.

    Either model is None if no depth does.

    Args:
        devices: of the table.
        recipe: of the models, whatever its depth, and of their optimizer.
        hours: of training on one device.
        prices: US dollars per hour by device name, instead of the table's.
        mfu: fraction of the peak FLOP/s that training reaches; None: what is assumed of a device.
    """
    require_number("--hours", hours, MOST)
    require_utilization(mfu)
    entries = []
    for device in devices:

        def fits(depth: int, device: DeviceSpec = device) -> bool:
            return fit_step(device, depth, recipe) is not None

        @cache
        def train(depth: int, device: DeviceSpec = device) -> TrainedModel | None:
            return plan_depth(device, depth, recipe, prices.get(device.name), mfu)

        def ends(depth: int, train: Callable[[int], TrainedModel | None] = train) -> bool:
            model = train(depth)
            return model is not None and model.hours <= hours

        largest = find_largest(fits)
        within = find_largest(ends, largest) if largest else None
        entries.append({"device": device, "largest": largest and train(largest), "within": within and train(within)})
    return entries


def load_depths_recipe(vocab_size: int, context: int, overrides: Sequence[str]) -> Recipe:
    """Returns the recipe of models of all depths, with a vocabulary and the tokens of a row.

    Raises UserError for an override that the table does not read.
    """
    for override in overrides:
        name = override.partition("=")[0].strip()
        if name.partition(".")[0] not in ("model", "optimizer") or name in ("model.depth", "model.context"):
            raise UserError(
                f"--set {name}: this table is of all depths, with --vocab-size and --context; expected another setting "
                "of model or optimizer"
            )
    return load_planned_recipe(
        None, DEPTH_STEP, [f"tokenizer.vocab_size={vocab_size}", f"model.context={context}"], overrides
    )


def find_largest(holds: Callable[[int], bool], most: int = MAX_DEPTH) -> int | None:
    """Returns the largest depth up to `most` for which `holds`, by bisection: it must hold for every smaller depth."""
    low, high = 0, most // DEPTH_STEP  # in steps; it holds at low
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle * DEPTH_STEP) else (low, middle - 1)
    return low * DEPTH_STEP or None


def fit_step(device: DeviceSpec, depth: int, recipe: Recipe) -> tuple[ModelConfig, memory.TrainingStep] | None:
    """Returns the model of a depth and its training step on one device, as `plan` splits it; None if no row fits."""
    config = replace(recipe.model, depth=depth).resolve(recipe.tokenizer.vocab_size)
    step = device_row_step(recipe.optimizer, recipe.run, config, 1, device)
    rows = compute_horizon(config).batch_tokens // config.context
    split = find_split(config, rows, device.memory, step, recompute=recipe.run.recompute)
    return None if split is None else (config, split)


def plan_depth(
    device: DeviceSpec, depth: int, recipe: Recipe, price: float | None, mfu: float | None
) -> TrainedModel | None:
    """Returns what the pretraining of a depth takes on one device; None if not even one row fits.

    Args:
        depth: of the model.
        recipe: of the rest.
        price: US dollars per hour; None: the device's.
        mfu: fraction of the peak FLOP/s; None: what is assumed of the device.
    """
    fitting = fit_step(device, depth, recipe)
    if fitting is None:
        return None
    config, step = fitting
    horizon = compute_horizon(config)
    per_token = flops.training_flops_per_token(config)
    utilization, device = choose_utilization(device, mfu, None, per_token, step.tokens, step.compiled)
    hours = cost.estimate_hours(per_token * horizon.tokens, device, 1, utilization["mfu"])
    return TrainedModel(
        depth,
        count_parameters(config)["total"],
        step.rows,
        step.recompute,
        memory.estimate_peak_memory(config, step)["total"],
        hours,
        cost.estimate_usd(hours, device, 1, price),
        cost.estimate_kwh(hours, device),
        utilization["mfu"],
        utilization["mfu_source"],
    )
