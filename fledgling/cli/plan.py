"""`fledgling plan`: parameters, FLOPs, memory, hours and cost, before anything runs and without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from fledgling.cli.lists import SpacedCountList, SpacedNameList
from fledgling.cli.options import Hours, Json, Minutes, Overrides, Usd, VocabSize
from fledgling.config import UserError
from fledgling.plan.amount import pins_size, read_budget
from fledgling.plan.communication import LINKS
from fledgling.plan.forecast_text import format_budgeted_run
from fledgling.plan.hardware import DEVICES, OWN, find_device, make_own_device, share_device
from fledgling.plan.inference import plan_recipe_inference
from fledgling.plan.measured_speed import name_planned_device
from fledgling.plan.plan import PlanSettings, load_planned_recipe, make_plan
from fledgling.plan.text import format_inference, format_plan
from fledgling.record.stage_aside import describe_stages_aside
from fledgling.train.derived_values import open_unbegun
from fledgling.train.planned_teacher import find_teacher

DEFAULT_LAYOUT = "fledgling"
_FIGURE = {"negative": (), "show_default": False}
Peak = Annotated[
    float | None, Parameter(help="TFLOP/s of your own GPU: dense, in the dtype that it trains in.", **_FIGURE)
]
Bandwidth = Annotated[float | None, Parameter(help="GB/s of its memory.", **_FIGURE)]
Memory = Annotated[float | None, Parameter(help="GiB of its memory.", **_FIGURE)]
Price = Annotated[float | None, Parameter(help="US dollars per hour for one device.", negative=())]
Mfu = Annotated[float | None, Parameter(help="Assumed utilization, in (0, 1].")]
GpuName = Annotated[
    str | None,
    Parameter(help=f"Device, by its exact name: {', '.join(DEVICES)}; or your own with --peak."),
]
LinkName = Annotated[
    str | None,
    Parameter(help=f"Link between the devices: {', '.join(LINKS)}; default: the usual one of the device."),
]
Layout = Annotated[
    str,
    Parameter(
        help="Memory layout of a step: fledgling, or whole-logits, for systems that keep a whole batch's logits."
    ),
]

app = App(
    name="plan",
    help="Parameters by component, FLOPs, memory per rank, tokens, hours and cost, before anything runs.",
)


@app.default
def plan(
    recipe: str | None = None,
    /,
    *,
    depth: int | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    minutes: Minutes = None,
    hours: Hours = None,
    usd: Usd = None,
    gpus: int | None = None,
    gpu: GpuName = None,
    peak: Peak = None,
    bandwidth: Bandwidth = None,
    memory: Memory = None,
    mfu: Mfu = None,
    price: Price = None,
    link: LinkName = None,
    layout: Layout = DEFAULT_LAYOUT,
    inference: Annotated[bool, Parameter(negative=())] = False,
    length: int | None = None,
    conversations: int | None = None,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Print the plan of a run: parameters by component, FLOPs, tokens, memory per rank, hours and cost.

    Give a recipe (default: quickstart), or only a depth: the default preset, vocabulary 65,536, context 2,048.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    depth
        Layers; determines width, heads, tokens, batch and steps. With a budget, of quickstart.
    vocab_size
        Entries of the tokenizer.
    context
        Tokens per row.
    gpus
        Number of devices; on a CPU, of processes that share its cores and memory.
    inference
        Print the memory for inference instead: weights in each format, caches, conversations that fit.
    length
        Tokens per conversation, for --inference; default: the context.
    conversations
        Simultaneous conversations, for --inference; default: 1.
    """
    pinned = {"model.depth": depth, "tokenizer.vocab_size": vocab_size, "model.context": context}
    alone = depth if minutes is hours is usd is None else None  # with a budget it is quickstart's, as in speedrun
    chosen = load_planned_recipe(recipe, alone, [f"{k}={v}" for k, v in pinned.items() if v is not None], overrides)
    folder = Path(recipe or "").parent if Path(recipe or "").is_file() else Path(recipe or "")
    for line in describe_stages_aside(folder) if recipe else ():
        print(line, file=sys.stderr)
    if recipe and not inference:
        chosen = open_unbegun(chosen, folder)
    training = {"gpus": gpus, "mfu": mfu, "price": price, "link": link, "minutes": minutes, "hours": hours, "usd": usd}
    for name, value in (training if inference else {"length": length, "conversations": conversations}).items():
        if value is not None:
            raise UserError(f"--{name} {value} has no effect {'with' if inference else 'without'} --inference")
    if inference:
        section = plan_recipe_inference(chosen, gpu, length, 1 if conversations is None else conversations)
        print(json.dumps(section, indent=2) if as_json else format_inference(section))
        return
    from fledgling.train.source_sizes import count_generated_shares, count_source_sizes

    gpu_name = gpu or (name_planned_device(chosen.run) if peak is None else None)
    ranks = chosen.run.ranks if gpus is None else gpus
    device = share_device(make_own_device(find_device(gpu_name) if gpu_name else None, peak, bandwidth, memory), ranks)
    if budget := read_budget(minutes, hours, usd, device, ranks, price):
        from fledgling.speedrun.choose import plan_budgeted_run

        _require_effect(link, layout, None if usd else price)
        run = plan_budgeted_run(chosen, budget, device, ranks, mfu, is_pinned=depth is not None or pins_size(overrides))
        print(json.dumps(run.to_json(), indent=2) if as_json else format_budgeted_run(run))
        return
    sizes, shares, teacher = count_source_sizes(chosen), count_generated_shares(chosen), find_teacher(chosen, folder)
    settings = PlanSettings(None, gpus, mfu, price, link, layout, True, None, sizes, device, teacher, shares)
    result = make_plan(chosen, settings)
    print(json.dumps(result, indent=2) if as_json else format_plan(result))


