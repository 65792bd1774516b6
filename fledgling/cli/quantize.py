"""`fledgling quantize`: a checkpoint in 8 or 4 bits, which every verb but train and export takes as any other."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.cli.options import Checkpoint, Json
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.measurement import Measurement

MAX_TEXT_ROWS = 128  # of the context's length: the text that quality is measured on


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
    """Write a checkpoint's matrices in 8 or 4 bits with a scale a group, and say what that costs.

    Parameters
    ----------
    out
        The directory that the new checkpoint is put in, as OUT/step-N.
    bits
        8 or 4.
    group_size
        Neighbouring values of a row that share a scale: a power of two from 32; default 64 for 8 bits, 32 for 4.
    head
        Whether the head is quantized too.
    embedding
        Whether the embedding is quantized too, which saves memory and no time.
    text
        A file or folder for bits per byte; default the held-out part of the embedded corpus.
    questions
        Of each task that the quickstart learns; 0 for none.
    measure
        Whether quality is measured, before and after.
    """
    from fledgling.infer.runner import load_model
    from fledgling.kernels.format import DEFAULT_GROUP_SIZES, check_quantization
    from fledgling.kernels.quantized_model import count_weight_bytes, quantize_state_dict, require_unquantized
    from fledgling.plan.inference import weight_bytes
    from fledgling.record.checkpoint import resolve_checkpoint, save_checkpoint

    group_size = group_size or DEFAULT_GROUP_SIZES.get(bits, 64)
    check_quantization(bits, group_size)
    if questions < 0:
        raise UserError(f"--questions {questions}: expected 0 or more")
    place = resolve_checkpoint(checkpoint)
    model, tokenizer, state = load_model(place)
    require_unquantized(state, place, "quantized again")
    tensors = quantize_state_dict(model.config, model.state_dict(), bits, group_size, head, embedding)
    how = {"bits": bits, "group": group_size, "head": head, "embedding": embedding}
    kept = {name: state[name] for name in ("name", "stage", "recipe", "tokenizer", "model") if name in state}
    kept |= {"step": int(state.get("step", 0)), "quantized": how}
    path = save_checkpoint(out, kept["step"], {"model": tensors}, kept, {"tokenizer.json": place / "tokenizer.json"})
    small, *_ = load_model(path)
    predicted = weight_bytes(model.config, f"int{bits}", group_size, head, embedding)
    held, whole = count_weight_bytes(small), 4 * model.count_parameters()
    found: dict[str, Any] = {
        "path": str(path),
        **how,
        "parameters": model.count_parameters(),
        "bytes": {"float32": whole, "packed": held, "predicted": predicted},
        "quality": [],
    }
    if measure:
        examiner = QualityCheck.prepare(tokenizer, model.config.context, text, questions)
        pairs = zip(examiner.measure_quality(model, "before"), examiner.measure_quality(small, "after"), strict=True)
        found["quality"] = [{"name": a.name, "before": asdict(a), "after": asdict(b)} for a, b in pairs]
    print(json.dumps(found, indent=2) if as_json else quantization_table(found))


def quantization_table(found: dict[str, Any]) -> str:
    """The result as lines for people."""
    sizes, count = found["bytes"], found["parameters"]
    lines = [
        found["path"],
        f"{count:,} parameters, {found['bits']} bits in groups of {found['group']}; "
        f"head {'packed' if found['head'] else 'bf16'}, embedding {'packed' if found['embedding'] else 'bf16'}",
        f"{sizes['packed']:,} bytes of weights ({sizes['packed'] / count:.3f} a parameter), planned "
        f"{sizes['predicted']:,}; {sizes['float32']:,} in float32",
    ]
    if found["quality"]:
        lines.append(f"{'':<24}{'before':>10}{'after':>10}{'change':>10}")
    for row in found["quality"]:
        before, after = row["before"]["value"], row["after"]["value"]
        ratio = row["name"] == "bits_per_byte"
        change = f"{after / before - 1:+.2%}" if ratio else f"{after - before:+.4f}"
        lines.append(f"{row['name']:<24}{before:>10.4f}{after:>10.4f}{change:>10}")
    return "\n".join(lines)


@dataclass(frozen=True)
class QualityCheck:
    """The text and the questions that a model is measured on, the same before and after."""

    tokenizer: Any
    batches: list[Any]
    exams: list[Any]

    @classmethod
    def prepare(cls, tokenizer: Any, context: int, text: str | None, questions: int) -> QualityCheck:
        """Read the text, cut it into rows of `context` tokens, and write the questions."""
        from fledgling.corpora.document import split_held_out
        from fledgling.corpora.embedded import harvest_embedded
        from fledgling.corpora.readers import read_documents
        from fledgling.evals.bpb import make_text_batches
        from fledgling.evals.chat import build_exams
        from fledgling.tasks import SKILLS

        print("reading the text that quality is measured on", file=sys.stderr)
        found = read_documents(text) if text else split_held_out(harvest_embedded())[1]
        batches = make_text_batches((document.text for document in found), tokenizer, context, MAX_TEXT_ROWS)
        talks = "<|assistant_end|>" in tokenizer.special_tokens
        return cls(tokenizer, batches, build_exams(list(SKILLS), questions) if questions and talks else [])

    def measure_quality(self, model: Any, when: str) -> list[Measurement]:
        """Bits per byte, and the accuracy in each task."""
        from fledgling.evals.bpb import measure_bpb
        from fledgling.evals.chat import answer_exams, measure_exam
        from fledgling.infer.engine import Engine

        print(f"measuring {when}", file=sys.stderr)
        found = [measure_bpb(model, self.batches, self.tokenizer.byte_lengths())]
        engine = Engine(model, self.tokenizer)
        for paper, answers in zip(self.exams, answer_exams(engine, self.exams), strict=True):
            found += [one for one in measure_exam(paper.name, answers) if "/" not in one.name]
        return found
