"""Packs documents of any length into rows of equal length.

A plan says which part of which document goes into which row. It is computed from lengths alone, before a token is
read, so that every rank makes the same plan and a row can be filled alone, in any order. Two ways to pack:

    crop    documents one after another, cut at the end of a row and continued in the next. Every row is full. Each
            piece begins with a BOS, so each token of a document is a target exactly once. For pretraining.
    whole   complete conversations, best fit first; the rest of a row is padding. For chat.

Both always make progress: a row takes at least one piece, whatever the lengths. (A packer that waits for room for a
conversation longer than the row waits without end, and emits only padding.) `stream.py` orders the rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

BEST_FIT_WINDOW = 256  # conversations among which the best fit is chosen


class TokenReader(Protocol):
    """Reads tokens of documents: a shard, or several shards as one."""

    def read_tokens(self, document: int, start: int, length: int, /) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns tokens (length,) of a part of a document, and their mask (length,) or None."""
        ...


@dataclass(frozen=True)
class PackingPlan:
    """Which pieces of documents go into which row: row i has the pieces row_starts[i] to row_starts[i + 1] - 1.

    N rows, P pieces. With `adds_bos`, a piece takes one position more than its length, for the BOS before it.
    """

    row_length: int
    adds_bos: bool
    row_starts: np.ndarray  #         (N + 1,) int64
    piece_documents: np.ndarray  #    (P,) int64
    piece_starts: np.ndarray  #       (P,) int64, first token of the piece in its document
    piece_lengths: np.ndarray  #      (P,) int64; zero for a BOS alone at the end of a row

    @property
    def num_rows(self) -> int:
        """N, the number of rows."""
        return len(self.row_starts) - 1

    @property
    def efficiency(self) -> float:
        """Share of row positions that have a token and no padding, in [0, 1]; 1 for a plan without rows."""
        used = int(self.piece_lengths.sum()) + self.adds_bos * len(self.piece_lengths)
        return used / (self.num_rows * self.row_length) if self.num_rows else 1.0


def pack_cropped(lengths: np.ndarray, row_length: int) -> PackingPlan:
    """Packs documents one after another into rows that are all full, except perhaps the last.

    Position 0 of each row is a BOS, so only the other row_length - 1 positions are counted. A document takes as many
    of these as it has tokens, and one more for its BOS unless it begins a row:

        begin[i + 1] = begin[i] + length[i] + (begin[i] mod (row_length - 1) != 0)

    This recurrence is the whole packer; the pieces follow from where it crosses a row. A BOS at the last position of a
    row is a piece of length zero: as a target, it marks the end of the document before it. The new document begins
    with another BOS in the next row.

    Args:
        lengths: (documents,) tokens of each document, without BOS; a document without tokens takes no position.
        row_length: tokens in a row, at least 2.
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


def pack_best_fit(lengths: np.ndarray, row_length: int, window: int = BEST_FIT_WINDOW) -> PackingPlan:
    """Packs complete conversations: each row takes the oldest of the window, then the largest that still fits.

    Every row takes the oldest, so no conversation is postponed without end. O(conversations log window) comparisons.

    Args:
        lengths: (conversations,) tokens of each, with BOS, at most `row_length` (see `truncate_lengths`); those
            without tokens take no position.
        window: number of conversations to choose from; a larger window leaves less padding.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert not len(lengths) or lengths.max() <= row_length, "a conversation is longer than the row: truncate it first"
    rows = list(_best_fit_rows(lengths.tolist(), row_length, window))
    document = np.array([index for row in rows for index in row], dtype=np.int64)
    return PackingPlan(
        row_length=row_length,
        adds_bos=False,
        row_starts=np.cumsum([0] + [len(row) for row in rows]),
        piece_documents=document,
        piece_starts=np.zeros(len(document), dtype=np.int64),
        piece_lengths=lengths[document],
    )