def _require_effect(link: str | None, layout: str, unpaid: float | None) -> None:
    """Raises UserError for an option that a plan with a budget does not use; unpaid: a price without --usd."""
    if unpaid is not None:
        raise UserError(f"--price {unpaid} has no effect without --usd")
    for name, value in {"link": link, "layout": None if layout == DEFAULT_LAYOUT else layout}.items():
        if value is not None:
            raise UserError(f"--{name} {value} has no effect with a budget")


@app.command
def devices(
    *,
    gpu: SpacedNameList = (),
    vocab_size: VocabSize = 65_536,
    context: int = 2_048,
    hours: float = 24.0,
    peak: Peak = None,
    bandwidth: Bandwidth = None,
    memory: Memory = None,
    mfu: Mfu = None,
    price: SpacedNameList = (),
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Print for each device the largest depth that trains on one of it, its dtype, hours, energy and cost.

    Parameters
    ----------
    gpu
        Devices; default: all of the table.
    context
        Tokens per row.
    hours
        Also print the largest depth whose pretraining takes at most that.
    price
        NAME=USD, US dollars per hour for a device.
    """
    from dataclasses import asdict

    from fledgling.plan.cost import require_price
    from fledgling.plan.largest import describe_devices, load_depths_recipe
    from fledgling.plan.text import format_devices

    chosen = [find_device(name) for name in gpu] or ([] if peak is not None else list(DEVICES.values()))
    if peak is not None or bandwidth is not None or memory is not None:
        chosen.append(make_own_device(None, peak, bandwidth, memory))
    prices = {}
    for entry in price:
        name, _, usd = entry.partition("=")
        try:
            prices[find_device(name).name if name != OWN else OWN] = require_price(float(usd))
        except ValueError:
            raise UserError(f"--price {entry}: expected NAME=USD an hour, such as h100=3") from None
    entries = describe_devices(chosen, load_depths_recipe(vocab_size, context, overrides), hours, prices, mfu)
    if as_json:
        shown = [{name: value and asdict(value) for name, value in entry.items()} for entry in entries]
        print(json.dumps(shown, indent=2))
        return
    print(format_devices(entries, hours))


@app.command
def compare(
    *,
    depth: SpacedCountList = (12,),
    vocab_size: VocabSize = 65_536,
    context: int = 2_048,
    as_json: Json = False,
) -> None:
    """Print the decoder families side by side: the contents of a block, and the parameters.

    Parameters
    ----------
    depth
        Layers; several values print several tables.
    context
        Tokens per row: GPT's positions are parameters.
    """
    from fledgling.plan.compare import compare_families, format_family_tables

    families = compare_families(depth, vocab_size, context)
    print(json.dumps(families, indent=2) if as_json else format_family_tables(families))
