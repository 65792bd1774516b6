"""Defines a document, and which documents are held out for validation.

Every reader of this package yields `Document`s, and everything that follows (tokenizer training, token shards,
evaluation) sees nothing else. A document is held out when the hash of its own text says so (`split_held_out`), so the
held-out part does not change when other documents are added, unless they are few. Lines that it shares with training
text are removed from training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HELD_OUT_FRACTION = 0.02  # of all documents of a source that fits in memory
MIN_DOCUMENTS = 10  # of which one is held out even where the fraction holds out none
MAX_SHARE = 0.2  # of the text, that such a document has
MIN_CHARACTERS = 200  # a document that has lost paragraphs is dropped below this
MIN_SHARED_LINE = 8  # a line of this many characters may not occur in both parts
MIN_SHARED_FILE_LINE = 40  # the same for a user's files, where short lines are names, refrains, fields of a form


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its kind ("topics", "docstrings", "comments", "source", "file", ...) and its origin.

    `origin` is where the text was read, for people: `json.decoder`, `notes.jsonl:17`.
    """

    text: str
    kind: str = "file"
    origin: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode("utf-8"))

    def hash_fraction(self) -> float:
        """Returns a number in [0, 1) that depends on the text alone: its SHA-256, read as a fraction."""
        digest = hashlib.sha256(self.text.encode("utf-8")).digest()
        return int.from_bytes(digest[:6], "big") / 2.0**48


def count_bytes_by_kind(documents: Iterable[Document]) -> dict[str, int]:
    """Returns the bytes of each kind of document."""
    total: dict[str, int] = {}
    for document in documents:
        total[document.kind] = total.get(document.kind, 0) + document.num_bytes
    return total


def split_paragraphs(text: str) -> list[str]:
    """Returns the paragraphs of `text`, which blank lines separate."""
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def normalize_for_comparison(text: str) -> str:
    """Returns `text` without what comparison ignores: case, white space, and the values of numbers."""
    return re.sub(r"\d+", "0", " ".join(text.casefold().split()))


def normalized_sentences(paragraph: str, min_length: int) -> list[str]:
    """Returns the sentences and lines of a paragraph, normalized, that have at least `min_length` characters."""
    parts = map(normalize_for_comparison, re.split(r"\n|(?<=[.!?])\s+(?=[A-Z])", paragraph))
    return [part for part in parts if len(part) >= min_length]


def split_held_out(
    documents: Iterable[Document], fraction: float | None = None
) -> tuple[list[Document], list[Document]]:
    """Returns (training, validation) documents; about `fraction` (HELD_OUT_FRACTION) of all documents is held out.

    A document is held out when its `hash_fraction` is below it. Where that holds out none of at least `MIN_DOCUMENTS`,
    the one of the least hash is, of those that have at most `MAX_SHARE` of the text, if half of the text is left then.
    Every training paragraph that shares a sentence or line of at least `MIN_SHARED_LINE` characters
    (`MIN_SHARED_FILE_LINE` for documents of kind "file") with the validation text is removed, and so is a training
    document of which less than `MIN_CHARACTERS` characters then remain. Short lines such as `Returns:` or `else:` may
    still occur in both; `measure_line_overlap` measures them.
    """
    fraction = HELD_OUT_FRACTION if fraction is None else fraction
    training: list[Document] = []
    validation: list[Document] = []
    for document in documents:
        (validation if document.hash_fraction() < fraction else training).append(document)
    if not validation and len(training) >= MIN_DOCUMENTS:
        most = MAX_SHARE * sum(len(document.text) for document in training)
        small = [index for index, document in enumerate(training) if len(document.text) <= most]
        chosen = min(small, key=lambda index: training[index].hash_fraction())
        others = _remove_shared_lines(training[:chosen] + training[chosen + 1 :], [training[chosen]])
        left = sum(len(document.text) for document in others)
        return (others, [training[chosen]]) if left >= most / MAX_SHARE / 2 else (training, [])
    return _remove_shared_lines(training, validation), validation


def _remove_shared_lines(training: Iterable[Document], validation: Iterable[Document]) -> list[Document]:
    """Returns the training documents without the paragraphs that share a line with the validation documents."""
    held_out_lines = {
        line
        for document in validation
        for part in split_paragraphs(document.text)
        for line in normalized_sentences(part, MIN_SHARED_LINE)
    }
    kept = []
    for document in training:
        min_length = MIN_SHARED_FILE_LINE if document.kind == "file" else MIN_SHARED_LINE
        parts, gap = split_paragraphs(document.text), "\n\n"
        if len(parts) == 1 and document.kind == "file":  # a text without blank lines
            parts, gap = document.text.split("\n"), "\n"
        disjoint = [part for part in parts if held_out_lines.isdisjoint(normalized_sentences(part, min_length))]
        if len(disjoint) == len(parts):
            kept.append(document)
        elif sum(map(len, disjoint)) >= MIN_CHARACTERS:
            kept.append(Document(gap.join(disjoint), document.kind, document.origin))
    return kept


def measure_line_overlap(training: Iterable[Document], validation: Iterable[Document], min_length: int = 1) -> float:
    """Returns the share of validation bytes in lines that also occur, stripped, in training, in [0, 1].

    Lines of fewer than `min_length` characters count as not repeated; white space around lines is not counted.
    """
    held_out_lines = [line.strip() for document in validation for line in document.text.split("\n")]
    seen = {line.strip() for document in training for line in document.text.split("\n")}
    repeated = sum(len(line.encode()) for line in held_out_lines if len(line) >= min_length and line in seen)
    return repeated / max(1, sum(len(line.encode()) for line in held_out_lines))


def summarize_split(documents: list[Document], training: list[Document], validation: list[Document]) -> dict[str, Any]:
    """Returns counts of documents and of their two parts, in documents and bytes.

    line_overlap is the share of validation bytes in lines that the training part has too.
    """
    return {
        "documents": len(documents),
        "bytes": count_bytes_by_kind(documents),
        "training_bytes": sum(document.num_bytes for document in training),
        "validation_bytes": sum(document.num_bytes for document in validation),
        "validation_documents": len(validation),
        "line_overlap": measure_line_overlap(training, validation),
    }
