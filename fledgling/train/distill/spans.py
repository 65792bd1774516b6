"""Two tokenizers aligned by the text: the spans of bytes at whose ends both have the end of a token.

A row's documents are read back as bytes and encoded by the teacher's tokenizer. Where both have a boundary at the same
byte a span ends; its likelihood is a product of token probabilities under either model, so the two are comparable
(arXiv 2503.20083). Special tokens are compared by name, one to one, and no span crosses one. Text that the teacher's
tokenizer changes, and what does not fit in its context, is of no span and is not learned from.

B rows, T positions, L positions of a teacher's row.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.distill.teacher import Teacher
from fledgling.train.loss import logprobs_from_hidden

CONTINUATION = range(0x80, 0xC0)  # bytes of UTF-8 within a character


@dataclass
class AlignedRow:
    """A row for the teacher, and the spans as (first, last) places of either's tokens, all inclusive."""

    ids: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    spans: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)  # (model's, teacher's)


def decode_whole_characters(data: bytes) -> tuple[int, str]:
    """Returns the characters of a piece of UTF-8, whose edges may cut one, and the place of the first one's first byte.

    There are none where the bytes are not UTF-8.
    """
    start = next((n for n, byte in enumerate(data[:4]) if byte not in CONTINUATION), len(data))
    try:
        return start, codecs.getincrementaldecoder("utf-8")().decode(data[start:])  # keeps an unfinished one back
    except UnicodeDecodeError:
        return start, ""


def align_text(
    student: Tokenizer, teacher: Tokenizer, ids: list[int]
) -> tuple[list[int], list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Returns the teacher's tokens of a text, and its spans as (first, last) of the model's and the teacher's tokens.

    There is no span where the teacher's tokens are not the bytes of the text.
    """
    pieces = [student.token_bytes[index] for index in ids]
    data = b"".join(pieces)
    start, text = decode_whole_characters(data)
    encoded = teacher.encode(text) if text else []
    teacher_pieces = [teacher.token_bytes[index] for index in encoded]
    joined, whole = b"".join(teacher_pieces), text.encode()
    if not joined.endswith(whole):
        return encoded, []
    added = len(joined) - len(whole)  # the space that SentencePiece puts before a text
    model_ends = {int(place): n for n, place in enumerate(np.cumsum([len(piece) for piece in pieces]))}
    spans, begins = [], (0, 0)
    if start in model_ends:  # the model's tokens before the first whole character are of no span
        begins = (model_ends[start] + 1, 0)
    elif start:
        return encoded, []
    for n, place in enumerate(np.cumsum([len(piece) for piece in teacher_pieces])):
        at = model_ends.get(int(place) - added + start)
        if at is None or at < begins[0]:
            continue
        spans.append(((begins[0], at), (begins[1], n)))
        begins = (at + 1, n + 1)
    return encoded, spans


class SpanAligner:
    """Adds to batches the teacher's likelihoods of spans of text."""

    def __init__(self, teacher: Teacher, tokenizer: Tokenizer) -> None:
        self.teacher, self.tokenizer = teacher, tokenizer
        self.names = {index: name for name, index in tokenizer.special_tokens.items()}

    def add_predictions(self, batch: Batch) -> Batch:
        """Returns a batch with its spans, and the teacher's log-likelihood at the last target of each."""
        aligned = [self._align_row(batch, row) for row in range(len(batch.tokens))]
        logprobs = self._score(aligned)
        span_ids = torch.zeros_like(batch.targets)
        likelihoods = torch.zeros(*batch.targets.shape, 1)
        is_target = (batch.targets != IGNORE_INDEX).numpy()
        for row, one in enumerate(aligned):
            sums = np.concatenate([[0.0, 0.0], np.cumsum(logprobs[row])])  # of the tokens before each place
            number = 0
            for (first, last), (teacher_first, teacher_last) in one.spans:
                # a token is the target of the place before it
                if teacher_last >= len(sums) - 1 or not is_target[row, first - 1 : last].all():
                    continue
                number += 1
                span_ids[row, first - 1 : last] = number
                likelihood = sums[teacher_last + 1] - sums[teacher_first]
                likelihoods[row, last - 1, 0] = min(float(likelihood), -1e-9)
        return replace(batch, span_ids=span_ids, teacher_logprobs=likelihoods)

    def _iterate_segments(self, batch: Batch, row: int) -> Iterator[tuple[int, bool, int, list[int]]]:
        """Yields (place, whether it is special, document, ids) of each special token and stretch of text of a row."""
        tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
        last = [targets[-1]] if targets[-1] != IGNORE_INDEX else []
        ids = [*tokens, *last]
        documents = [0] * len(ids) if batch.document_ids is None else batch.document_ids[row].tolist()
        documents = [*documents, *documents[-1:]][: len(ids)]
        place = 0
        keys = [(document, index in self.names) for document, index in zip(documents, ids, strict=True)]
        for (document, is_special), group in groupby(range(len(ids)), keys.__getitem__):
            part = [ids[at] for at in group]
            for piece in [[index] for index in part] if is_special else [part]:
                yield place, is_special, document, piece
                place += len(piece)

    def _align_row(self, batch: Batch, row: int) -> AlignedRow:
        result, teacher = AlignedRow(), self.teacher.tokenizer
        for place, is_special, document, ids in self._iterate_segments(batch, row):
            base = len(result.ids)
            if is_special:
                name = self.names[ids[0]]
                other = teacher.special_tokens.get(name)
                spans = [] if other is None else [((0, 0), (0, 0))]
                encoded = [self._replace_bos(name, ids[0])] if other is None else [other]
            else:
                encoded, spans = align_text(self.tokenizer, teacher, ids)
            result.ids += encoded
            result.documents += [document] * len(encoded)
            for model_span, teacher_span in spans:
                shifted = tuple(n + place for n in model_span), tuple(n + base for n in teacher_span)
                if shifted[0][0] > 0 and shifted[1][0] > 0:  # the first token of a row is no target
                    result.spans.append(shifted)  # type: ignore[arg-type]
        return result

    def _replace_bos(self, name: str, index: int) -> int:
        """Returns what begins a document for the teacher. Raises UserError for another special token."""
        if index == self.tokenizer.bos and self.teacher.tokenizer.bos_or_none is not None:
            return self.teacher.tokenizer.bos
        raise UserError(
            f'distill.match="text": the teacher\'s tokenizer has no {name}, so its conversations have another layout: '
            "let it write answers (fledgling distill), and learn from these"
        )

    @torch.no_grad()
    def _score(self, rows: list[AlignedRow]) -> list[np.ndarray]:
        """Returns log p of each token of the teacher's rows but the first, as far as its context goes."""
        model = self.teacher.model
        limit = model.config.context + 1
        width = max(2, *(min(limit, len(row.ids)) for row in rows))
        ids, documents = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width).int()
        for n, row in enumerate(rows):
            kept = row.ids[:limit]
            ids[n, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            documents[n, : len(kept)] = torch.tensor(row.documents[:limit]).int()
            documents[n, len(kept) :] = -1
        device = model.head.weight.device
        hidden = model(ids[:, :-1].to(device), documents[:, :-1].to(device))
        logprobs = logprobs_from_hidden(model, hidden, ids[:, 1:].to(device)).double().cpu().numpy()
        return [logprobs[n, : min(limit, len(row.ids)) - 1] for n, row in enumerate(rows)]
