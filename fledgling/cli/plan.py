"""`fledgling plan`: parameters, FLOPs, memory, hours and cost, before anything runs and without torch."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter

from fledgling.cli.options import Json, Overrides, VocabSize
from fledgling.config import UserError
from fledgling.plan.inference import plan_recipe_inference
from fledgling.plan.plan import load_planned_recipe, make_plan
from fledgling.plan.text import format_inference, format_plan

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
    gpus: int | None = None,
    gpu: str | None = None,
    mfu: float | None = None,
    price: Annotated[float | None, Parameter(negative=())] = None,
    link: str | None = None,
    layout: str = "fledgling",
    inference: Annotated[bool, Parameter(negative=())] = False,
    length: int | None = None,
    conversations: int | None = None,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Print the plan of a run: parameters by component, FLOPs, tokens, memory per rank, hours and cost.

    Give a recipe (default: quickstart) or only a depth, which determines everything else, with the published vocabulary
    of 65,536 and context of 2,048.

    Parameters
    ----------
    recipe
        A recipe's name, a TOML file or a run directory.
    depth
        Layers; determines width, heads, tokens, batch and steps.
    vocab_size
        Entries of the tokenizer.
    context
        Tokens per row.
    gpus
        Number of devices.
    gpu
        Device: cpu, cpu-bf16, t4, l4, rtx3090, rtx4090, rtx5090, a100, h100, h200, b200.
    mfu
        Assumed utilization, in (0, 1].
    price
        US dollars per hour for one device.
    link
        Link between the devices: nvlink-b200, nvlink-h100, nvlink-a100, pcie5, pcie4, infiniband-ndr, ethernet-100g,
        ethernet-25g, ethernet-10g, ethernet-1g, loopback; default: the usual one of the device.
    layout
        Memory layout of a step: fledgling, or whole-logits, for systems that keep the logits of a whole batch.
    inference
        Print the memory for inference instead: weights in each format, caches, conversations that fit.
    length
        Tokens per conversation, for --inference; default: the context.
    conversations
        Simultaneous conversations, for --inference; default: 1.
    """
    pinned = {"model.depth": depth, "tokenizer.vocab_size": vocab_size, "model.context": context}
    chosen = load_planned_recipe(recipe, depth, [f"{k}={v}" for k, v in pinned.items() if v is not None], overrides)
    training_options = {"gpus": gpus, "mfu": mfu, "price": price, "link": link}
    inference_options = {"length": length, "conversations": conversations}
    for name, value in (training_options if inference else inference_options).items():
        if value is not None:
            raise UserError(f"--{name} {value} has no effect {'with' if inference else 'without'} --inference")
    if inference:
        section = plan_recipe_inference(chosen, gpu, length, 1 if conversations is None else conversations)
        print(json.dumps(section, indent=2) if as_json else format_inference(section))
        return
    result = make_plan(chosen, gpu, gpus, mfu, price, link, layout)
    print(json.dumps(result, indent=2) if as_json else format_plan(result))


@app.command
def compare(
    *,
    depth: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (12,),
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
    from fledgling.plan.compare import compare_families, format_comparison

    families = compare_families(depth, vocab_size, context)
    print(json.dumps(families, indent=2) if as_json else format_comparison(families))
