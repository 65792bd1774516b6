"""Encodes many texts on all cores: with gigatoken, or with `tokenizers` where gigatoken has no scanner for the split.

gigatoken replaces the split regex by hand-written scanners and caches every piece, which makes it 10 to 50 times
faster; its ids are those of `tokenizers` (tested). It splits digits singly and in threes, but not in pairs: for pairs,
a mark is put between them, and its id is removed again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import threading
from collections.abc import Callable
from typing import Any

from fledgling.text.bpe import DIGIT_MARK, mark_digit_pairs, split_pattern

EncodeBatch = Callable[[list[str]], list[list[int]]]

# gigatoken caches every piece without limit: 14 MB for 4.5 MB of new words. A new encoder after so many characters
# bounds the cache, and costs less than a second of warm-up for each 200 MB.
MAX_CACHED_CHARACTERS = 200_000_000


def make_batch_encoder(plain: str, single: Any) -> tuple[str, EncodeBatch]:
    """Returns the name of the library that encodes batches, and a function from texts to ids.

    Args:
        plain: a tokenizer.json without special tokens.
        single: the same as a `tokenizers.Tokenizer`.
    """
    if importlib.util.find_spec("gigatoken") is not None:
        with contextlib.suppress(RuntimeError):  # no scanner for the split
            return "gigatoken", _GigatokenEncoder(plain, single)
    return "tokenizers", lambda texts: _encode_with_tokenizers(single, texts)


def _encode_with_tokenizers(single: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in single.encode_batch_fast(texts, add_special_tokens=False)]


class _GigatokenEncoder:
    """Encodes with gigatoken: one caller at a time (it allows no more), with a bounded cache, and with digit pairs."""

    def __init__(self, plain: str, single: Any) -> None:
        """Raises RuntimeError if gigatoken has no scanner for the split."""
        from gigatoken import Tokenizer as Library

        in_pairs, in_threes = json.dumps(split_pattern(2)), json.dumps(split_pattern(3))
        self._has_pairs = in_pairs in plain
        self._mark: int = single.token_to_id("Ā") if self._has_pairs else -1  # byte 0 in the byte alphabet
        self._single = single
        self._make_encoder = lambda: Library.from_json(plain.replace(in_pairs, in_threes))
        self._encoder = self._make_encoder()
        self._lock = threading.Lock()
        self._characters = 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if not self._has_pairs:
            return self._encode(texts)
        marked = [mark_digit_pairs(text) for text in texts]
        rows = self._encode(marked)
        for number, (text, marked_text) in enumerate(zip(texts, marked, strict=True)):
            if DIGIT_MARK in text:  # a rare text that has the mark itself
                rows[number] = self._single.encode(text, add_special_tokens=False).ids
            elif len(marked_text) > len(text):
                rows[number] = [index for index in rows[number] if index != self._mark]
        return rows

    def _encode(self, texts: list[str]) -> list[list[int]]:
        with self._lock:
            if self._characters > MAX_CACHED_CHARACTERS:
                self._encoder, self._characters = self._make_encoder(), 0
            self._characters += sum(map(len, texts))
            return self._encoder.encode_batch_list(texts)
