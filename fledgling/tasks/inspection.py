"""What a file or folder of the user's holds, before it is trained on: forms, lengths, what is cut, repeats, overlap.

Rows are read by the same functions as in training. Start with `inspect_data`. Its result is JSON values, which
`fledgling data inspect` prints and `fledgling.report.data_page` lays out.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import UserError, show_name
from fledgling.corpora.document import Document
from fledgling.corpora.ngram_overlap import NGRAM_WORDS, find_overlap
from fledgling.corpora.readers import FEW_FILES, SkippedDocuments, is_text_file, list_source, read_file_part
from fledgling.files import (
    BadRows,
    ColumnMap,
    Row,
    is_row_file,
    list_folder,
    list_row_blocks,
    require_names,
    split_columns,
)
from fledgling.files.columns import CONVERSATION_COLUMNS, DOCUMENT_COLUMNS, JUDGED_COLUMNS, PAIR_COLUMNS
from fledgling.tasks import CHAT_PREFIX, PUBLIC_TASKS
from fledgling.tasks.contamination import read_test_splits
from fledgling.tasks.conversations import CHANGES
from fledgling.tasks.inspected_rows import Entry, Examples, compile_names, render_example
from fledgling.text.conversation import render_conversations
from fledgling.text.form_columns import LABELS, explain_no_form, find_column, rename_columns
from fledgling.text.forms import parse_conversation, recognize_form
from fledgling.text.preferences import holds_pair, parse_judged, parse_pair
from fledgling.text.tokenizer import SPECIAL_TOKENS, Tokenizer

KINDS = {  # what a file holds -> the columns that may be named
    "conversations": CONVERSATION_COLUMNS,
    "pairs": PAIR_COLUMNS,
    "judged answers": JUDGED_COLUMNS,
    "documents": DOCUMENT_COLUMNS,
}
MAX_ROWS = 100_000
SAMPLED_ROWS = 200  # that decide what a file holds
ROWS_PER_BATCH = 1_000
SIMILARITY = 0.8  # of two texts' sets of shingles, from which they are near-duplicates
SHINGLE_WORDS = 3
MAX_LISTED = 5  # duplicates and overlaps that are named


@dataclass
class Repeats:
    """Rows whose text an earlier row has, or nearly has."""

    digests: dict[bytes, str] = field(default_factory=dict)  # of a text -> its place
    exact: int = 0
    near: int | None = None  # None: the library is not installed
    examples: list[tuple[str, str]] = field(default_factory=list)  # (row, the earlier one)
    finder: Any = None

    @classmethod
    def create(cls) -> Repeats:
        """Returns an empty count, of near-duplicates too if `rensa` is installed."""
        if find_spec("rensa") is None:
            return cls()
        import rensa

        finder = rensa.RMinHashDeduplicator(threshold=SIMILARITY, num_perm=128, use_lsh=True)
        return cls(near=0, finder=finder)

    def add(self, text: str, place: str) -> None:
        """Counts one text."""
        words = text.lower().split()
        digest = hashlib.sha256(" ".join(words).encode("utf-8", "replace")).digest()[:12]
        earlier = self.digests.setdefault(digest, place)
        if earlier != place:
            self.exact += 1
            if len(self.examples) < MAX_LISTED:
                self.examples.append((place, earlier))
        elif self.finder is not None and self.near is not None:
            shingles = [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]
            self.near += not self.finder.add_pairs([(place, shingles)])[0]


def inspect_data(
    source: str,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    exams: Sequence[str] = (),
    data_dir: str | Path | None = None,
    max_rows: int = MAX_ROWS,
) -> dict[str, Any]:
    """Returns what a file or folder holds.

    Args:
        source: a path, perhaps as a mixture names it (chat:PATH), which may be followed by the names of its columns
            (`fledgling.files.split_columns`).
        tokenizer: None counts bytes instead of tokens.
        context: the tokens of a row; None: what is cut is not reported.
        exams: public tasks whose test splits are searched for; empty: those that are under the data root.
        max_rows: rows that are read at most.

    Raises:
        UserError: for a path that cannot be read, or that holds nothing.
    """
    name, columns = split_columns(source if Path(source).exists() else source.removeprefix(CHAT_PREFIX))
    path = Path(name)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    bad, changes, skipped, mapped = BadRows(), Counter[str](), SkippedDocuments(), ColumnMap(path, columns)
    words = tokenizer or Tokenizer.train([], 256 + len(SPECIAL_TOKENS), letter_tokens=False)
    files, contents = _list_files(path)
    kind = _find_kind(files, columns)
    require_names(path, columns, KINDS[kind], kind)
    if kind == "documents":
        entries = _read_documents(files, path, columns.get("text"), skipped)
    else:
        entries = _read_rows(files, kind, columns, bad, changes, mapped)
    forms, repeats, examples, count, typed = Counter[str](), Repeats.create(), Examples(), 0, 0
    names = compile_names(words)
    sizes: list[tuple[int, int]] = []  # tokens and learned tokens of each row
    texts: list[Document] = []
    for batch in _iterate_batches(islice(entries, max_rows), ROWS_PER_BATCH):
        for entry in batch:
            forms[entry.form] += 1
            texts.append(Document(entry.plain_text(), "file", entry.place))
            typed += names.search(texts[-1].text) is not None
            repeats.add(texts[-1].text, entry.place)
            examples.add(entry, count)
            count += 1
        sizes += _count_row_tokens(batch, words)
    more, lengths = next(entries, None) is not None, [size for size, _ in sizes]
    if not more:
        mapped.require_all()
    if not count:
        reason = bad.explain() or skipped.explain() or "it is empty"
        raise UserError(f"{path}: nothing to learn from; {reason}")
    return {
        "source": show_name(source, sys.maxsize),
        "kind": kind,
        "contents": contents,
        "rows": count,
        "more_rows": more,
        "forms": dict(forms.most_common()),
        "left_out": {"rows": bad.count or skipped.total, "first": bad.explain() or str(skipped)},
        "changed": {CHANGES[name]: number for name, number in changes.most_common()},
        "typed_controls": typed,
        "unit": "tokens" if tokenizer else "bytes",
        "lengths": _summarize(lengths),
        "learned": int(sum(targets for _, targets in sizes)),
        "total": int(sum(lengths)),
        "cut": _count_cut(lengths, context, kind) if tokenizer and context else None,
        "repeats": {"exact": repeats.exact, "near": repeats.near, "examples": repeats.examples},
        "overlap": _find_exam_overlap(texts, exams, data_dir),
        "examples": [render_example(entry, words) for entry in examples.choose()],
    }


def _list_files(path: Path) -> tuple[list[Path], str]:
    """Returns the files that hold rows or text, and which of a folder are passed over."""
    if path.is_dir():
        folder = list_folder(path, lambda file: is_row_file(file) or is_text_file(file))
        if not folder.files:
            raise UserError(f"{path}: nothing to read in this folder ({folder.describe()})")
        return folder.files, folder.describe()
    return list_source(path).files, ""


def _find_kind(files: Sequence[Path], columns: Mapping[str, str]) -> str:
    """Returns which of `KINDS` most of the first rows are."""
    kinds: Counter[str] = Counter()
    for file in files:
        if not is_row_file(file):
            kinds["documents"] += 1
            continue
        for block in list_row_blocks(file)[:1]:
            for number, (row, _) in enumerate(block.iterate_rows()):
                if number == SAMPLED_ROWS:
                    break
                if not isinstance(row, UserError):
                    kinds[_kind_of(row, columns)] += 1
        if kinds.total() >= SAMPLED_ROWS:
            break
    kind = kinds.most_common(1)[0][0] if kinds else "conversations"
    if kind == "documents" and set(columns) - set(DOCUMENT_COLUMNS):  # a name that no row has is an error of its own
        return next((name for name, names in KINDS.items() if set(columns) <= set(names)), kind)
    return kind


def _kind_of(row: Row, columns: Mapping[str, str]) -> str:
    renamed = rename_columns(row, columns)
    if holds_pair(renamed):
        return "pairs"
    if not recognize_form(row, columns):
        is_other = isinstance(row, Mapping) and "text" not in columns and explain_no_form(row)
        return "conversations" if is_other else "documents"  # of the former the reason is an error of one line
    return "judged answers" if isinstance(renamed, Mapping) and find_column(renamed, LABELS) else "conversations"


def _read_documents(
    files: Sequence[Path], root: Path, column: str | None, skipped: SkippedDocuments
) -> Iterator[Entry]:
    are_few = len(files) < FEW_FILES
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        for document in read_file_part(file, show_name(name, sys.maxsize), column, skipped, are_few=are_few):
            yield Entry(document.origin, "text", text=document.text)


def _read_rows(
    files: Sequence[Path], kind: str, columns: Mapping[str, str], bad: BadRows, changes: Counter[str], mapped: ColumnMap
) -> Iterator[Entry]:
    for file in files:
        for block in list_row_blocks(file) if is_row_file(file) else ():
            for row, place in block.iterate_rows():
                mapped.add(row)
                try:
                    if isinstance(row, UserError):
                        raise row
                    yield Entry(place, *_parse_row(row, place, kind, columns, changes))
                except UserError as error:
                    bad.add(error)


def _parse_row(
    row: Row, place: str, kind: str, columns: Mapping[str, str], changes: Counter[str]
) -> tuple[str, tuple[dict[str, Any], ...]]:
    """Returns the form of a row and its conversations."""
    if kind == "pairs":
        return "pair", parse_pair(row, place, columns)
    if kind == "judged answers":
        judged = parse_judged(row, place, columns)
        return "desirable" if judged[0][1] else "not desirable", tuple(conversation for conversation, _ in judged)
    return recognize_form(row, columns), (parse_conversation(row, place, columns, changes),)


def _iterate_batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _count_row_tokens(entries: Sequence[Entry], tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """Yields the tokens of each row, and those of them that are learned."""
    if entries and not entries[0].conversations:
        for ids in tokenizer.encode_batch([entry.text for entry in entries]):
            yield len(ids) + 1, len(ids) + 1
        return
    rendered = iter(render_conversations(tokenizer, [c for entry in entries for c in entry.conversations]))
    for entry in entries:
        parts = [row for _ in entry.conversations for row in next(rendered)]
        yield sum(len(part.tokens) for part in parts), sum(int(part.mask.sum()) for part in parts)


def _summarize(lengths: Sequence[int]) -> dict[str, int]:
    values = np.array(lengths)
    quantiles = {"shortest": 0, "median": 50, "95 %": 95, "longest": 100}
    return {name: int(np.percentile(values, q)) for name, q in quantiles.items()}


def _count_cut(lengths: Sequence[int], context: int, kind: str) -> dict[str, int]:
    """Returns how many rows are longer than a training row, and their tokens beyond it (documents: none is lost)."""
    beyond = [length - context - 1 for length in lengths if length > context + 1]
    if kind == "documents":
        beyond = []
    return {"context": context, "rows": len(beyond), "tokens": sum(beyond)}


def _find_exam_overlap(
    texts: Sequence[Document], exams: Sequence[str], data_dir: str | Path | None
) -> dict[str, dict[str, Any]]:
    """Returns, by exam, how many items share a run of words with a row; an exam without files has a reason instead."""
    found: dict[str, dict[str, Any]] = {}
    for name in exams or PUBLIC_TASKS:
        try:
            items = read_test_splits([name], data_dir)[name]
        except UserError as error:
            if name in exams:
                raise
            found[name] = {"missing": str(error)}
            continue
        report = find_overlap(items, texts, NGRAM_WORDS)
        matches = [{"row": match.origin, "words": match.words} for _, match in sorted(report.matches.items())]
        found[name] = {"items": len(items), "overlapping": len(matches), "matches": matches[:MAX_LISTED]}
    return found
