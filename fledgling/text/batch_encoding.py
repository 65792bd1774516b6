"""Many texts at once, on all cores: gigatoken behind two guards, or `tokenizers` where it cannot serve.

The one idea: gigatoken replaces the split regex by hand-written scanners and remembers every piece it met,
which makes it 10 to 50 times faster with the same ids. It knows digits one by one and in threes, not in
pairs; pairs are made for it by a mark between them, which is taken out again from the ids.

What it is not: another tokenizer. A test holds its ids to those of `tokenizers` for any text.
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

# gigatoken remembers every piece it met and forgets none: 14 MB for 4.5 MB of words never seen before. A
# fresh copy after so many characters bounds that, and costs under a second of warming up for each 200 MB.
MAX_CACHED_CHARACTERS = 200_000_000


def make_batch_encoder(plain: str, single: Any) -> tuple[str, EncodeBatch]:
    """Choose who encodes batches: (name of the library, function from texts to ids).

    plain: a tokenizer.json without control tokens; single: the same as a `tokenizers.Tokenizer`.
    """
    if importlib.util.find_spec("gigatoken") is not None:
        with contextlib.suppress(RuntimeError):  # a split it has no scanner for
            return "gigatoken", _GigatokenEncoder(plain, single)
    return "tokenizers", lambda texts: _encode_with_tokenizers(single, texts)


def _encode_with_tokenizers(single: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in single.encode_batch_fast(texts, add_special_tokens=False)]


class _GigatokenEncoder:
    """One caller at a time, because it refuses two; fresh copies bound memory; marks make digit pairs."""

    def __init__(self, plain: str, single: Any) -> None:
        """Raise RuntimeError when gigatoken has no scanner for the split."""
        from gigatoken import Tokenizer as Library

        pairs, threes = json.dumps(split_pattern(2)), json.dumps(split_pattern(3))
        self._pairs = pairs in plain
        self._mark: int = single.token_to_id("Ā") if self._pairs else -1  # byte 0 in the alphabet of bytes
        self._single = single
        self._new = lambda: Library.from_json(plain.replace(pairs, threes))
        self._fast = self._new()
        self._lock = threading.Lock()
        self._characters = 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if not self._pairs:
            return self._encode(texts)
        marked = [mark_digit_pairs(text) for text in texts]
        rows = self._encode(marked)
        for number, (before, after) in enumerate(zip(texts, marked, strict=True)):
            if DIGIT_MARK in before:  # the rare text that has the mark itself
                rows[number] = self._single.encode(before, add_special_tokens=False).ids
            elif len(after) > len(before):
                rows[number] = [index for index in rows[number] if index != self._mark]
        return rows

    def _encode(self, texts: list[str]) -> list[list[int]]:
        with self._lock:
            if self._characters > MAX_CACHED_CHARACTERS:
                self._fast, self._characters = self._new(), 0
            self._characters += sum(map(len, texts))
            return self._fast.encode_batch_list(texts)
