"""Formats plans as text for the terminal.

`format_plan` formats the dictionary of `fledgling.plan.plan.make_plan`, `format_inference` that of
`fledgling.plan.inference.plan_inference`.
"""

from __future__ import annotations

from typing import Any

from fledgling.plan.communication import GPUS_OF_A_MACHINE
from fledgling.plan.split import explain_empty_slots
from fledgling.record.jsonl import format_bytes

Rows = list[tuple[str, str]]


def format_plan(plan: dict[str, Any]) -> str:
    """Returns a plan as lines of text in two columns."""
    rows = [
        *_model_rows(plan),
        *_derived_rows(plan["derived"]),
        *_memory_rows(plan["memory"], plan["stages"]),
        *_time_rows(plan),
    ]
    rows += _communication_rows(plan["communication"])
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def format_inference(section: dict[str, Any]) -> str:
    """Returns the section on inference, with its device's name, as lines of text."""
    cache_per_token = format_memory(section["cache_per_token"])
    lines = [
        f"{section['rows']} conversations of {section['length']:,} tokens on {section['device_name']}, "
        f"{format_memory(section['device'])}; keys and values of a token {cache_per_token} in bf16",
        f"{'':10} {'weights':>10} {'cache':>10} {'together':>10} {'fit':>8} {'per token':>10} {'per step':>13}",
    ]
    for name, values in section["formats"].items():
        decode = values["decode"]
        lines.append(
            f"{name:10} {format_memory(values['weights']):>10} {format_memory(values['cache']):>10} "
            f"{format_memory(values['total']):>10} {values['conversations']:>8,} "
            f"{decode['flops_per_token'] / 1e9:>6.2f} GF {format_memory(decode['bytes_per_step']):>13}"
        )
    return "\n".join(lines)


def _model_rows(plan: dict[str, Any]) -> Rows:
    """Returns the rows of the model and its FLOPs, and of the length of pretraining where the recipe has it."""
    model, counts = plan["model"], plan["parameters"]
    training = plan["flops"]["training"]
    shape = f"{model['depth']} layers x {model['width']}, {model['heads']} heads, context {model['context']}"
    return [
        ("model", f"{model['family']}, {shape}"),
        ("parameters", f"{counts['total']:,} = {plan['formula']['simplified']}"),
        *((f"  {name.replace('_', ' ')}", f"{n:,}") for name, n in counts.items() if name != "total" and n),
        ("FLOPs per token", f"{training['total']:,} (a third of it forward; attention over the full square)"),
        *((f"  {name.replace('_', ' ')}", f"{n:,}") for name, n in training.items() if name != "total"),
        *(_pretraining_rows(plan) if "pretrain" in plan["stages"] else ()),
    ]


def _pretraining_rows(plan: dict[str, Any]) -> Rows:
    """Returns the rows of the length of pretraining and its data."""
    horizon, data = plan["horizon"], plan["data"]
    aside = " without value embeddings" if plan["parameters"].get("value_embeddings") else ""
    return [
        ("FLOPs of pretraining", f"{plan['flops']['total']:.6e}"),
        ("tokens of pretraining", f"{horizon['tokens']:,}  ({horizon['tokens_per_parameter']:g} per parameter{aside})"),
        ("steps of pretraining", f"{horizon['steps']:,} of {horizon['batch_tokens']:,} tokens"),
        (
            "step of a rank",
            f"{horizon['grad_accumulation']} x {horizon['micro_batch_size']} rows, {horizon['dtype']}",
        ),
        (
            "data",
            f"{data['shards']:,} shards, {format_memory(data['bytes_text'])}; tokenized "
            f"{format_memory(data['bytes_tokenized'])}; a checkpoint {format_memory(data['bytes_checkpoint'])}",
        ),
    ]


def _derived_rows(derived: list[dict[str, Any]]) -> Rows:
    """Returns one row of the values that rules have filled for each table of the recipe, with the rules' numbers."""
    tables: dict[str, list[str]] = {}
    for each in derived:
        table, _, field = each["name"].partition(".")
        tables.setdefault(table, []).append(f"{field} {each['value']:,g} ({each['rule']})")
    rows = [(f"  {table}", ", ".join(values)) for table, values in tables.items()]
    return [("by rule", "of fledgling/config/scaling_rules.py, by its number"), *rows] if rows else []


