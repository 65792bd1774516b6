"""Calls of a request's tools: read whole and in pieces of any size."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.infer.detokenizer import ContentPart
from fledgling.serve.json_body import encode_json
from fledgling.serve.tool_calls import StreamedToolCall, is_tool_call, list_tool_calls
from fledgling.text.turns import write_call

MAX = sys.float_info.max
VALUES = st.recursive(st.text(max_size=5) | st.integers() | st.none(), lambda v: st.lists(v, max_size=3), max_leaves=5)


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.lists(st.integers(1, 9), max_size=30))
@settings(max_examples=25, deadline=None)
def test_pieces_give_what_the_whole_gives(arguments, sizes):
    text = write_call("add", arguments)
    whole = list_tool_calls([ContentPart("python", text)])[0]
    call, names, pieces, start = StreamedToolCall(), [], "", 0
    for size in [*sizes, len(text)]:
        name, piece = call.push(text[start : start + size])
        names, pieces, start = names + [name] * (name is not None), pieces + piece, start + size
    assert names == ["add"] == [whole.name]
    assert json.loads(pieces) == json.loads(whole.arguments) == arguments


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ('{"a": 1e999, "b": [-1e999, 2.5, 1e3]}', {"a": MAX, "b": [-MAX, 2.5, 1e3]}),
        ('{"a": %s, "b": -12345678901234567890123}' % ("9" * 5000), {"a": MAX, "b": -12345678901234567890123}),
        (r'{"a": "\ud800", "b": "\ud83d\ude00"}', {"a": "?", "b": "\U0001f600"}),
        ('{"a": %s' % ("[" * 5000), None),
        ('{"a": 1, "b', None),
        ("[1]", None),
    ],
)  # fmt: skip
def test_arguments_are_an_object_that_every_reader_takes(arguments, value):
    """Each of the first three ended an answer of /v1/messages and /api/chat with a failure of the server."""
    call = StreamedToolCall()
    call.push('{"name": "add", "arguments": ' + arguments + "}")
    parsed = call.parse_arguments()
    assert parsed == value
    assert parsed is None or json.loads(encode_json(parsed)) == value


def test_the_models_own_calls_are_none_of_the_requests():
    assert not is_tool_call(ContentPart("python", "2+3")) and not is_tool_call(ContentPart("text", "{}"))
    assert list_tool_calls([ContentPart("python", "2+3"), ContentPart("output", "5"), ContentPart("python", "{")]) == []
