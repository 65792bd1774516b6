"""Keys of JSON that is being written: no object has a key twice, and no key is written by needless escapes.

A grammar cannot count keys. `{"a": 1, "a": 2}` satisfied `minProperties: 2` as text and not as a value, and `"\\u0061"`
is another text than the key `"a"` whose value the schema bounds, but the same key. `KeyGuard` follows the bytes of an
answer and removes the tokens that would complete such a key from a mask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fledgling.text.tokenizer import Tokenizer

OUTSIDE, BEFORE_KEY, STRING, STRING_ESCAPE, KEY, KEY_ESCAPE = range(6)
HEX = 6  # and the next three: the digits of \uXXXX in a key
QUOTE, BACKSLASH = ord('"'), ord("\\")
HEX_DIGITS = (b"0", b"0", b"01", b"0123456789abcdefABCDEF")  # of a control character: all others are written plainly


class JsonPlace(NamedTuple):
    """Where in JSON a text has come: the keys of each open object (None: an array), the state, and a begun key."""

    objects: tuple[frozenset[str] | None, ...] = ()
    state: int = OUTSIDE
    key: bytes = b""


def advance(place: JsonPlace, data: bytes) -> JsonPlace | None:
    """Returns the place after further bytes of valid JSON; None where a key occurs twice or has needless escapes."""
    objects, state, key = place
    for byte in data:
        if state in (OUTSIDE, BEFORE_KEY):
            if byte == QUOTE:
                state, key = (KEY, b"") if state == BEFORE_KEY else (STRING, b"")
            elif byte == ord("{"):
                objects, state = (*objects, frozenset()), BEFORE_KEY
            elif byte == ord("["):
                objects, state = (*objects, None), OUTSIDE
            elif byte in b"]}":
                objects, state = objects[:-1], OUTSIDE
            elif byte == ord(","):
                state = BEFORE_KEY if objects and objects[-1] is not None else OUTSIDE
        elif state == STRING:
            state = OUTSIDE if byte == QUOTE else STRING_ESCAPE if byte == BACKSLASH else STRING
        elif state == STRING_ESCAPE:
            state = STRING
        elif state == KEY and byte == QUOTE:
            name = json.loads(b'"%b"' % key)
            keys = objects[-1] if objects else None
            if keys is None or name in keys:
                return None
            objects, state, key = (*objects[:-1], keys | {name}), OUTSIDE, b""
        else:
            if (state >= HEX and byte not in HEX_DIGITS[state - HEX]) or (state == KEY_ESCAPE and byte == ord("/")):
                return None
            key += bytes([byte])
            if state == KEY_ESCAPE:
                state = HEX if byte == ord("u") else KEY
            elif state >= HEX:
                state = state + 1 if state < HEX + len(HEX_DIGITS) - 1 else KEY
            else:
                state = KEY_ESCAPE if byte == BACKSLASH else KEY
    return JsonPlace(objects, state, key)


class KeyVocabulary:
    """Which tokens may complete a key, by where in JSON they begin."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bytes: Sequence[bytes] = tokenizer.token_bytes
        self.call_start = tokenizer.special_tokens.get("<|python_start|>")
        self.special = frozenset(tokenizer.special_tokens.values())

    @cached_property
    def ids(self) -> dict[bytes, list[int]]:
        """The tokens with the same bytes."""
        found: dict[bytes, list[int]] = {}
        for token, piece in enumerate(self.bytes):
            if token not in self.special:
                found.setdefault(piece, []).append(token)
        return found

    @cached_property
    def longest(self) -> int:
        """The bytes of the longest token."""
        return max(map(len, self.ids), default=0)

    @cached_property
    def commas(self) -> np.ndarray:
        """Tokens with a comma."""
        return self._select(lambda piece: b"," in piece)

    @cached_property
    def within_key(self) -> np.ndarray:
        """Tokens with a quote or a backslash."""
        return self._select(lambda piece: QUOTE in piece or BACKSLASH in piece)

    @cached_property
    def outside(self) -> np.ndarray:
        """Tokens that can begin a key and go on to its end, or to a backslash."""
        return self._select(lambda piece: b'"' in piece and any(byte in piece.split(b'"', 1)[1] for byte in b'"\\'))

    def _select(self, condition: Callable[[bytes], bool]) -> np.ndarray:
        return np.array([i for i, piece in enumerate(self.bytes) if i not in self.special and condition(piece)], int)


def _is_begun(key: bytes, names: frozenset[str]) -> bool:
    return any(name.encode().startswith(key) for name in names)


class KeyGuard:
    """Follows the tokens of one answer, and restricts its masks.

    Args:
        vocabulary: of the tokenizer.
        from_start: the answer is JSON from its first token; otherwise only calls of tools have JSON, after their
            control token. An answer that may be either is JSON from its first token.
    """

    def __init__(self, vocabulary: KeyVocabulary, from_start: bool) -> None:
        self.vocabulary = vocabulary
        self.place: JsonPlace | None = JsonPlace() if from_start else None  # None: no JSON

    def accept(self, token: int) -> None:
        """Advances by a token that was allowed."""
        if token in self.vocabulary.special:
            self.place = JsonPlace() if token == self.vocabulary.call_start else None
        elif self.place is not None and (piece := self.vocabulary.bytes[token]):
            # A call of the model's own tool begins with another character, and so does a number, which has no keys.
            has_keys = self.place != JsonPlace() or piece[:1] in b'{["'
            self.place = advance(self.place, piece) if has_keys else None

    def list_doubtful(self, allowed: np.ndarray) -> list[tuple[int, JsonPlace]]:
        """Returns the allowed tokens after which every name may be taken, with the place that each leads to.

        They begin a further key of an object that has some, or lead to the beginning of a name that is taken.
        """
        if self.place is None or not self.place.objects or not self.place.objects[-1]:
            return []
        place, keys = self.place, self.place.objects[-1]
        tokens = self._list_beginnings(place.key, keys) if place.state == KEY else self.vocabulary.commas.tolist()
        found = []
        for token in tokens:
            after = advance(place, self.vocabulary.bytes[token]) if allowed[token] else None
            if after is None or len(after.objects) != len(place.objects) or after.state not in (BEFORE_KEY, KEY):
                continue
            if after.objects[-1] == keys and (after.state == BEFORE_KEY or _is_begun(after.key, keys)):
                found.append((token, after))
        return found

    def _list_beginnings(self, begun: bytes, names: frozenset[str]) -> list[int]:
        """Returns the tokens that continue the beginning of a name by more of that name."""
        rests = [raw[len(begun) :] for name in names if (raw := name.encode()).startswith(begun)]
        pieces = {rest[:end] for rest in rests for end in range(1, min(len(rest), self.vocabulary.longest) + 1)}
        return [token for piece in pieces for token in self.vocabulary.ids.get(piece, ())]

    def restrict_(self, allowed: np.ndarray) -> None:
        """Removes, in place, the tokens (V,) bool that would complete a key a second time, or escape needlessly."""
        if self.place is None:
            return
        if self.place.state >= KEY_ESCAPE:
            candidates = np.flatnonzero(allowed)
        else:
            candidates = self.vocabulary.within_key if self.place.state == KEY else self.vocabulary.outside
            candidates = candidates[allowed[candidates]]
        for token in candidates.tolist():
            if token not in self.vocabulary.special and advance(self.place, self.vocabulary.bytes[token]) is None:
                allowed[token] = False
