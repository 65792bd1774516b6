"""GGUF files of a run in llama.cpp: perplexity of held-out text by type, with importance, and greedy tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledgling.config import UserError
from fledgling.corpora.document import Document, split_held_out
from fledgling.corpora.embedded import harvest_embedded
from fledgling.export.gguf import write_gguf
from fledgling.export.gguf_types import FILE_TYPES, needs_ggml
from fledgling.export.importance import measure_importance
from fledgling.export.llama_cpp import LlamaCpp
from fledgling.export.parity import GREEDY_TOKENS, compare_logits
from fledgling.infer.runner import load_model
from fledgling.text.tokenizer import Tokenizer, bos_prefix

IMPORTANCE_ROWS = 64


def measure_gguf(run: Path, rows: int = 32) -> dict[str, Any]:
    """Returns our perplexity, and of each type: bytes, perplexity in llama.cpp, greedy tokens that agree."""
    model, tokenizer, _ = load_model(run)
    training, held_out = split_held_out(harvest_embedded())
    exam = _encode(held_out, tokenizer, model.config.context, rows, whole=True)
    importance = measure_importance(model, _encode(training, tokenizer, model.config.context, IMPORTANCE_ROWS))

    def own_logits(tokens: list[int]) -> Tensor:
        return model.compute_logits(model(torch.tensor([tokens])))[0].float()

    found: dict[str, Any] = {"perplexity": _perplexity(own_logits, exam), "rows": len(exam), "types": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for kind in FILE_TYPES:
            for weights in (None, importance) if needs_ggml(kind, True) else (None,):
                write_gguf(path, model.config, model.state_dict(), tokenizer, kind, "model", weights)
                with LlamaCpp(path) as other:
                    size = model.config.vocab_size

                    def logits(tokens: list[int], other: LlamaCpp = other, size: int = size) -> Tensor:
                        return other.compute_logits(tokens, size)

                    parity = compare_logits(model, logits, kind, tokenizer.bos_or_none)
                    entry = {"type": kind, "importance": weights is not None, "bytes": path.stat().st_size}
                    found["types"].append({**entry, "perplexity": _perplexity(logits, exam), **vars(parity)})
    return found


def _encode(
    documents: Sequence[Document], tokenizer: Tokenizer, context: int, count: int, whole: bool = False
) -> list[list[int]]:
    """Returns rows of at most `context` tokens, one of each document; whole: only rows of exactly `context` tokens."""
    rows: list[list[int]] = []
    for document in sorted(documents, key=Document.hash_fraction):
        row = (bos_prefix(tokenizer) + tokenizer.encode(document.text))[:context]
        rows += [row] if not whole or len(row) == context else []
        if len(rows) == count:
            break
    if not rows:
        raise UserError("no document is long enough to be read")
    return rows


@torch.inference_mode()
def _perplexity(logits_of: Callable[[list[int]], Tensor], rows: Sequence[list[int]]) -> float:
    total = count = 0.0
    for row in rows:
        logprobs = logits_of(row)[:-1].log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])
        total, count = total - float(logprobs.sum()), count + len(row) - 1
    return exp(total / count)


def format_gguf(values: dict[str, Any]) -> str:
    """Returns the measurement as a table."""
    base = values["perplexity"]
    lines = [f"perplexity here {base:.3f}, over {values['rows']} rows of held-out text"]
    lines.append(
        f"{'type':<8}{'importance':<12}{'bytes':>13}{'perplexity':>12}{'change':>10}   greedy of {GREEDY_TOKENS}"
    )
    for row in values["types"]:
        change = 100 * (row["perplexity"] / base - 1)
        agreed = f"{row['greedy_matches']} of {row['greedy_tokens']}"
        given = "embedded" if row["importance"] else ""
        lines.append(
            f"{row['type']:<8}{given:<12}{row['bytes']:>13,}{row['perplexity']:>12.3f}{change:>+9.3f} %   {agreed}"
        )
    return "\n".join(lines)
