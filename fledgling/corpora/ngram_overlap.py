"""Finds evaluation items that share a run of words (an n-gram) with training text.

Every n-gram of the items is hashed into a sorted array. Training text is hashed the same way, chunk by chunk, and its
hashes are looked up. A word is a run of letters and digits without case, so that punctuation (curly quotes and dashes
too), markup and line breaks make no difference. Start with `find_overlap`.

The default of 13 words is that of GPT-3 (arXiv 2005.14165, appendix C). Hashes have 64 bits: for a million n-grams
searched in a hundred million, the probability of one false match is 5e-6. Paraphrases, translations and items shorter
than an n-gram are not found.

W words, N n-grams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fledgling.corpora.document import Document

NGRAM_WORDS = 13
CHUNK_BYTES = 4 << 20  # bytes of text hashed together
PROGRESS_BYTES = 16 << 20  # bytes between two calls of `progress`

OverlapProgress = Callable[[int, int], None]  # (documents, bytes)

_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SIEVE_SIZE = 1 << 24  # entries: with a million n-grams, one of sixteen others passes by chance


def _letter_table() -> np.ndarray:
    """Returns (256,) uint64: 0 for a byte between words, else a number that does not depend on case.

    Bytes of characters beyond ASCII count as letters here; `_encode_letters` excludes punctuation among them.
    """
    ordinary = [ord(chr(byte).lower()) if chr(byte).isalnum() else 0 for byte in range(0x80)]
    return np.array([*ordinary, *range(0x80, 0x100)], dtype=np.uint64)


def _encode_letters(data: bytes) -> np.ndarray:
    """Returns a number for each byte of UTF-8 text, (bytes,) uint64, 0 between words.

    Characters with the lead bytes C2 and E2 separate words: U+0080 to U+00BF and U+2000 to U+2FFF are spaces, quotes,
    dashes and signs, with hardly a letter.
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
    """The first n-gram found that an item and a training document share."""

    item: int
    origin: str
    words: str


@dataclass
class OverlapReport:
    """Which items share an n-gram with training text (`matches`, by item), and how much text was read."""

    searchable: frozenset[int]  # items of at least one n-gram; the others are too short to be found
    matches: dict[int, OverlapMatch] = field(default_factory=dict)
    num_documents: int = 0
    num_bytes: int = 0


def find_overlap(
    items: Sequence[str],
    documents: Iterable[Document],
    ngram_words: int = NGRAM_WORDS,
    progress: OverlapProgress | None = None,
) -> OverlapReport:
    """Returns which items share an n-gram of `ngram_words` words with a document, and where the first one is.

    `progress` is called every `PROGRESS_BYTES` with the documents and bytes read so far.
    """
    ngrams, owners, _ = _hash_ngrams(items, ngram_words)
    order = np.argsort(ngrams, kind="stable")
    ngrams, owners = ngrams[order], owners[order]
    sieve = np.zeros(_SIEVE_SIZE, dtype=bool)
    sieve[ngrams % _SIEVE_SIZE] = True
    report = OverlapReport(frozenset(np.unique(owners).tolist()))
    reported_bytes = 0
    for chunk in _chunk_documents(documents):
        hashes, document, joined = _hash_ngrams([document.text for document in chunk], ngram_words)
        report.num_documents += len(chunk)
        report.num_bytes += len(joined.data)
        candidates = np.flatnonzero(sieve[hashes % _SIEVE_SIZE])  # a quarter of the time of a search for all
        for candidate, slot in _find_matches(ngrams, hashes, candidates):
            item = int(owners[slot])
            if item not in report.matches:
                origin = chunk[document[candidate]].origin
                report.matches[item] = OverlapMatch(item, origin, joined.words(candidate))
        if progress and report.num_bytes - reported_bytes >= PROGRESS_BYTES:
            reported_bytes = report.num_bytes
            progress(report.num_documents, report.num_bytes)
    return report


def _find_matches(ngrams: np.ndarray, hashes: np.ndarray, candidates: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (candidate, slot) for each slot of the sorted `ngrams` that equals the hash of a candidate."""
    if not len(candidates):
        return
    first = np.searchsorted(ngrams, hashes[candidates])
    for hit in np.flatnonzero(ngrams[np.minimum(first, len(ngrams) - 1)] == hashes[candidates]):
        candidate, slot = int(candidates[hit]), int(first[hit])
        while slot < len(ngrams) and ngrams[slot] == hashes[candidate]:
            yield candidate, slot
            slot += 1


def _chunk_documents(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _JoinedTexts:
    """Concatenated texts, and the bytes at which each of their n-grams begins and ends."""

    data: bytes
    starts: np.ndarray  # (N,)
    ends: np.ndarray  #   (N,)

    def words(self, ngram: int) -> str:
        """Returns the words of an n-gram, separated by single spaces."""
        return " ".join(self.data[self.starts[ngram] : self.ends[ngram]].decode("utf-8", "replace").split())


def _hash_ngrams(texts: Sequence[str], ngram_words: int) -> tuple[np.ndarray, np.ndarray, _JoinedTexts]:
    """Hashes every n-gram of some texts.

    The hash of a word is a polynomial in its bytes, that of an n-gram a polynomial in its words, both modulo 2^64 and
    mixed by the splitmix64 finalizer, so that order and position matter.

    Returns: hashes (N,) uint64; the index of the text of each (N,); the joined texts.
    """
    encoded = [text.encode("utf-8", "replace") for text in texts]
    data = b" ".join(encoded)
    letters = _encode_letters(data)
    inside = np.concatenate([[False], letters != 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]  # (W,) of each word
    if len(starts) < ngram_words:
        return np.empty(0, np.uint64), np.empty(0, np.int64), _JoinedTexts(data, starts[:0], ends[:0])
    with np.errstate(over="ignore"):
        lengths = ends - starts
        powers = np.cumprod(np.full(int(lengths.max()), _HASH_MULTIPLIER, dtype=np.uint64))
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # in its word
        terms = letters[letters != 0] * powers[position]
        words = _mix_bits(np.add.reduceat(terms, np.cumsum(lengths) - lengths) + lengths.astype(np.uint64))  # (W,)
        count = len(words) - ngram_words + 1
        hashes = np.zeros(count, dtype=np.uint64)
        for place in range(ngram_words):
            hashes = hashes * _HASH_MULTIPLIER + words[place : place + count]
        hashes = _mix_bits(hashes)
    text_ends = np.cumsum([len(text) + 1 for text in encoded])
    owner = np.searchsorted(text_ends, starts, side="right")  # (W,) the text of each word
    in_one_text = owner[:count] == owner[ngram_words - 1 :]
    joined = _JoinedTexts(data, starts[:count][in_one_text], ends[ngram_words - 1 :][in_one_text])
    return hashes[in_one_text], owner[:count][in_one_text], joined


def _mix_bits(hashes: np.ndarray) -> np.ndarray:
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
