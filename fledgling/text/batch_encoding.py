"""Encodes many texts on all cores: with gigatoken, or with `tokenizers` where the two could differ.

gigatoken replaces the split regex by hand-written scanners and caches every piece, which makes it 10 to 50 times
faster. Its ids are those of `tokenizers`: a tokenizer.json with a part that it does not know, or reads differently, is
left to `tokenizers` as a whole (`_check_ids`), and so is a text with a character that the two split differently: they
have the tables of different versions of Unicode. gigatoken splits digits singly and in threes, but not in pairs:
for pairs, a mark is put between them, and its id is removed again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import threading
from collections.abc import Callable
from typing import Any

from fledgling.text.bpe import DIGIT_MARK, byte_alphabet, mark_digit_pairs, split_pattern
from fledgling.text.unicode_classes import CharacterComparison

EncodeBatch = Callable[[list[str]], list[list[int]]]

# gigatoken caches every piece without limit: 14 MB for 4.5 MB of new words. A new encoder after this many characters
# bounds the cache, and costs less than a second of warm-up for each 200 MB.
MAX_CACHED_CHARACTERS = 200_000_000
CHECKED_TOKENS = 1000  # of the vocabulary, in the text that both libraries must encode alike
CHECKED_TEXTS = ("", " a", "A  b\n\n c\t\r\n'd we'LL 'S 1234567 1 22 x12. --(end)!  ", "\n", "x" * 40)


def make_batch_encoder(plain: str, single: Any) -> tuple[str, EncodeBatch]:
    """Returns the name of the library that encodes batches, and a function from texts to ids.

    Args:
        plain: a tokenizer.json without special tokens.
        single: the same as a `tokenizers.Tokenizer`.
    """
    if importlib.util.find_spec("gigatoken") is not None:
        with contextlib.suppress(RuntimeError):  # no scanner for the split, or other ids
            return "gigatoken", _GigatokenEncoder(plain, single)
    return "tokenizers", lambda texts: _encode_with_tokenizers(single, texts)


def _encode_with_tokenizers(single: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in single.encode_batch_fast(texts, add_special_tokens=False)]


class _TextScanner:
    """gigatoken with digit pairs and a bounded cache. One caller at a time: the library allows no more."""

    def __init__(self, plain: str, single: Any) -> None:
        """Raises RuntimeError if gigatoken has no scanner for the split."""
        from gigatoken import Tokenizer as Library

        in_pairs, in_threes = json.dumps(split_pattern(2)), json.dumps(split_pattern(3))
        self._has_pairs = in_pairs in plain
        self._mark: int = single.token_to_id("Ā") if self._has_pairs else -1  # byte 0 in the byte alphabet
        self._make_encoder = lambda: Library.from_json(plain.replace(in_pairs, in_threes))
        self._encoder = self._make_encoder()
        self._characters = 0

    def can_encode(self, text: str) -> bool:
        """Returns whether the text is without the mark that separates pairs."""
        return not self._has_pairs or DIGIT_MARK not in text

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts, each of which it can encode."""
        if not self._has_pairs:
            return self._encode(texts)
        rows = self._encode([mark_digit_pairs(text) for text in texts])
        return [[index for index in row if index != self._mark] for row in rows]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._characters > MAX_CACHED_CHARACTERS:
            self._encoder, self._characters = self._make_encoder(), 0
        self._characters += sum(map(len, texts))
        return self._encoder.encode_batch_list(texts)


class _GigatokenEncoder:
    """Encodes with gigatoken what it splits as `tokenizers` does, and the rest with `tokenizers`. Thread-safe."""

    def __init__(self, plain: str, single: Any) -> None:
        """Raises RuntimeError if gigatoken has no scanner for the split, or gives other ids."""
        self._single, self._scanner, self._lock = single, _TextScanner(plain, single), threading.Lock()
        self._comparison = CharacterComparison(_make_split_comparison(plain))
        # the tables of composed characters have versions too; ASCII has none
        self._normalizes = json.loads(plain).get("normalizer") is not None
        _check_ids(self._scanner, single)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        with self._lock:
            left = {number for number, text in enumerate(texts) if not self._can_encode(text)}
            left.update(self._comparison.find_different(texts))
            if not left:
                return self._scanner.encode(texts)
            rows = iter(self._scanner.encode([text for number, text in enumerate(texts) if number not in left]))
            others = iter(_encode_with_tokenizers(self._single, [texts[number] for number in sorted(left)]))
            return [next(others if number in left else rows) for number in range(len(texts))]

    def _can_encode(self, text: str) -> bool:
        return self._scanner.can_encode(text) and (text.isascii() or not self._normalizes)


def _check_ids(scanner: _TextScanner, single: Any) -> None:
    """Raises RuntimeError unless both libraries give the same ids for texts with many tokens of the vocabulary."""
    ids = range(0, single.get_vocab_size(), max(1, single.get_vocab_size() // CHECKED_TOKENS))
    pieces = [single.decode([index], skip_special_tokens=False) for index in ids]
    texts = [*CHECKED_TEXTS, *(joint.join(pieces) for joint in ("", " "))]
    texts = [text.encode("ascii", "ignore").decode().replace(DIGIT_MARK, "") for text in texts]
    if scanner.encode(texts) != _encode_with_tokenizers(single, texts):
        raise RuntimeError("gigatoken gives other ids than tokenizers")


def _make_split_comparison(plain: str) -> Callable[[list[str]], list[bool]]:
    """Returns a function that compares, for each text, whether both libraries split it alike.

    It encodes them with a vocabulary in which the ids show where a text was split: bytes next to the end of a character
    merge unless a split separates them.
    """
    from tokenizers import Tokenizer as Library

    alphabet, document = byte_alphabet(), json.loads(plain)
    high, adjacent = alphabet[0x80:], [alphabet[ord(character)] for character in "a1 '.\n"]
    merges = [pair for one in adjacent for byte in high for pair in ((one, byte), (byte, one))]
    merges += [(last, first) for last in alphabet[0x80:0xC0] for first in alphabet[0xC2:0xF5]]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *map("".join, merges)])}
    document["model"] = {"type": "BPE", "vocab": vocabulary, "merges": [list(merge) for merge in merges]}
    probed = json.dumps(document)
    single = Library.from_str(probed)
    scanner = _TextScanner(probed, single)

    def are_equal(probes: list[str]) -> list[bool]:
        pairs = zip(scanner.encode(probes), _encode_with_tokenizers(single, probes), strict=True)
        return [row == other for row, other in pairs]

    return are_equal