def pack_between(
    pack: Callable[[np.ndarray, int], PackingPlan], lengths: np.ndarray, breaks: Sequence[int], row_length: int
) -> PackingPlan:
    """Packs documents so that no row has some of before and some of after a break; without breaks as `pack` does.

    Args:
        pack: `pack_cropped` or `pack_best_fit`.
        breaks: numbers of documents, ascending; each begins a row.
    """
    if not breaks:
        return pack(lengths, row_length)
    edges = [0, *breaks, len(lengths)]
    plans = [pack(lengths[first:stop], row_length) for first, stop in pairwise(edges)]
    pieces = np.cumsum([0, *(len(plan.piece_documents) for plan in plans)])
    starts = [plan.row_starts[:-1] + before for plan, before in zip(plans, pieces, strict=False)]
    documents = [plan.piece_documents + first for plan, first in zip(plans, edges, strict=False)]
    return PackingPlan(
        row_length=row_length,
        adds_bos=plans[0].adds_bos,
        row_starts=np.concatenate([*starts, pieces[-1:]]),
        piece_documents=np.concatenate(documents),
        piece_starts=np.concatenate([plan.piece_starts for plan in plans]),
        piece_lengths=np.concatenate([plan.piece_lengths for plan in plans]),
    )


def _best_fit_rows(lengths: list[int], row_length: int, window: int) -> Iterator[list[int]]:
    """Yields the rows of `pack_best_fit`, each a list of indices of conversations."""
    # The window is sorted by (length, -index): bisection finds the largest that fits, and of equals the oldest.
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
        position = bisect_left(waiting, (lengths[oldest], -oldest))
        free, row = row_length, []
        while position >= 0:
            length, index = waiting.pop(position)
            placed[-index] = 1
            row.append(-index)
            free -= length
            position = bisect_left(waiting, (free + 1,)) - 1
        yield row


def truncate_lengths(
    tokens: np.ndarray, offsets: np.ndarray, row_length: int, turn_end: int | None
) -> tuple[np.ndarray, int]:
    """Truncates conversations longer than a row after the last turn that fits.

    Args:
        tokens, offsets: of a shard.
        turn_end: id that ends an assistant's turn. Without one among the first `row_length` tokens, or if None, the
            conversation is truncated to exactly `row_length` tokens.

    Returns:
        The new lengths (N,) int64, and the number of truncated conversations.
    """
    lengths = np.diff(offsets)
    long = np.flatnonzero(lengths > row_length)
    for index in long:
        head = tokens[offsets[index] : offsets[index] + row_length]
        ends = np.flatnonzero(head == turn_end) if turn_end is not None else head[:0]
        lengths[index] = ends[-1] + 1 if len(ends) else row_length
    return lengths, len(long)


def count_without_targets(mask: np.ndarray | None, offsets: np.ndarray, lengths: np.ndarray) -> int:
    """Returns how many truncated conversations have no target left: their prompt alone fills the row.

    Args:
        mask, offsets: of a shard; a shard without a mask has targets everywhere.
        lengths: (N,) after `truncate_lengths`.
    """
    if mask is None:
        return 0
    truncated = np.flatnonzero(lengths < np.diff(offsets))
    return sum(not mask[offsets[index] + 1 : offsets[index] + lengths[index]].any() for index in truncated)


def fill_row(
    plan: PackingPlan, reader: TokenReader, index: int, bos: int, pad: int, use_mask: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns row `index` of a plan: tokens (row_length,) int64, and mask (row_length,) bool.

    The mask is True where a token is a target of the loss. Padding (`pad`, at the end) never is. With `use_mask`, a
    token is a target only where the mask of its shard is True (without a mask, everywhere), and the BOS of a complete
    conversation never is.

    Args:
        plan: which pieces of which documents a row has.
        reader: gives the tokens and the mask of a document.
        index: of the row.
        bos: the token before each document.
        pad: the token after the last document of a row.
        use_mask: whether targets are only where a shard's mask is True.
    """
    tokens = np.full(plan.row_length, pad, dtype=np.int64)
    mask = np.zeros(plan.row_length, dtype=np.bool_)
    position = 0
    for piece in range(plan.row_starts[index], plan.row_starts[index + 1]):
        length = int(plan.piece_lengths[piece])
        ids, piece_mask = reader.read_tokens(int(plan.piece_documents[piece]), int(plan.piece_starts[piece]), length)
        if plan.adds_bos:
            tokens[position] = bos
            mask[position] = True
            position += 1
        tokens[position : position + length] = ids
        mask[position : position + length] = piece_mask if use_mask and piece_mask is not None else True
        if use_mask and not plan.adds_bos:
            mask[position] = False
        position += length
    return tokens, mask
