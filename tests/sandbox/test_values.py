"""Values cross as they are, and what arrives is data whoever sent it."""

from __future__ import annotations

import enum
import os
from collections import Counter, namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.sandbox.messages import (
    MAX_MESSAGE_BYTES,
    ChannelError,
    UnsupportedValue,
    decode_value,
    encode_value,
    receive_message,
    send_message,
)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=6)
values = st.recursive(
    hashable | st.complex_numbers(allow_nan=False) | st.builds(range, st.integers(-9, 9), st.integers(-9, 9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=4) | st.sets(hashable),
    max_leaves=12,
)


def crossed(value):
    """What arrives of `value` at the other end of a pipe."""
    reader, writer = os.pipe()
    try:
        send_message(writer, encode_value(value))
        return decode_value(receive_message(reader))
    finally:
        os.close(reader)
        os.close(writer)


def same(a, b) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, list | tuple):
        return all(map(same, a, b))
    return not isinstance(a, dict) or all(same(value, b[key]) for key, value in a.items())


@given(values)
def test_a_value_arrives_as_it_is(value):
    assert same(crossed(value), value)


def test_big_and_odd_numbers_arrive():
    assert crossed(7**9000) == 7**9000 and crossed(-(2**64)) == -(2**64)
    assert crossed(float("inf")) == float("inf") and crossed(float("nan")) != crossed(float("nan"))


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value, arrives",
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (Colour.RED, 1),
        (type("Text", (str,), {"__eq__": lambda *_: True})("no"), "no"),
        (type("List", (list,), {"__eq__": lambda *_: True})([1]), [1]),
    ],
)
def test_a_subclass_arrives_as_what_it_extends(value, arrives):
    assert same(crossed(value), arrives)


def test_an_iterator_arrives_as_an_iterator():
    found = crossed(number * number for number in range(4))
    assert found != [0, 1, 4, 9] and list(found) == [0, 1, 4, 9]


def looping() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [object(), len, lambda: 1, type, [object()], {1: print}, looping()])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(UnsupportedValue):
        encode_value(value)


@pytest.mark.parametrize(
    "packed", [{}, {"a": 1, "b": 2}, {"x": 1}, {"i": "z"}, {"s": [[1]]}, {"d": [[[], 1]]}, {"b": "0"}, {"r": [1, 2, 0]}]
)
def test_what_pack_never_makes_is_no_value(packed):
    with pytest.raises(ChannelError):
        decode_value(packed)


@pytest.mark.parametrize(
    "sent", [b"", b"\0\0", b"\0\0\0\x05{{{{{", b"\0\0\0\x09[", (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")]
)
def test_what_is_no_message_is_refused(sent):
    reader, writer = os.pipe()
    os.write(writer, sent)
    os.close(writer)
    with pytest.raises(ChannelError):
        receive_message(reader)
    os.close(reader)