def _memory_rows(section: dict[str, Any], stages: dict[str, Any]) -> Rows:
    """Returns the rows of a rank's memory: pretraining's peak by component, a stage with a higher one, a rule of thumb.

    Without pretraining, the row of the stage that needs the most.

    Args:
        section: "memory" of the plan.
        stages: "stages" of it.
    """
    if stages and not section["in_run"]:
        name = max(stages, key=lambda stage: stages[stage]["memory"])
        most, device = stages[name]["memory"], section["device"]
        rows: Rows = [("memory per rank", f"{format_memory(most)} of {format_memory(device)} in {name}")]
        fits = most <= device
        return rows + (
            [] if fits else [("warning", "does not fit: use a smaller micro-batch or context, or an adapter")]
        )
    peak, rule = section["per_rank"], section["rule_of_thumb"]
    slack = f" and {format_memory(section['slack'])} of slack" if section["slack"] else ""
    kind = "estimate" if section["estimate"] else "counted"
    rows = [
        (
            "memory per rank",
            f"{format_memory(peak['total'])}{slack} of {format_memory(section['device'])} ({kind}, of pretraining)",
        ),
        *_highest_memory(peak["total"], stages),
        ("  peak phase", {"head": "the logits, at the end of forward"}.get(section["phase"], section["phase"])),
        *((f"  {name.replace('_', ' ')}", format_memory(n)) for name, n in peak.items() if name != "total" and n),
        (
            "  rule of thumb",
            f"{format_memory(rule['states'])} of states, {format_memory(rule['low'])} to "
            f"{format_memory(rule['high'])} in total: it counts parameters, not tokens",
        ),
    ]
    if not section["fits"]:
        form = f'optimizer.state="{section["fits_with_state"]}", ' if section["fits_with_state"] else ""
        rows.append(("warning", f"does not fit: use {form}a smaller depth, context or micro-batch, or more ranks"))
    return rows


def _highest_memory(pretraining: float, stages: dict[str, Any]) -> Rows:
    """Returns a row for the stage that needs the most memory, if that is more than pretraining; else none."""
    name = max(stages, key=lambda stage: stages[stage]["memory"], default="")
    is_higher = bool(name) and stages[name]["memory"] > pretraining
    return [("  most of all stages", f"{format_memory(stages[name]['memory'])} in {name}")] if is_higher else []


def _time_rows(plan: dict[str, Any]) -> Rows:
    """Returns the rows of time, energy and money, for every stage whose steps are known; names the others."""
    time, device, stages = plan["time"], plan["hardware"], plan["stages"]
    source = {"given": "as given", "measured": "measured on this machine", "table": "assumed"}[time["mfu_source"]]
    origin = f" with {time['mfu_of']}" if "mfu_of" in time else ""
    peak_sources = {"table": "the table", "benchmark": "the benchmark", "run": "the run"}
    peak = f"{device['peak_flops'] / 1e12:,.4g} TFLOP/s, the peak of {peak_sources[time['peak_source']]}"
    if time["mfu_datasheet"] is not None and time["peak_source"] != "table":
        peak += f"; {time['mfu_datasheet']:.0%} of the datasheet's {time['datasheet_flops'] / 1e12:,.4g}"
    elif time["mfu_datasheet"] is not None:
        peak = f"the datasheet's {time['datasheet_flops'] / 1e12:,.4g} TFLOP/s in {plan['horizon']['dtype']}"
    own = f"{format_hours(time['hours'])} of pretraining " if "pretrain" in stages else ""
    rows = [
        ("hardware", f"{device['ranks']} x {device['name']}"),
        ("time", f"{own}at {time['mfu']:.0%} MFU, {source}{origin} (estimate)"),
        ("", f"MFU of {peak}; the time of the steps alone, without evaluations, checkpoints and preparation"),
    ]
    for name, stage in stages.items():
        money = "" if stage["usd"] is None else f", ${stage['usd']:,.2f}"
        bound = {"rl": "an assumed ", "dpo": "at most "}.get(name, "")  # prompts of RL may be longer than its answers
        bound = "an assumed " if stage["assumed_lengths"] else bound
        rows.append(
            (
                f"  {name}",
                f"{format_hours(stage['hours'])}{money} for {stage['steps']:,} steps, "
                f"{bound}{stage['tokens']:,} tokens; "
                f"{stage['grad_accumulation']} x {stage['micro_batch_size']} rows in {format_memory(stage['memory'])}",
            )
        )
        if stage["empty_share"] > 0:
            reason = explain_empty_slots(stage["rows_per_step"], stage["micro_batch_size"], device["ranks"])
            rows.append(("", f"{stage['empty_share']:.0%} of the work of a step is on no row, for {reason}"))
    rows += [(f"  {name}", "its steps are known once its data are prepared") for name in plan["unknown_stages"]]
    counted = "of the known stages" if plan["unknown_stages"] else "of all stages"
    energy, prices = ([stage[key] for stage in stages.values()] for key in ("kwh", "usd"))
    used = f"{sum(energy):,.3g} kWh of the devices at their power limit (estimate)" if any(energy) else "unknown"
    paid = "unknown: give --price" if None in prices else f"${sum(prices):,.2f} (estimate)" if prices else "unknown"
    return [*rows, (f"energy {counted}", used), (f"cost {counted}", paid)]


