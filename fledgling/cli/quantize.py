"""`fledgling quantize`: writes a checkpoint in 8 or 4 bits, for every command but train and export."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fledgling.cli.options import Checkpoint, Json
from fledgling.config import UserError
from fledgling.record.evaluation_names import format_cases


def quantize(
    checkpoint: Checkpoint,
    out: Path,
    /,
    *,
    bits: int = 8,
    group_size: int | None = None,
    head: bool = True,
    embedding: bool = False,
    text: str | None = None,
    questions: int = 100,
    measure: bool = True,
    as_json: Json = False,
) -> None:
    """Write a checkpoint's matrices in 8 or 4 bits with a scale for each group, and print what that costs.

    Parameters
    ----------
    out
        The directory of the new checkpoint, which is written as OUT/step-N.
    bits
        8 or 4.
    group_size
        Adjacent values of a row that share a scale: a power of two, at least 32; default 64 for 8 bits, 32 for 4.
    head
        Quantize the head too.
    embedding
        Quantize the embedding too, which saves memory and no time.
    text
        A file or folder for bits per byte; default the held-out part of the embedded corpus.
    questions
        Questions of each quickstart task for measuring accuracy; 0 for none.
    measure
        Measure quality before and after.
    """
    from fledgling.evals.quality import QualityCheck, measure_change
    from fledgling.infer.runner import load_model
    from fledgling.kernels.format import DEFAULT_GROUP_SIZES, check_quantization
    from fledgling.kernels.quantized_model import count_weight_bytes, quantize_state_dict, require_unquantized
    from fledgling.plan.inference import weight_bytes
    from fledgling.record.checkpoint import resolve_checkpoint, save_checkpoint
    from fledgling.record.outside import require_outside_run

    group_size = group_size or DEFAULT_GROUP_SIZES.get(bits, 64)
    check_quantization(bits, group_size)
    if questions < 0:
        raise UserError(f"--questions {questions}: expected 0 or more")
    require_outside_run(out)
    source = resolve_checkpoint(checkpoint)
    model, tokenizer, state = load_model(source)
    require_unquantized(state, source, "quantized again")
    tensors = quantize_state_dict(model.config, model.state_dict(), bits, group_size, head, embedding)
    quantization = {"bits": bits, "group_size": group_size, "head": head, "embedding": embedding}
    copied: dict[str, Any] = {
        name: state[name] for name in ("name", "stage", "recipe", "tokenizer", "model") if name in state
    }
    step = int(state.get("step", 0))
    new_state = {**copied, "step": step, "quantized": quantization}
    tokenizer_file = {"tokenizer.json": source / "tokenizer.json"}
    path = save_checkpoint(out, step, {"model": tensors}, new_state, tokenizer_file)
    quantized, *_ = load_model(path)
    predicted = weight_bytes(model.config, f"int{bits}", group_size, head, embedding)
    count = model.count_parameters()
    result: dict[str, Any] = {
        "path": str(path),
        **quantization,
        "parameters": count,
        "bytes": {"float32": 4 * count, "packed": count_weight_bytes(quantized), "predicted": predicted},
        "quality": [],
    }
    if measure:
        check = QualityCheck.prepare(tokenizer, model.config.context, text, questions)
        before, after = check.measure_quality(model, "before"), check.measure_quality(quantized, "after")
        pairs = zip(before, after, strict=True)
        result["quality"] = [
            {
                "name": a.measurement.name,
                "before": asdict(a.measurement),
                "after": asdict(b.measurement),
                "change": dict(zip(("value", "low", "high"), measure_change(a, b), strict=True)),
            }
            for a, b in pairs
        ]
    print(json.dumps(result, indent=2) if as_json else quantization_table(result))


def quantization_table(result: dict[str, Any]) -> str:
    """Returns the result as lines of text."""
    sizes, count = result["bytes"], result["parameters"]
    lines = [
        result["path"],
        f"{count:,} parameters, {result['bits']} bits in groups of {result['group_size']}; "
        f"head {'packed' if result['head'] else 'bf16'}, embedding {'packed' if result['embedding'] else 'bf16'}",
        f"{sizes['packed']:,} bytes of weights ({sizes['packed'] / count:.3f} a parameter), planned "
        f"{sizes['predicted']:,}; {sizes['float32']:,} in float32",
    ]
    if result["quality"]:
        lines.append(f"{'':<24}{'before':>10}{'after':>10}{'change':>10}  {'95 %':<20}n")
    for row in result["quality"]:
        before, change = row["before"], row["change"]
        low, high = change["low"], change["high"]
        interval = (
            "none: one cluster" if low is None else "nothing changed" if low == high else f"[{low:+.4f}, {high:+.4f}]"
        )
        cases = format_cases(before["n"], before["clusters"], before["cluster_unit"])
        values = f"{before['value']:>10.4f}{row['after']['value']:>10.4f}{change['value']:>+10.4f}"
        lines.append(f"{row['name']:<24}{values}  {interval:<20}{cases}")
    return "\n".join(lines)
