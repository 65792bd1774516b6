"""Anthropic's Messages API: the chat's answers as blocks, whole and as events, with tools in two turns."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import pytest

from tests.serve.test_app import call
from tests.waits import WAIT_SECONDS

TOOL = {
    "name": "pick",
    "description": "Picks.",
    "input_schema": {
        "type": "object",
        "properties": {"size": {"enum": ["s", "l"]}},
        "required": ["size"],
        "additionalProperties": False,
    },
}
ASK = {"role": "user", "content": "the quick fox"}


def post(address: str, path: str = "/v1/messages", **fields) -> tuple[int, dict]:
    body = {"model": "tiny", "max_tokens": 12, "messages": [ASK]} | fields
    return call(address, path, json.dumps(body).encode(), Content_Type="application/json")[:2]


def stream(address: str, **fields) -> list[tuple[str, dict]]:
    """Returns (name, data) of the events of a streamed answer."""
    body = {"model": "tiny", "max_tokens": 12, "messages": [ASK], "stream": True} | fields
    request = Request(f"{address}/v1/messages", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        blocks = answer.read().decode().strip().split("\n\n")
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_an_answer_is_the_chats(roomy_server):
    address = roomy_server[0]
    body = {"messages": [{"role": "system", "content": "Be brief."}, ASK], "max_tokens": 12, "temperature": 0}
    chat = call(address, "/v1/chat/completions", json.dumps(body).encode(), Content_Type="application/json")[1]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = post(address, system=system, temperature=0, thinking={"type": "disabled"})[1]
    assert answer["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    assert answer["stop_reason"] == {"length": "max_tokens", "stop": "end_turn"}[chat["choices"][0]["finish_reason"]]
    usage = answer["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]
    events = stream(address, system=system, temperature=0)
    assert all(name == data["type"] for name, data in events)
    assert [events[0][0], events[-2][0], events[-1][0]] == ["message_start", "message_delta", "message_stop"]
    text = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
    assert text == answer["content"][0]["text"]


def test_a_tool_is_called_in_one_turn_and_its_result_used_in_the_next(roomy_server):
    address = roomy_server[0]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    settings = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 200, "temperature": 0}
    answer = post(address, **settings)[1]
    (block,) = answer["content"]
    assert answer["stop_reason"] == "tool_use" and block["type"] == "tool_use" and block["input"]["size"] in ("s", "l")
    events = stream(address, **settings)
    pieces = [data["delta"]["partial_json"] for name, data in events if name == "content_block_delta"]
    assert json.loads("".join(pieces)) == block["input"]
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "done"}]}
    history = [ASK, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": [result]}]
    before = post(address, "/v1/messages/count_tokens", tools=[TOOL])[1]["input_tokens"]
    after = post(address, "/v1/messages/count_tokens", tools=[TOOL], messages=history)[1]["input_tokens"]
    assert after > before and post(address, messages=history, tools=[TOOL])[0] == 200


def test_a_prompt_beyond_the_context_is_counted(roomy_server):
    address, worker = roomy_server
    counts = []
    for words in (1, 2, 2_000, 4_000):
        messages = [{"role": "user", "content": "the quick fox " * words}]
        status, answer = post(address, "/v1/messages/count_tokens", messages=messages)
        assert status == 200, answer
        counts.append(answer["input_tokens"])
        is_long = counts[-1] >= worker.engine.context
        assert post(address, messages=messages, max_tokens=1)[0] == (400 if is_long else 200)
    assert counts[1] < worker.engine.context < counts[2]
    assert counts[3] - counts[2] == 2_000 * (counts[1] - counts[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "a block of type image; the model reads",
        ),
        ({"tools": [{"type": "computer_20250124", "name": "computer"}]}, "tools.0.input_schema: required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking: not supported"),
        ({"stop": ["a"]}, "stop: not supported; use stop_sequences"),
        ({"guided_choice": ["a", "b"]}, "guided_choice: not supported"),
        ({"frequency_penalty": 1}, "frequency_penalty: not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported"),
        ({"output_format": {"type": "xml"}}, "output_format: expected the type json_schema"),
        ({"tools": [TOOL | {"strict": True, "input_schema": {"not": {}}}]}, "not"),
        ({"tool_choice": {"type": "maybe"}}, "got 'maybe'"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences: at most 64 items, 65 given"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no message of the user"),
    ],
)
def test_what_cannot_be_read_is_named(roomy_server, fields, message):
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        status, answer = post(roomy_server[0], path, **fields)
        assert status == 400 and message in answer["error"]["message"]
        assert answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"


def test_an_output_format_constrains_the_answer(roomy_server):
    form = {"type": "json_schema", "schema": TOOL["input_schema"]}
    for fields in ({"output_format": form}, {"output_config": {"format": form, "effort": "low"}}):
        answer = post(roomy_server[0], max_tokens=200, **fields)[1]
        assert json.loads(answer["content"][0]["text"])["size"] in ("s", "l")
