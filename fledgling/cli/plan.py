"""`fledgling plan`: parameters, FLOPs, memory, hours and cost, before anything runs and without torch."""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import Parameter

from fledgling.cli.options import Json, Overrides
from fledgling.config import Recipe, load_recipe
from fledgling.plan.plan import plan as make_plan

PUBLISHED = ("tokenizer.vocab_size=65536", "model.context=2048", "run.hardware=h100")


def plan(
    recipe: str | None = None,
    /,
    *,
    depth: int | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
    mfu: float | None = None,
    price: Annotated[float | None, Parameter(negative=())] = None,
    link: str | None = None,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Print what a run will be: parameters by component, FLOPs, tokens, memory a rank, hours and cost.

    Either a recipe (default: quickstart), or a depth alone: then everything follows from the depth, with the
    published vocabulary of 65,536 and context of 2,048.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    depth
        Layers; the dial that gives width, heads, tokens, batch and steps.
    vocab_size
        Entries of the tokenizer.
    context
        Tokens a row.
    gpus
        How many devices share the work.
    gpu
        Which: cpu, cpu-bf16, t4, l4, rtx3090, rtx4090, rtx5090, a100, h100, h200, b200.
    mfu
        Utilization to reckon with, in (0, 1].
    price
        US dollars an hour for one device.
    link
        Between the devices: nvlink-b200, nvlink-h100, nvlink-a100, pcie5, pcie4, infiniband-ndr, ethernet-100g,
        ethernet-25g, ethernet-10g, ethernet-1g, loopback; default what such devices usually have.
    """
    named = {"model.depth": depth, "tokenizer.vocab_size": vocab_size, "model.context": context}
    pinned = [f"{key}={value}" for key, value in named.items() if value is not None]
    result = make_plan(_recipe(recipe, depth, [*pinned, *overrides]), gpu, gpus, mfu, price, link)
    print(json.dumps(result, indent=2) if as_json else "\n".join(lines(result)))


def _recipe(name: str | None, depth: int | None, overrides: list[str]) -> Recipe:
    """Return the recipe to plan: the one named, or one that says nothing but a depth."""
    if name is None and depth is not None:
        blank = ("pretrain={}", "midtrain={}", "sft={}", "model={}", f"name=d{depth}")
        return load_recipe("quickstart", [*blank, *PUBLISHED, *overrides])
    return load_recipe(name or "quickstart", overrides)


def lines(result: dict[str, Any]) -> list[str]:
    """Return a plan as lines of text for people."""
    model, counts, horizon, time = (result[key] for key in ("model", "parameters", "horizon", "time"))
    peak, device = result["memory"]["per_rank"], result["hardware"]
    usd = result["cost"]["usd"]
    rows = [
        (
            "model",
            f"{model['depth']} layers x {model['width']}, {model['heads']} heads, context {model['context']}",
        ),
        ("parameters", f"{counts['total']:,}"),
        *((f"  {name}", f"{count:,}") for name, count in counts.items() if name != "total" and count),
        ("FLOPs a token", f"{result['flops']['per_token']:,}"),
        ("FLOPs in all", f"{result['flops']['total']:.6e}"),
        ("tokens", f"{horizon['tokens']:,}  ({horizon['tokens_per_parameter']:g} a parameter)"),
        ("steps", f"{horizon['steps']:,} of {horizon['batch_tokens']:,} tokens"),
        (
            "a rank's step",
            f"{horizon['grad_accumulation']} x {horizon['micro_batch']} rows, {horizon['dtype']}",
        ),
        ("tokenized data", size(result["data"]["bytes_tokenized"])),
        ("memory a rank", f"{size(peak['total'])} of {size(result['memory']['device'])} (estimate)"),
        *((f"  {name.replace('_', ' ')}", size(count)) for name, count in peak.items() if name != "total" and count),
        ("hardware", f"{device['ranks']} x {device['name']}"),
        ("time", f"{span(time['hours'])} of pretraining at {time['mfu']:.0%} MFU (estimate)"),
        *(
            (f"  {name}", f"{span(stage['hours'])} for {stage['tokens']:,} tokens")
            for name, stage in result["stages"].items()
        ),
        *communication(result["communication"]),
        ("cost", "unknown: give --price" if usd is None else f"${usd:,.2f} (estimate)"),
    ]
    if not result["memory"]["fits"]:
        rows.append(("warning", "it probably does not fit: a smaller depth, context or micro-batch, or more ranks"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def communication(section: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a plan's communication: a line for each topology; none where one rank talks to nobody."""
    if not section["topologies"]:
        return []
    link = section["link"]
    return [
        (
            "communication",
            f"{size(section['gradient_bytes'])} of gradients over {link['name']}, {link['bandwidth'] / 1e9:g} GB/s "
            f"each way; a step computes {section['compute_seconds'] * 1e3:,.1f} ms (estimate)",
        ),
        *(
            (
                f"  {name}",
                f"{size(one['bytes_busiest_link'])}, {one['seconds'] * 1e3:,.1f} ms: {one['share_of_step']:.1%} of a "
                f"step, {one['share_of_step_overlapped']:.1%} overlapped; bound by {one['bottleneck']}",
            )
            for name, one in section["topologies"].items()
        ),
    ]


def size(count: float) -> str:
    """Return bytes in a unit that people read: MiB below one GiB, GiB above."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def span(hours: float) -> str:
    """Return a time in the unit that people read: minutes, hours or days."""
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
