"""Rows of equal length out of documents of any length.

The one idea: packing is arithmetic on lengths. A plan says which part of which document goes into which row,
before a single token is read; the same plan is made on every rank, and a row can be filled alone, in any
order.

Two ways to pack:

    crop    documents one after another, cut where the row ends and continued in the next. Every row is full.
            Each piece begins with a BOS, so each document token is the target of its row exactly once, and
            every row begins at a boundary. For pretraining.
    whole   conversations uncut, the largest that still fits first. What is left of a row is padding. For
            chat.

Both always make progress: a row takes at least one piece, whatever the lengths. (A packer that waits for room
for a conversation longer than the row waits for ever, and emits padding meanwhile.)

Not here: the order of rows and what is learned from them (`stream.py`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

BEST_FIT_WINDOW = 256  # conversations looked at for the best fit


class TokenReader(Protocol):
    """What `fill` asks of a shard, or of several seen as one."""

    def read_tokens(self, document: int, start: int, length: int, /) -> tuple[np.ndarray, np.ndarray | None]:
        """Return tokens (length,) of part of a document, and their mask (length,) or None."""
        ...


@dataclass(frozen=True)
class PackingPlan:
    """Row i holds the pieces row_start[i] to row_start[i + 1], in that order.

    N rows, P pieces. Where `adds_bos`, each piece costs one position more than its length: the BOS in front.
    """

    row_length: int  #                      tokens in a row
    adds_bos: bool
    row_starts: np.ndarray  #         (N + 1,) int64
    piece_documents: np.ndarray  #    (P,) int64
    piece_starts: np.ndarray  #       (P,) int64, first token of the piece in its document
    piece_lengths: np.ndarray  #      (P,) int64; zero for a BOS alone at the end of a row

    @property
    def num_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def efficiency(self) -> float:
        """Share of row positions that hold a token and not padding, in [0, 1]; 1 for a plan without rows."""
        used = int(self.piece_lengths.sum()) + self.adds_bos * len(self.piece_lengths)
        return used / (self.num_rows * self.row_length) if self.num_rows else 1.0


def pack_cropped(lengths: np.ndarray, row_length: int) -> PackingPlan:
    """Lays documents one after another into rows that are all full, except perhaps the last.

    lengths   (N,) tokens of each document, without BOS; a document of zero tokens takes no place.
    row       tokens in a row, at least 2.

    Position 0 of each row is a BOS, so count the other row - 1 positions only. A document takes as many of
    these as it has tokens, and one more for its BOS unless it begins a row: begin[i + 1] = begin[i] +
    length[i] + (begin[i] mod (row - 1) != 0). That recurrence is the whole packer; the pieces follow from
    where it crosses a row. A BOS that takes the last position of a row is a piece of length zero: as the
    target of the token before, it says that the document ended; the new document begins again, with a BOS, in
    the next row.
    """
    assert row_length >= 2, f"a row of {row_length} tokens holds a BOS and nothing else"
    lengths = np.asarray(lengths, dtype=np.int64)
    documents = np.flatnonzero(lengths)
    free = row_length - 1
    begins = np.fromiter(
        accumulate(lengths[documents].tolist(), lambda at, length: at + length + (at % free != 0), initial=0),
        dtype=np.int64,
        count=len(documents) + 1,
    )
    begin, end = begins[:-1], begins[1:]
    first_token = begin + (begin % free != 0)
    first_row, last_row = begin // free, (end - 1) // free

    pieces = last_row - first_row + 1
    owner = np.repeat(np.arange(len(documents)), pieces)  # (P,)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    piece_row = first_row[owner] + within
    start = np.maximum(first_token[owner], piece_row * free)
    stop = np.minimum(end[owner], (piece_row + 1) * free)
    rows = int(last_row[-1]) + 1 if len(documents) else 0
    return PackingPlan(
        row_length=row_length,
        adds_bos=True,
        row_starts=np.searchsorted(piece_row, np.arange(rows + 1)),
        piece_documents=documents[owner],
        piece_starts=start - first_token[owner],
        piece_lengths=stop - start,
    )


def pack_whole(lengths: np.ndarray, row_length: int, window: int = BEST_FIT_WINDOW) -> PackingPlan:
    """Packs whole conversations: the one that waited longest first, then the largest of the window that fits.

    lengths   (N,) tokens of each conversation, BOS included, at most `row` (see `cut_lengths`); zeros take no
              place.
    window    conversations to choose from; a larger one packs tighter. None waits for more than the rows it
              takes to place those before it, so a conversation never starves.

    O(N log window) comparisons.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert not len(lengths) or lengths.max() <= row_length, "a conversation longer than the row: cut it first"
    rows = list(_best_fit_rows(lengths.tolist(), row_length, window))
    document = np.array([index for one in rows for index in one], dtype=np.int64)
    return PackingPlan(
        row_length=row_length,
        adds_bos=False,
        row_starts=np.cumsum([0] + [len(one) for one in rows]),
        piece_documents=document,
        piece_starts=np.zeros(len(document), dtype=np.int64),
        piece_lengths=lengths[document],
    )


