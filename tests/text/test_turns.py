"""The rule that joins or drops messages: each of its points, and that its result is what the layout takes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.text.conversation import check_conversation
from fledgling.text.turns import normalize_turns, write_call


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def normalize(*pairs):
    return [(m["role"], m["content"]) for m in normalize_turns(turns(*pairs))[0]]


@pytest.mark.parametrize(
    ("given_turns", "expected"),
    [
        ([("user", "a"), ("user", "b")], [("user", "a\n\nb")]),
        (
            [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
            [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")],
        ),
        ([("assistant", "Hello!"), ("user", "a")], [("user", "a")]),
        ([("user", "a"), ("assistant", ""), ("user", "b")], [("user", "a\n\nb")]),
        ([("user", "a"), ("assistant", None), ("user", " \n"), ("user", "b")], [("user", "a\n\nb")]),
        ([("system", "s"), ("developer", "t"), ("user", "a")], [("system", "s\n\nt"), ("user", "a")]),
        (
            [("user", "a"), ("assistant", "b"), ("system", "s"), ("user", "c")],
            [("user", "a"), ("assistant", "b"), ("user", "s\n\nc")],
        ),
        ([("system", "s")], [("user", "s")]),
        ([("system", "s"), ("assistant", "b")], [("user", "s"), ("assistant", "b")]),
        ([("system", "s"), ("assistant", "b"), ("user", "c")], [("system", "s"), ("user", "c")]),
        ([("user", "a"), ("assistant", "The answer is")], [("user", "a"), ("assistant", "The answer is")]),
        ([("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], [("user", "ab")]),
        ([("user", "a"), ("tool", "5"), ("user", "b")], [("user", "a\n\nb")]),
    ],
)
def test_turns_are_normalized_by_each_point_of_the_rule(given_turns, expected):
    assert normalize(*given_turns) == expected


def test_every_change_is_reported():
    messages = turns(("assistant", "x"), ("user", "a"), ("user", ""), ("system", "s"), ("tool", "5"))
    assert sorted(normalize_turns(messages)[1]) == ["assistant first", "empty", "joined", "result", "system"]
    assert normalize_turns(turns(("system", "s"), ("user", "a"), ("assistant", "b")))[1] == []


def call(name, call_id=None, **arguments):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def test_results_follow_the_calls_in_the_calls_order():
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call("f", "1", x=1), call("g", "2"), call("h", "3")]},
        {"role": "tool", "tool_call_id": "3", "content": "third"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "first"}]},
        {"role": "tool", "tool_call_id": "9", "content": "of no call"},
        {"role": "assistant", "content": "Done."},
    ]
    parts = normalize_turns(messages)[0][1]["content"]
    assert [(part["type"], part["text"]) for part in parts] == [
        ("text", "Wait."),
        ("python", '{"name": "f", "arguments": {"x": 1}}'),
        ("python", '{"name": "g", "arguments": {}}'),
        ("python", '{"name": "h", "arguments": {}}'),
        ("output", "first"),
        ("output", ""),
        ("output", "third"),
        ("text", "Done."),
    ]


def test_tools_are_described_in_the_system_message():
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": True}}]
    system, _ = normalize_turns(turns(("system", "Be brief."), ("user", "q")), tools)[0]
    head, line = system["content"].rsplit("\n", 1)
    assert head.startswith("Be brief.\n\nTools") and json.loads(line) == {
        "name": "add",
        "parameters": {"type": "object"},
    }


@pytest.mark.parametrize("arguments", ['{"a": 2}', '{"a":2.50,  "b":[]}', "{}", "not JSON", '"text"', ""])
def test_the_arguments_of_a_call_stay_letter_by_letter_where_they_are_json(arguments):
    text = write_call("add", arguments)
    call = json.loads(text)
    assert list(call) == ["name", "arguments"] and call["name"] == "add"
    if arguments.startswith(("{", '"')):
        assert text.endswith(f'"arguments": {arguments}}}') and call["arguments"] == json.loads(arguments)
    else:
        assert call["arguments"] == arguments


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "no message of the user"),
        (turns(("assistant", "a")), "no message of the user"),
        (turns(("user", ""), ("system", None)), "no message of the user"),
        (turns(("robot", "a")), "message 1 has the role 'robot'"),
        (turns(("user", 7)), "content of type int"),
        (turns(("user", [{"type": "image_url"}])), "part of type 'image_url'; expected text"),
        (turns(("system", [{"type": "python", "text": "1"}])), "part of type 'python'; expected text"),
        ([{"role": "assistant", "tool_calls": [{}]}], "tool call without a name"),
        ([{"role": "assistant", "tool_calls": [call("f") | {"function": {"name": "f", "arguments": 3}}]}], "no JSON"),
        (["text"], "role None"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_one_line(messages, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        normalize_turns(messages)
    assert "\n" not in str(caught.value)


CONTENT = st.sampled_from([None, "", " ", "a", [], [{"type": "text", "text": "b"}]])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": CONTENT},
    optional={
        "tool_calls": st.lists(st.sampled_from([call("f", "1", x=1), call("g", "2")]), max_size=2),
        "tool_call_id": st.sampled_from(["1", "2", None]),
    },
)


@given(st.lists(MESSAGE, max_size=8))
@settings(max_examples=150, deadline=None)
def test_the_layout_takes_every_result_and_the_rule_changes_it_no_further(messages):
    try:
        result, _ = normalize_turns(messages)
    except UserError as error:
        assert "no message of the user" in str(error)
        return
    check_conversation({"messages": result})
    assert normalize_turns(result) == (result, [])


TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.sampled_from(["a", "b ", " "])}
)


@given(st.lists(st.one_of(TURN, MESSAGE), max_size=4))
@settings(max_examples=150, deadline=None)
def test_messages_that_need_no_change_are_read_as_their_parts_are(messages):
    def normalize_or_explain(given_messages):
        try:
            return normalize_turns(given_messages)
        except UserError as error:
            return str(error)

    in_parts = [
        {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}
        for message in messages
        for content in [message["content"]]
    ]
    assert normalize_or_explain(messages) == normalize_or_explain(in_parts)


def test_turns_that_need_no_change_are_copied_and_lose_neither_tools_nor_weights():
    given_turns = turns(("user", "a"), ("assistant", "b"))
    result, changes = normalize_turns(given_turns)
    assert result == given_turns and not changes
    result[0]["content"] = "c"
    assert given_turns[0]["content"] == "a"
    described = normalize_turns(given_turns, [{"name": "add"}])[0]
    assert described[0]["role"] == "system" and "add" in described[0]["content"]
    given_turns[1]["weight"] = 0
    assert normalize_turns(given_turns)[0][1]["content"] == [{"type": "text", "text": "b", "weight": 0}]
    given_turns[1]["weight"] = 2
    with pytest.raises(UserError, match="weight 2"):
        normalize_turns(given_turns)


def test_a_message_of_weight_zero_joined_to_a_learned_one_stays_not_learned():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "assistant", "content": "c"},
    ]
    joined, _ = normalize_turns(messages)
    assert joined[1]["content"] == [{"type": "text", "text": "b", "weight": 0}, {"type": "text", "text": "\n\nc"}]
    assert normalize_turns(joined)[0] == joined
    for weight in ("1", 0.5, None, 2):
        with pytest.raises(UserError, match="the weight"):
            normalize_turns([messages[0], {**messages[1], "weight": weight}])
