"""`fledgling quantize`: writes a checkpoint in 8 or 4 bits, for every command but train and export."""

from __future__ import annotations

import json
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
    if questions < 0:
        raise UserError(f"--questions {questions}: expected 0 or more")
    from fledgling.evals.quantization import quantize_checkpoint

    copy = quantize_checkpoint(checkpoint, out, bits, group_size, head, embedding)
    result: dict[str, Any] = {
        "path": str(copy.path),
        **copy.settings,
        "parameters": copy.source.count_parameters(),
        "bytes": copy.count_bytes(),
        "quality": copy.measure_quality(text, questions) if measure else [],
    }
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
