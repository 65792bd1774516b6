"""`fledgling plan`: parameters, FLOPs, memory, hours and cost, before anything runs and without torch.

`lines` and what it calls turn the dictionary of `fledgling.plan.plan` into a table; `compare` puts families beside
each other.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import App, Parameter

from fledgling.cli.options import Json, Overrides, VocabSize
from fledgling.config import Recipe, UserError, load_recipe
from fledgling.plan.hardware import find_device
from fledgling.plan.inference import plan_inference
from fledgling.plan.plan import make_plan

app = App(
    name="plan",
    help="Parameters by component, FLOPs, memory a rank, tokens, hours and cost, before anything runs.",
)
PUBLISHED = ("tokenizer.vocab_size=65536", "model.context=2048", "run.hardware=h100")


@app.default
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
    layout: str = "fledgling",
    inference: Annotated[bool, Parameter(negative=())] = False,
    length: int | None = None,
    conversations: int = 1,
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
    layout
        Of a step's memory: fledgling, or whole-logits, as systems have it that keep the logits of a whole batch.
    inference
        Print what answering takes instead: weights in each format, caches, how many conversations fit.
    length
        Tokens of a conversation, for --inference; default the context.
    conversations
        Answered at once, for --inference.
    """
    named = {"model.depth": depth, "tokenizer.vocab_size": vocab_size, "model.context": context}
    pinned = [f"{key}={value}" for key, value in named.items() if value is not None]
    chosen = _recipe(recipe, depth, [*pinned, *overrides])
    if inference:
        result = answering(chosen, gpu, length, conversations)
        print(json.dumps(result, indent=2) if as_json else "\n".join(inference_lines(result)))
        return
    result = make_plan(chosen, gpu, gpus, mfu, price, link, layout)
    print(json.dumps(result, indent=2) if as_json else "\n".join(lines(result)))


@app.command
def compare(
    *,
    depth: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (12,),
    vocab_size: VocabSize = 65_536,
    context: int = 2_048,
    as_json: Json = False,
) -> None:
    """Print GPT-style, Llama-style and our own decoders side by side: what a block holds, and the parameters.

    Parameters
    ----------
    depth
        Layers; several give several tables.
    context
        Tokens a row: GPT's positions are parameters.
    """
    from fledgling.plan.compare import compare_families as side_by_side
    from fledgling.plan.compare import format_comparison

    found = side_by_side(depth, vocab_size, context)
    print(json.dumps(found, indent=2) if as_json else format_comparison(found))


def _recipe(name: str | None, depth: int | None, overrides: list[str]) -> Recipe:
    """Return the recipe to plan: the one named, or one that says nothing but a depth."""
    if name is None and depth is not None:
        blank = ("pretrain={}", "midtrain={}", "sft={}", "rl={}", "model={}", 'stages=["pretrain"]', f"name=d{depth}")
        return load_recipe("quickstart", [*blank, *PUBLISHED, *overrides])
    return load_recipe(name or "quickstart", overrides)


def lines(result: dict[str, Any]) -> list[str]:
    """Return a plan as lines of text for people."""
    model, counts, horizon = (result[key] for key in ("model", "parameters", "horizon"))
    training = result["flops"]["training"]
    shape = f"{model['depth']} layers x {model['width']}, {model['heads']} heads, context {model['context']}"
    rows = [
        ("model", f"{model['family']}, {shape}"),
        ("parameters", f"{counts['total']:,} = {result['formula']['simplified']}"),
        *((f"  {name.replace('_', ' ')}", f"{n:,}") for name, n in counts.items() if name != "total" and n),
        ("FLOPs a token", f"{training['total']:,} (forward a third; attention over the full square)"),
        *((f"  {name.replace('_', ' ')}", f"{n:,}") for name, n in training.items() if name != "total"),
        ("FLOPs in all", f"{result['flops']['total']:.6e}"),
        ("tokens", f"{horizon['tokens']:,}  ({horizon['tokens_per_parameter']:g} a parameter)"),
        ("steps", f"{horizon['steps']:,} of {horizon['batch_tokens']:,} tokens"),
        (
            "a rank's step",
            f"{horizon['grad_accumulation']} x {horizon['micro_batch_size']} rows, {horizon['dtype']}",
        ),
        (
            "data",
            f"{result['data']['shards']:,} shards, {size(result['data']['bytes_text'])}; tokenized "
            f"{size(result['data']['bytes_tokenized'])}; a checkpoint {size(result['data']['bytes_checkpoint'])}",
        ),
        *memory_rows(result["memory"]),
        *time_rows(result),
        *communication(result["communication"]),
    ]
    return columns(rows)


