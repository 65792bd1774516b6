"""Overlap: which evaluation items share a long run of words with training text.

The one idea: a run of N words is one number. Every window of N words of the items is hashed into a sorted
array; training text streams past, is hashed the same way, and what it has in common is looked up. Words are
runs of letters and digits without case, so punctuation (curly quotes and dashes too), markup and line breaks hide
nothing.

Thirteen words is the length that GPT-3 used (arXiv 2005.14165, appendix C). Hashes have 64 bits: with a
million windows looked for in a hundred million, the chance of one false match is 5e-6.

What it is not: it does not see a paraphrase, a translation, or an item of fewer than N words.

W words, n = 13 words a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fledgling.corpora.document import Document

NGRAM_WORDS = 13  # of a window
CHUNK_BYTES = 4 << 20  # bytes of text hashed together
PROGRESS_BYTES = 16 << 20  # bytes between two calls of `progress`

OverlapProgress = Callable[[int, int], None]  # (documents, bytes)

_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SIEVE_SIZE = 1 << 24  # entries: one window in sixteen of a million wanted passes by chance


def _letter_table() -> np.ndarray:
    """(256,) uint64: byte -> 0 between words, else a number that case does not change.

    Bytes of characters beyond ASCII are letters here; `_letters` takes out those that are punctuation.
    """
    ordinary = [ord(chr(byte).lower()) if chr(byte).isalnum() else 0 for byte in range(0x80)]
    return np.array([*ordinary, *range(0x80, 0x100)], dtype=np.uint64)


def _letters_of(data: bytes) -> np.ndarray:
    """UTF-8 bytes to numbers (bytes,), 0 between words.

    The lead bytes C2 and E2 begin what stands between words in running text: U+0080 to U+00BF and U+2000 to
    U+2FFF hold spaces, quotes, dashes and signs, and hardly a letter.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    letters = _letter_table()[raw]
    for lead, length in ((0xC2, 2), (0xE2, 3)):
        at = np.flatnonzero(raw == lead)
        for place in range(length):
            letters[np.minimum(at + place, len(raw) - 1)] = 0
    return letters


@dataclass(frozen=True)
class OverlapMatch:
    """A window of words that an item and a training document have in common; the first one found."""

    item: int
    origin: str
    words: str


@dataclass
class OverlapReport:
    """What of some items stands in training text: `matches` by item, and what was read."""

    num_items: int
    num_searchable: int  # items that have a window at all
    matches: dict[int, OverlapMatch] = field(default_factory=dict)
    num_documents: int = 0
    num_bytes: int = 0  # bytes


def find_overlap(
    items: Sequence[str],
    documents: Iterable[Document],
    ngram_words: int = NGRAM_WORDS,
    progress: OverlapProgress | None = None,
) -> OverlapReport:
    """Which items share a window of `words` words with some document, and where it was first seen."""
    windows, owner, _ = _hash_ngrams(items, ngram_words)
    order = np.argsort(windows, kind="stable")
    sorted_windows, owners = windows[order], owner[order]
    sieve = np.zeros(_SIEVE_SIZE, dtype=bool)
    sieve[windows % _SIEVE_SIZE] = True
    found = OverlapReport(len(items), len(np.unique(owner)))
    told = 0
    for chunk in _chunk_documents(documents):
        here, place, joined = _hash_ngrams([document.text for document in chunk], ngram_words)
        found.num_documents += len(chunk)
        found.num_bytes += len(joined.data)
        few = np.flatnonzero(sieve[here % _SIEVE_SIZE])  # a quarter of the time that a search for all would take
        if len(few):
            _record_matches(found, sorted_windows, owners, here, few, [chunk[i].origin for i in place[few]], joined)
        if progress and found.num_bytes - told >= PROGRESS_BYTES:
            told = found.num_bytes
            progress(found.num_documents, found.num_bytes)
    return found


def _record_matches(
    found: OverlapReport,
    windows: np.ndarray,
    owners: np.ndarray,
    here: np.ndarray,
    few: np.ndarray,
    origins: list[str],
    joined: _JoinedTexts,
) -> None:
    """Note the items that own a window among the `few` of `here`; the first document that has one is kept."""
    at = np.searchsorted(windows, here[few])
    for hit in np.flatnonzero(windows[np.minimum(at, len(windows) - 1)] == here[few]):
        slot = at[hit]
        while slot < len(windows) and windows[slot] == here[few[hit]]:
            item = int(owners[slot])
            if item not in found.matches:
                found.matches[item] = OverlapMatch(item, origins[hit], joined.words(int(few[hit])))
            slot += 1


def _chunk_documents(documents: Iterable[Document]) -> Iterator[list[Document]]:
    gathered: list[Document] = []
    size = 0
    for document in documents:
        gathered.append(document)
        size += len(document.text)
        if size >= CHUNK_BYTES:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered


@dataclass(frozen=True)
class _JoinedTexts:
    """Texts laid end to end, and for each window the bytes where it begins and ends."""

    data: bytes
    starts: np.ndarray
    ends: np.ndarray

    def words(self, window: int) -> str:
        return " ".join(self.data[self.starts[window] : self.ends[window]].decode("utf-8", "replace").split())


def _hash_ngrams(texts: Sequence[str], ngram_words: int) -> tuple[np.ndarray, np.ndarray, _JoinedTexts]:
    """Hash every window of some texts: hashes (M,) uint64, the text each lies in (M,), and the texts themselves.

    A word's hash is a polynomial in its bytes, a window's one in its words, both modulo 2^64 and mixed by the
    splitmix64 finaliser, so that equal words at other places, or in another order, give other numbers.
    """
    encoded = [text.encode("utf-8", "replace") for text in texts]
    data = b" ".join(encoded)
    letters = _letters_of(data)
    inside = np.concatenate([[False], letters != 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]  # (W,) of each word
    if len(starts) < ngram_words:
        return np.empty(0, np.uint64), np.empty(0, np.int64), _JoinedTexts(data, starts[:0], ends[:0])
    with np.errstate(over="ignore"):
        lengths = ends - starts
        powers = _powers(int(lengths.max()))
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        terms = letters[letters != 0] * powers[within]
        hashed = _mix(np.add.reduceat(terms, np.cumsum(lengths) - lengths) + lengths.astype(np.uint64))  # (W,)
        count = len(hashed) - ngram_words + 1
        windows = np.zeros(count, dtype=np.uint64)
        for place in range(ngram_words):
            windows = windows * _HASH_MULTIPLIER + hashed[place : place + count]
        windows = _mix(windows)
    text_ends = np.cumsum([len(one) + 1 for one in encoded])
    text = np.searchsorted(text_ends, starts, side="right")  # (W,) the text a word lies in
    whole = text[:count] == text[ngram_words - 1 :]
    return (
        windows[whole],
        text[:count][whole],
        _JoinedTexts(data, starts[:count][whole], ends[ngram_words - 1 :][whole]),
    )


def _powers(count: int) -> np.ndarray:
    return np.cumprod(np.full(count, _HASH_MULTIPLIER, dtype=np.uint64))


def _mix(word: np.ndarray) -> np.ndarray:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
