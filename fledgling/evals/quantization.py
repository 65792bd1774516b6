"""A checkpoint in 8 or 4 bits, and what that costs in quality: `fledgling quantize` calls it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fledgling.evals.quality import QualityCheck, measure_change
from fledgling.infer.runner import load_model
from fledgling.kernels.format import DEFAULT_GROUP_SIZES, check_quantization
from fledgling.kernels.quantized_model import count_weight_bytes, quantize_state_dict, require_unquantized
from fledgling.model.transformer import Transformer
from fledgling.plan.inference import weight_bytes
from fledgling.record.checkpoint import read_checkpoint_state, resolve_checkpoint, save_checkpoint
from fledgling.record.outside import require_outside_run
from fledgling.text.tokenizer import Tokenizer

_COPIED_STATE = ("name", "stage", "recipe", "tokenizer", "model")


@dataclass(frozen=True)
class QuantizedCopy:
    """A checkpoint's model, and its quantized copy as it is read from the files that were written.

    settings: bits, group_size, head and embedding, as the copy's state.json has them under `quantized`.
    """

    path: Path
    settings: dict[str, Any]
    source: Transformer
    quantized: Transformer
    tokenizer: Tokenizer

    def count_bytes(self) -> dict[str, int]:
        """Returns the bytes of the weights: in float32, as they are packed, and as the planner predicts them."""
        settings = self.settings
        predicted = weight_bytes(
            self.source.config,
            f"int{settings['bits']}",
            settings["group_size"],
            settings["head"],
            settings["embedding"],
        )
        packed = count_weight_bytes(self.quantized)
        return {"float32": 4 * self.source.count_parameters(), "packed": packed, "predicted": predicted}

    def measure_quality(self, text: str | None = None, questions: int = 100) -> list[dict[str, Any]]:
        """Measures both models on the same text and questions; returns name, before, after and change of each value.

        Args:
            text: a file or folder for bits per byte; None is the held-out part of the embedded corpus.
            questions: of each quickstart task; 0 for none.
        """
        check = QualityCheck.prepare(self.tokenizer, self.source.config.context, text, questions)
        before, after = check.measure_quality(self.source, "before"), check.measure_quality(self.quantized, "after")
        return [
            {
                "name": a.measurement.name,
                "before": asdict(a.measurement),
                "after": asdict(b.measurement),
                "change": dict(zip(("value", "low", "high"), measure_change(a, b), strict=True)),
            }
            for a, b in zip(before, after, strict=True)
        ]


def quantize_checkpoint(
    checkpoint: Path,
    out: Path,
    bits: int = 8,
    group_size: int | None = None,
    head: bool = True,
    embedding: bool = False,
) -> QuantizedCopy:
    """Writes a checkpoint's matrices in 8 or 4 bits as OUT/step-N, which every command but train and export accepts.

    Args:
        checkpoint: a checkpoint, a stage or a run directory.
        group_size: adjacent values of a row that share a scale; None is the default of `bits`.
        head, embedding: whether these are quantized too.

    Raises:
        UserError: unsupported bits or groups, a checkpoint that is quantized already, or `out` inside a run.
    """
    group_size = group_size or DEFAULT_GROUP_SIZES.get(bits, 64)
    check_quantization(bits, group_size)
    require_outside_run(out)
    path = resolve_checkpoint(checkpoint)
    require_outside_run(out, step=int(read_checkpoint_state(path).get("step", 0)))
    source, tokenizer, state = load_model(path)
    require_unquantized(state, path, "quantized again")
    tensors = quantize_state_dict(source.config, source.state_dict(), bits, group_size, head, embedding)
    settings = {"bits": bits, "group_size": group_size, "head": head, "embedding": embedding}
    copied = {name: state[name] for name in _COPIED_STATE if name in state}
    step = int(state.get("step", 0))
    new_state = {**copied, "step": step, "quantized": settings}
    written = save_checkpoint(out, step, {"model": tensors}, new_state, {"tokenizer.json": path / "tokenizer.json"})
    quantized, *_ = load_model(written)
    return QuantizedCopy(written, settings, source, quantized, tokenizer)