def columns(rows: list[tuple[str, str]]) -> list[str]:
    """Return names and texts in two columns."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def memory_rows(section: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a rank's memory: the peak by component, and the rule of thumb beside it."""
    peak, rule = section["per_rank"], section["rule_of_thumb"]
    slack = f" and {size(section['slack'])} of slack" if section["slack"] else ""
    kind = "estimate" if section["estimate"] else "counted"
    rows = [
        ("memory a rank", f"{size(peak['total'])}{slack} of {size(section['device'])} ({kind})"),
        ("  its moment", {"head": "the logits, at the end of forward"}.get(section["moment"], section["moment"])),
        *((f"  {name.replace('_', ' ')}", size(n)) for name, n in peak.items() if name != "total" and n),
        (
            "  rule of thumb",
            f"{size(rule['states'])} of states, {size(rule['low'])} to {size(rule['high'])} in all: it "
            "counts parameters, not tokens",
        ),
    ]
    if not section["fits"]:
        rows.append(("warning", "it does not fit: a smaller depth, context or micro-batch, or more ranks"))
    return rows


def time_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of time, energy and money, of every stage whose steps are known."""
    time, device, stages = result["time"], result["hardware"], result["stages"]
    source = {"given": "as given", "measured": "measured here", "table": "assumed"}[time["mfu_source"]]
    of = f" with {time['mfu_of']}" if "mfu_of" in time else ""
    usd = result["cost"]["usd"]
    rows = [
        ("hardware", f"{device['ranks']} x {device['name']}"),
        ("time", f"{span(time['hours'])} of pretraining at {time['mfu']:.0%} MFU, {source}{of} (estimate)"),
    ]
    for name, stage in stages.items():
        money = "" if stage["usd"] is None else f", ${stage['usd']:,.2f}"
        most = "at most " if name == "rl" else ""
        rows.append(
            (
                f"  {name}",
                f"{span(stage['hours'])}{money} for {most}{stage['tokens']:,} tokens; {stage['grad_accumulation']} x "
                f"{stage['micro_batch_size']} rows in {size(stage['memory'])}",
            )
        )
    spent = [stage["kwh"] for stage in stages.values()] or [result["cost"]["kwh"]]
    rows.append(("energy", f"{sum(spent):,.3g} kWh of the devices at their limit (estimate)"))
    paid = [stage["usd"] for stage in stages.values()] or [usd]
    known = None not in paid
    rows.append(("cost", f"${sum(paid):,.2f} (estimate)" if known else "unknown: give --price"))
    return rows


def answering(recipe: Recipe, gpu: str | None, length: int | None, conversations: int) -> dict[str, Any]:
    """Return what answering with the recipe's model takes."""
    if conversations < 1 or (length is not None and length < 1):
        raise UserError(f"--conversations {conversations} --length {length}: expected at least 1 of each")
    config = recipe.resolve_model()
    if length is not None and length > config.context:
        raise UserError(f"--length {length}: the model's context is {config.context}; ask for at most so many")
    chosen = find_device(gpu or recipe.run.hardware)
    return {"device_name": chosen.name, **plan_inference(config, chosen.memory, length, conversations)}


def inference_lines(result: dict[str, Any]) -> list[str]:
    """Return what answering takes as lines of text for people."""
    head = f"{result['rows']} conversations of {result['length']:,} tokens on {result['device_name']}, "
    lines = [
        head + f"{size(result['device'])}; a token's keys and values {size(result['cache_per_token'])} in bf16",
        f"{'':10} {'weights':>10} {'cache':>10} {'together':>10} {'fit':>8} {'a token':>10} {'bytes a step':>13}",
    ]
    for form, one in result["formats"].items():
        lines.append(
            f"{form:10} {size(one['weights']):>10} {size(one['cache']):>10} {size(one['total']):>10} "
            f"{one['conversations']:>8,} {one['decode']['flops_per_token'] / 1e9:>6.2f} GF "
            f"{size(one['decode']['bytes_per_step']):>13}"
        )
    return lines


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
    if count < 2**20:
        return f"{count / 2**10:,.1f} KiB"
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def span(hours: float) -> str:
    """Return a time in the unit that people read: minutes, hours or days."""
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
