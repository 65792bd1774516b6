"""Values and messages between processes that do not trust each other.

A value crosses as JSON and is rebuilt on the other side from the exact built-in types, so no class, no `__eq__` and no
`__hash__` of the sender comes along; pickle and marshal are not used. A message is its length (4 bytes, big-endian) and
its JSON; one that is too long is rejected before it is read.

Imports only the standard library, because it runs inside the jail's own Python.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

MAX_MESSAGE_BYTES = 16 * 2**20
MAX_DEPTH = 100  # nesting of a value
MAX_ITERATOR_ITEMS = 10**6
_LARGE_INTEGER = 2**63


class UnsupportedValue(Exception):
    """A value that is not made of built-in types alone, or is nested too deeply. Its text names the type."""


class ChannelError(Exception):
    """The other side has closed the channel, or sent something that is not a message."""


def encode_value(value: Any, depth: int = 0) -> Any:
    """Encodes a value as JSON data: None, bool, int, float, complex, str, bytes, list, tuple, dict, set or range.

    An iterator crosses as an iterator over its first MAX_ITERATOR_ITEMS items. An instance of a subclass (Counter,
    namedtuple, IntEnum) crosses as the built-in type that it extends. Raises UnsupportedValue for anything else.
    """
    if depth > MAX_DEPTH:
        raise UnsupportedValue("nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int(value)
        return value if -_LARGE_INTEGER < value < _LARGE_INTEGER else {"i": hex(value)}  # hex has no limit of digits
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
        items = dict.items(value)
        return {"d": [[encode_value(key, depth + 1), encode_value(item, depth + 1)] for key, item in items]}
    if isinstance(value, range):
        return {"r": [encode_value(value.start), encode_value(value.stop), encode_value(value.step)]}
    if isinstance(value, Iterator):  # a generator runs to its end, or to the limit
        return {"n": [encode_value(item, depth + 1) for item in islice(value, MAX_ITERATOR_ITEMS)]}
    for tag, kind in (("t", tuple), ("s", set), ("f", frozenset)):
        if isinstance(value, kind):
            return {tag: [encode_value(item, depth + 1) for item in value]}
    raise UnsupportedValue(type(value).__name__)


def decode_value(encoded: Any) -> Any:
    """Rebuilds a value of exact built-in types. Raises ChannelError on data that `encode_value` never returns."""
    if isinstance(encoded, list):
        return [decode_value(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    try:
        ((tag, content),) = encoded.items()
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
        kind: Any = {"t": tuple, "s": set, "f": frozenset}[tag]
        return kind([decode_value(item) for item in content])
    except (ValueError, TypeError, KeyError) as error:
        raise ChannelError("not a value") from error


def send_message(descriptor: int, message: Any) -> None:
    """Writes one message. Raises ChannelError when nothing reads it."""
    body = json.dumps(message).encode()
    data = memoryview(len(body).to_bytes(4, "big") + body)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        raise ChannelError(str(error)) from error


def receive_message(descriptor: int) -> Any:
    """Waits for one message. Raises ChannelError when the other side closed or sent something else."""
    length = int.from_bytes(_read_exactly(descriptor, 4), "big")
    if length > MAX_MESSAGE_BYTES:
        raise ChannelError("too long")
    try:
        return json.loads(_read_exactly(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise ChannelError("not a message") from error


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
