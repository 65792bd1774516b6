"""Plain values and whole messages between processes that do not trust each other.

The one idea: what arrives is data and nothing else. A value crosses as JSON and is built anew on the other side
from the exact built-in types, so no class, no `__eq__` and no `__hash__` of the sender comes along. No pickle, no
marshal. A message is its length (4 bytes) and its JSON; one that is too long is refused before it is read.

Nothing is imported but the standard library, because this runs inside the jail's own Python.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

MAX_MESSAGE_BYTES = 16 * 2**20  # bytes of a message
MAX_DEPTH = 100  # nesting of a value
MAX_ITERATOR_ITEMS = 10**6  # items of an iterator
_BIG = 2**63


class UnsupportedValue(Exception):
    """A value that is not made of built-in types alone, or is nested too deeply: the name of the culprit's type."""


class ChannelError(Exception):
    """The other side has closed, or sends what is no message."""


def encode_value(value: Any, depth: int = 0) -> Any:
    """Return `value` as what JSON can say: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, range.

    An iterator crosses as an iterator over its first `MOST` items. An instance
    of a subclass (Counter, namedtuple, IntEnum) crosses as the built-in type it extends.
    """
    if depth > MAX_DEPTH:
        raise UnsupportedValue("nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int(value)
        return value if -_BIG < value < _BIG else {"i": hex(value)}  # hex has no limit of digits
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "a": bytes(value).hex()}
    if isinstance(value, list):
        return [encode_value(item, depth + 1) for item in list(value)]
    if isinstance(value, dict):
        return {"d": [[encode_value(key, depth + 1), encode_value(item, depth + 1)] for key, item in dict.items(value)]}
    if isinstance(value, range):
        return {"r": [encode_value(value.start), encode_value(value.stop), encode_value(value.step)]}
    if isinstance(value, Iterator):  # a generator is run to its end, within reason
        return {"n": [encode_value(item, depth + 1) for item in islice(value, MAX_ITERATOR_ITEMS)]}
    for tag, kind in (("t", tuple), ("s", set), ("f", frozenset)):
        if isinstance(value, kind):
            return {tag: [encode_value(item, depth + 1) for item in value]}
    raise UnsupportedValue(type(value).__name__)


def decode_value(packed: Any) -> Any:
    """Return the value that `pack` was given, of exact built-in types; raises `Gone` on what `pack` never makes."""
    if isinstance(packed, list):
        return [decode_value(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    try:
        ((tag, content),) = packed.items()
        if tag == "i":
            return int(content, 16)
        if tag == "c":
            return complex(*content)
        if tag in ("b", "a"):
            return bytes.fromhex(content) if tag == "b" else bytearray.fromhex(content)
        if tag == "r":
            return range(*decode_value(content))
        if tag == "n":
            return iter(decode_value(content))
        if tag == "d":
            return {decode_value(key): decode_value(item) for key, item in content}
        return {"t": tuple, "s": set, "f": frozenset}[tag]([decode_value(item) for item in content])
    except (ValueError, TypeError, KeyError) as error:
        raise ChannelError("no value") from error


def send_message(descriptor: int, message: Any) -> None:
    """Write one message; raises `Gone` when nobody reads it."""
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(4, "big") + body)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        raise ChannelError(str(error)) from error


def receive_message(descriptor: int) -> Any:
    """Read one message, waiting for it; raises `Gone` when the other side closed or sends no message."""
    length = int.from_bytes(_read_exactly(descriptor, 4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise ChannelError("too long")
    try:
        return json.loads(_read_exactly(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise ChannelError("no message") from error


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = os.read(descriptor, min(count, 2**16))
        except OSError as error:
            raise ChannelError(str(error)) from error
        if not part:
            raise ChannelError("closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