def _communication_rows(section: dict[str, Any]) -> Rows:
    """Returns one row per topology; none for a single rank."""
    if not section["topologies"]:
        return []
    link = section["link"]
    where = ""
    if link["machines"]:
        where = f" (assumed between {link['machines']} machines of {GPUS_OF_A_MACHINE}; name another with --link)"
    return [
        (
            "communication",
            f"{format_memory(section['gradient_bytes'])} of gradients over {link['name']}{where}, "
            f"{link['bandwidth'] / 1e9:g} GB/s in each direction; a step computes "
            f"{section['compute_seconds'] * 1e3:,.1f} ms (estimate)",
        ),
        *(
            (
                f"  {name}",
                f"{format_memory(traffic['bytes_busiest_link'])}, {traffic['seconds'] * 1e3:,.1f} ms: "
                f"{traffic['share_of_step']:.1%} of a step, {traffic['share_of_step_overlapped']:.1%} overlapped; "
                f"bound by {traffic['bottleneck']}",
            )
            for name, traffic in section["topologies"].items()
        ),
    ]


def format_memory(count: float) -> str:
    """Returns bytes in binary units, as devices' memory is sold: KiB, MiB or GiB."""
    return format_bytes(count, binary=True)


def format_hours(hours: float) -> str:
    """Returns a time in minutes, hours or days."""
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def format_devices(entries: list[dict[str, Any]], hours: float) -> str:
    """Returns the entries of `largest.describe_devices` as a table."""
    header = ["device", "memory", "GB/s", "dtype", "TFLOP/s", "largest", "parameters", "rows", "time", "kWh", "cost"]
    table = [[*header, f"in {format_hours(hours)}", "cost"]]
    for entry in entries:
        device, largest, within = entry["device"], entry["largest"], entry["within"]
        row = [device.name, format_memory(device.memory), f"{device.bandwidth / 1e9:,.0f}", device.dtype]
        row.append(f"{device.peak_flops / 1e12:,.4g}")
        if largest is None:
            row += ["none", *[""] * 5]
        else:
            row += [f"depth {largest.depth}", f"{largest.parameters / 1e6:,.0f}M"]
            row.append(f"{largest.rows}{' again' if largest.recompute else ''}")
            row += [format_hours(largest.hours), f"{largest.kwh:,.3g}", _format_price(largest.usd)]
        row += ["none", ""] if within is None else [f"depth {within.depth}", _format_price(within.usd)]
        table.append(row)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(
        [
            *lines,
            "largest: one row of a step fits a device (again: if blocks compute their activations twice). time, kWh,",
            "cost: 20 tokens a parameter without value embeddings, steps alone, at a measured or assumed MFU (--mfu).",
            "cost: give prices with --price NAME=USD an hour.",
        ]
    )


def _format_price(usd: float | None) -> str:
    return "" if usd is None else f"${usd:,.2f}"
