r"""Which characters are letters, numbers and white space: `tokenizers` decides, whatever the other libraries know.

A split regex names classes of Unicode (\p{L}, \p{N}, \s), and every library has the tables of some version of Unicode:
a character of a newer one is a letter for the first and nothing for the second. No table here can say which, since the
libraries are updated. So each character is tried in both libraries when it is first seen (`CharacterComparison`), and a
text with a character that they split differently is left to `tokenizers`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

LAST_CODE = 0x3FFFF  # of planes that have letters, numbers or white space; no version of Unicode has any above
UNKNOWN, EQUAL, DIFFERENT = 0, 1, 2  # how two libraries split a character


def make_probe(character: str) -> str:
    """Returns a text in which the class of a character decides where it is split.

    It occurs between letters, digits, white space and punctuation, after an apostrophe (a long s is the s of 's), and
    twice in a row.
    """
    return f"a{character}a 1{character}1 a'{character}a .{character}.\n{character}\n  {character}{character}x"


class CharacterComparison:
    """Remembers which characters two libraries split alike.

    Args:
        are_equal: returns for each of some probes (`make_probe`) whether both libraries split it alike.
    """

    def __init__(self, are_equal: Callable[[list[str]], list[bool]]) -> None:
        self._are_equal = are_equal
        self._verdicts = np.full(sys.maxunicode + 1, UNKNOWN, dtype=np.uint8)  # by code point
        self._verdicts[:0x80] = EQUAL

    def find_different(self, texts: Sequence[str]) -> list[int]:
        """Returns the positions of texts with a character that the libraries split differently."""
        codes = {
            number: np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            for number, text in enumerate(texts)
            if not text.isascii()
        }
        new = [text_codes[self._verdicts[text_codes] == UNKNOWN] for text_codes in codes.values()]
        if unknown := np.unique(np.concatenate(new)).tolist() if new else []:
            verdicts = self._are_equal([make_probe(chr(code)) for code in unknown])
            self._verdicts[unknown] = np.where(verdicts, EQUAL, DIFFERENT)
        return [number for number, text_codes in codes.items() if self._verdicts[text_codes].max() == DIFFERENT]


@cache
def make_splitter(pattern: str) -> Callable[[str], list[str]]:
    """Returns a function that splits a text by a regex, as `tokenizers` does."""
    splitter = _make_split(pattern, "isolated")
    return lambda text: [piece for piece, _ in splitter.pre_tokenize_str(text)]


@cache
def list_ranges(pattern: str) -> list[tuple[int, int]]:
    """Returns the code points of a class, such as \\p{L}, as ranges (first, last) in order; without surrogates."""
    codes = "".join(chr(code) for code in range(LAST_CODE + 1) if not 0xD800 <= code < 0xE000)
    belongs = _make_split(pattern, "removed")
    pieces = make_splitter(f"{pattern}+")(codes)
    return [(ord(piece[0]), ord(piece[-1])) for piece in pieces if belongs.pre_tokenize_str(piece[0]) == []]


@cache
def is_number(character: str) -> bool:
    r"""Returns whether a character is of the class \p{N}."""
    return _number_remover().pre_tokenize_str(character) == []


@cache
def _number_remover() -> Any:
    return _make_split(r"\p{N}", "removed")


def _make_split(pattern: str, behavior: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior)
