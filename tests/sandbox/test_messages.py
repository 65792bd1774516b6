"""Values arrive unchanged, and only data of built-in types arrives, whatever was sent."""

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


def send_through_pipe(value):
    """Returns what arrives of `value` at the other end of a pipe."""
    reader, writer = os.pipe()
    try:
        send_message(writer, encode_value(value))
        return decode_value(receive_message(reader))
    finally:
        os.close(reader)
        os.close(writer)


def equal_with_types(a, b) -> bool:
    """Returns whether two values are equal and have equal types at every depth."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, list | tuple):
        return all(map(equal_with_types, a, b))
    return not isinstance(a, dict) or all(equal_with_types(value, b[key]) for key, value in a.items())


@given(values)
def test_a_value_arrives_unchanged(value):
    assert equal_with_types(send_through_pipe(value), value)


def test_large_and_special_numbers_arrive():
    assert send_through_pipe(7**9000) == 7**9000 and send_through_pipe(-(2**64)) == -(2**64)
    assert send_through_pipe(float("inf")) == float("inf") and send_through_pipe(float("nan")) != send_through_pipe(
        float("nan")
    )


class Color(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value, arrives",
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (Color.RED, 1),
        (type("Text", (str,), {"__eq__": lambda *_: True})("no"), "no"),
        (type("List", (list,), {"__eq__": lambda *_: True})([1]), [1]),
    ],
)
def test_a_subclass_arrives_as_the_built_in_type_it_extends(value, arrives):
    assert equal_with_types(send_through_pipe(value), arrives)


def test_an_iterator_arrives_as_an_iterator():
    arrived = send_through_pipe(number * number for number in range(4))
    assert arrived != [0, 1, 4, 9] and list(arrived) == [0, 1, 4, 9]


def make_self_containing_list() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [object(), len, lambda: 1, type, [object()], {1: print}, make_self_containing_list()])
def test_other_values_are_rejected(value):
    with pytest.raises(UnsupportedValue):
        encode_value(value)


@pytest.mark.parametrize(
    "encoded",
    [{}, {"a": 1, "b": 2}, {"x": 1}, {"i": "z"}, {"s": [[1]]}, {"d": [[[], 1]]}, {"b": "0"}, {"r": [1, 2, 0]}],
)
def test_data_that_encode_value_never_returns_is_rejected(encoded):
    with pytest.raises(ChannelError):
        decode_value(encoded)


@pytest.mark.parametrize(
    "sent", [b"", b"\0\0", b"\0\0\0\x05{{{{{", b"\0\0\0\x09[", (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")]
)
def test_bytes_that_are_no_message_are_rejected(sent):
    reader, writer = os.pipe()
    os.write(writer, sent)
    os.close(writer)
    with pytest.raises(ChannelError):
        receive_message(reader)
    os.close(reader)
