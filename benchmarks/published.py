"""The planner next to figures that others published: peaks of memory, speeds, the hours of the published run.

Peaks are compared in the layout of the system that they were measured on (docs/math/memory.md). Speeds are planned at
the assumed utilization, as `plan` does for a device that was not measured here, so their errors are those of that one
assumption. Decoding is compared with the bound that bytes and bandwidth set, which no system exceeds.
"""

from __future__ import annotations

from typing import Any

from fledgling.config import ModelConfig, load_recipe
from fledgling.plan import cost, flops, inference, memory
from fledgling.plan.hardware import find_device
from fledgling.plan.plan import make_plan

CONTEXT, BATCH_TOKENS, MIB = 2048, 524_288, 2**20
PEAKS = (  # depth, vocabulary, rows, ranks, MiB as torch.cuda.max_memory_allocated; the last five with later extras
    (10, 65_536, 8, 1, 7_496.89),
    (20, 65_536, 8, 1, 29_596.27),
    (20, 65_536, 32, 8, 75_422.02),
    (12, 32_768, 8, 1, 9_435),
    (12, 32_768, 16, 1, 20_578),
    (16, 32_768, 16, 1, 27_688),
    (16, 32_768, 32, 1, 48_400),
    (18, 32_768, 16, 1, 32_422),
)


def plan_peak(depth: int, vocab_size: int, rows: int, ranks: int) -> float:
    """Returns the planned MiB of a step of 524,288 tokens in the layout of the system that published it."""
    config = ModelConfig(depth=depth, context=CONTEXT, preset="nanochat-2025").resolve(vocab_size)
    micro_batches = max(1, BATCH_TOKENS // (rows * CONTEXT * ranks))
    step = memory.TrainingStep(rows, CONTEXT, ranks=ranks, micro_batches=micro_batches, layout="whole-logits")
    return memory.estimate_peak_memory(config, step)["total"] / MIB


def plan_speed(config: ModelConfig, gpu: str, ranks: int) -> float:
    """Returns tokens per second of `ranks` devices at the assumed utilization."""
    device = find_device(gpu)
    return ranks * device.peak_flops * cost.assumed_mfu(device) / flops.training_flops_per_token(config)


def compare_with_published() -> list[dict[str, Any]]:
    """Returns a row for each published figure: what, unit, published, planned, error (planned / published - 1)."""
    rows = [
        (
            f"peak: depth {depth}, V {vocab:,}, {size} rows, {ranks} GPU",
            "MiB",
            mib,
            plan_peak(depth, vocab, size, ranks),
        )
        for depth, vocab, size, ranks, mib in PEAKS
    ]
    stages = make_plan(load_recipe("d20-8xh100"))["stages"]
    d26 = ModelConfig(depth=26, context=CONTEXT, preset="nanochat-2025").resolve(32_768)
    llama3 = ModelConfig(
        depth=32, width=4096, heads=32, kv_heads=8, intermediate_size=14_336, context=8192, family="llama"
    ).resolve(128_256)
    llama2 = ModelConfig(
        depth=32, width=4096, heads=32, kv_heads=32, intermediate_size=11_008, context=CONTEXT, family="llama"
    ).resolve(32_000)
    rows += [
        ("all stages of d20 on 8 H100, evaluations included", "h", 3.85, sum(s["hours"] for s in stages.values())),
        ("MFU of d20 on 8 H100 (47.4 to 48.7)", "%", 48.05, 100 * cost.ASSUMED_MFU["gpu"]),
        ("d26 on 8 H100, bf16 (later extras)", "tok/s", 630_000, plan_speed(d26, "h100", 8)),
        ("Llama 3.1 8B on 8 H100, bf16, of a GPU (33 to 39 % MFU)", "tok/s", 6_667, plan_speed(llama3, "h100", 1)),
    ]
    a100 = find_device("a100-80")
    for weights, published in (("bfloat16", 104.9), ("int8", 155.6), ("int4", 196.8)):
        moved = inference.decode_cost(llama2, 256, weights)["bytes_per_step"]
        bound = a100.bandwidth / moved
        rows.append((f"bound of decoding Llama 2 7B on an A100, one row, {weights}", "tok/s", published, bound))
    names = ("what", "unit", "published", "planned")
    return [dict(zip(names, row, strict=True)) | {"error": row[3] / row[2] - 1} for row in rows]


def format_published(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| figure | published | planned | error |", "|---|---|---|---|"]
    for row in rows:
        values = [_show(row["published"]), _show(row["planned"])]
        lines.append(f"| {row['what']}, {row['unit']} | {values[0]} | {values[1]} | {row['error']:+.1%} |")
    return "\n".join(lines)


def _show(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