def _best_fit_rows(lengths: list[int], row_length: int, window: int) -> Iterator[list[int]]:
    """The rows of `whole_plan`, each a list of document indices."""
    # The window, sorted: (length, -index) finds the largest that fits, the oldest of equals, by bisection.
    waiting: list[tuple[int, int]] = []
    arriving = ((length, -index) for index, length in enumerate(lengths) if length)
    placed = bytearray(len(lengths))
    oldest = 0
    while True:
        while len(waiting) < window and (entry := next(arriving, None)):
            insort(waiting, entry)
        if not waiting:
            return
        while placed[oldest] or not lengths[oldest]:
            oldest += 1
        at = bisect_left(waiting, (lengths[oldest], -oldest))
        room, one = row_length, []
        while at >= 0:
            length, index = waiting.pop(at)
            placed[-index] = 1
            one.append(-index)
            room -= length
            at = bisect_left(waiting, (room + 1,)) - 1
        yield one


def truncate_lengths(
    tokens: np.ndarray, offsets: np.ndarray, row_length: int, turn_end: int | None
) -> tuple[np.ndarray, int]:
    """Shortens conversations longer than `row` to the last turn that fits.

    tokens, offsets   of a shard; turn_end is the id that closes an assistant's turn. A conversation whose
                      first turn is already too long, or any where turn_end is None, is cut at `row` tokens
                      exactly.

    Returns the new lengths (N,) int64 and how many were cut.
    """
    lengths = np.diff(offsets)
    long = np.flatnonzero(lengths > row_length)
    for index in long:
        head = tokens[offsets[index] : offsets[index] + row_length]
        ends = np.flatnonzero(head == turn_end) if turn_end is not None else ()
        lengths[index] = ends[-1] + 1 if len(ends) else row_length
    return lengths, len(long)


def fill_row(
    plan: PackingPlan, reader: TokenReader, index: int, bos: int, pad: int, use_mask: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Reads row `index` of the plan: tokens (row,) int64, mask (row,) bool, True where a target may be
    learned.

    Padding (`pad`, at the end) is never True. With `masked`, a token is True only where its shard's mask
    allows it (a shard without a mask allows all), and the BOS of a whole conversation never is.
    """
    tokens = np.full(plan.row_length, pad, dtype=np.int64)
    mask = np.zeros(plan.row_length, dtype=np.bool_)
    at = 0
    for piece in range(plan.row_starts[index], plan.row_starts[index + 1]):
        length = int(plan.piece_lengths[piece])
        ids, learn = reader.read_tokens(int(plan.piece_documents[piece]), int(plan.piece_starts[piece]), length)
        if plan.adds_bos:
            tokens[at] = bos
            mask[at] = True
            at += 1
        tokens[at : at + length] = ids
        mask[at : at + length] = learn if use_mask and learn is not None else True
        if use_mask and not plan.adds_bos:
            mask[at] = False
        at += length
    return tokens, mask
