"""Calls of a request's tools: read whole and in pieces of any size."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.infer.detokenizer import ContentPart
from fledgling.serve.tool_calls import StreamedToolCall, is_tool_call, list_tool_calls
from fledgling.text.turns import write_call

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


def test_the_models_own_calls_are_none_of_the_requests():
    assert not is_tool_call(ContentPart("python", "2+3")) and not is_tool_call(ContentPart("text", "{}"))
    assert list_tool_calls([ContentPart("python", "2+3"), ContentPart("output", "5"), ContentPart("python", "{")]) == []
