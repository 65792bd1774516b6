"""What a request demands of its answer's form, and tools, through the routes of a server whose model is random."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import pytest

from tests.serve.test_app import ASK, call
from tests.waits import WAIT_SECONDS

pytest.importorskip("llguidance")
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop"}}
SIZE = {
    "type": "object",
    "properties": {"size": {"enum": ["s", "l"]}},
    "required": ["size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def address(roomy_server):
    return roomy_server[0]


def post(address, path="chat/completions", **fields):
    body = json.dumps(({"messages": ASK} if path == "chat/completions" else {}) | fields).encode()
    return call(address, f"/v1/{path}", body, Content_Type="application/json")[:2]


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SIZE}}}, "size"),
        ({"guided_json": SIZE}, "size"),
        ({"guided_json": json.dumps(SIZE)}, "size"),
        ({"structured_outputs": {"json": SIZE}}, "size"),
        ({"guided_choice": ['{"size": 1}', '{"size": 2}']}, "size"),
        ({"guided_regex": r'\{"size": [0-9]\}'}, "size"),
        ({"structured_outputs": {"grammar": r'root ::= "{\"size\": " [0-9] "}"'}}, "size"),
        ({"grammar": r'start: "{\"size\": " /[0-9]/ "}"'}, "size"),
    ],
)
def test_each_field_constrains_chat_and_text(address, fields, check):
    code, answer = post(address, seed=1, n=2, **fields)
    assert code == 200, answer
    assert all(check in json.loads(choice["message"]["content"]) for choice in answer["choices"])
    if "response_format" not in fields:
        answer = post(address, "completions", prompt="fox", max_tokens=60, seed=2, **fields)[1]
        assert check in json.loads(answer["choices"][0]["text"])


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_stop_string_does_not_cut_a_constrained_answer_and_is_counted(address, path):
    prompt = {"prompt": "the"} if path == "completions" else {}
    for stop in ("size", ['"', "}"], ["\n"]):
        code, answer = post(address, path, stop=stop, guided_json=SIZE, max_tokens=60, seed=1, **prompt)
        assert code == 200, answer
        choice = answer["choices"][0]
        assert json.loads(choice.get("text") or choice["message"]["content"])["size"] in ("s", "l")
    assert 'fledgling_ignored_fields_total{field="stop"}' in urlopen(f"{address}/metrics").read().decode()


def test_a_stop_string_ends_prose_next_to_tools(address):
    free = post(address, tools=[ADD], seed=5, max_tokens=30)[1]["choices"][0]["message"]["content"]
    assert free and len(free) > 4
    cut = post(address, tools=[ADD], seed=5, max_tokens=30, stop=free[2:4])[1]["choices"][0]
    assert cut["message"]["content"] == free[: free.index(free[2:4])] and cut["finish_reason"] == "stop"


def test_an_answer_that_is_cut_is_reported_as_cut(address):
    answer = post(address, response_format={"type": "json_object"}, max_tokens=1)[1]["choices"][0]
    assert answer["finish_reason"] == "length" and answer["message"]["content"] == "{"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "json_schema.schema: expected an object",
        ),
        ({"guided_json": {"type": "robot"}}, "guided_json: the constraint of the answer: Invalid type: robot"),
        ({"guided_regex": "(", "guided_json": SIZE}, "guided_regex: an answer has one constraint; guided_json"),
        ({"guided_regex": "("}, "guided_regex: the constraint"),
        ({"guided_regex": "(?=a)b"}, "a pattern with lookahead, lookbehind or a boundary within it, which are not"),
        ({"structured_outputs": {"jsn": SIZE}}, "structured_outputs.jsn: no such field; json?"),
        ({"grammar": "root ::= ("}, "grammar: the constraint"),
        ({"grammar": "a" * 20_000}, "grammar: at most 16,384 characters, 20,000 given"),
        ({"structured_outputs": {"regex": "a" * 20_000}}, "expected text of at most 16,384 characters"),
        ({"tools": [ADD], "grammar": "start: /a/"}, "cannot be combined with tools"),
        ({"tools": [ADD, ADD]}, "tools.1.function.name: 'add' is another tool's name too"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type: expected function, got 'web_search'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name: expected 1 to 64"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            'tools.0.function.parameters: expected the schema of an object, got type "string"',
        ),
        ({"tools": [ADD], "tool_choice": "maybe"}, "got 'maybe'"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": "add"}}, "tool_choice: expected none, auto"),
        (
            {"tools": [ADD], "tool_choice": {"type": "allowed_tools", "allowed_tools": [1]}},
            "tool_choice: expected none",
        ),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools", "tools": ["add"]}}, "tool_choice: expected none"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools", "tools": 5}}, "tool_choice: expected none, auto"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "'sub' is none of the"),
    ],
)
def test_what_cannot_be_demanded_is_named(address, fields, message):
    code, answer = post(address, **fields)
    assert code == 400 and message in answer["error"]["message"], answer


@pytest.mark.parametrize("name", ["grammar", "guided_regex", "guided_grammar", "guided_choice"])
def test_a_constraint_without_a_value_demands_nothing(address, name):
    plain = post(address, seed=1)[1]["choices"][0]["message"]["content"]
    answer = post(address, seed=1, **{name: [] if name == "guided_choice" else ""})
    assert answer[0] == 200 and answer[1]["choices"][0]["message"]["content"] == plain != ""


def test_tools_that_fill_the_context_are_named_with_their_size(address):
    tools = [
        ADD | {"function": ADD["function"] | {"name": f"add{number}", "description": "x" * 900}} for number in "ab"
    ]
    code, answer = post(address, tools=tools)
    assert code == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert "2 tools take about" in answer["error"]["message"] and "offer fewer, or none" in answer["error"]["message"]


def test_a_tool_may_be_chosen_by_its_name_and_a_mode_by_its_type(address):
    for choice in ("add", {"type": "required"}):
        answer = post(address, tools=[ADD], tool_choice=choice, max_tokens=200, seed=1)[1]["choices"][0]
        assert answer["message"]["tool_calls"][0]["function"]["name"] == "add"
    assert post(address, tools=[ADD], tool_choice={"type": "auto"}, seed=1)[0] == 200


def test_required_tools_are_called_with_valid_arguments(address):
    names = set()
    for letter in "as":
        settings = {"logit_bias": {str(ord(letter)): 20}, "max_tokens": 200, "seed": 1}
        choice = post(address, tools=[ADD, STOP], tool_choice="required", **settings)[1]["choices"][0]
        assert choice["finish_reason"] in ("tool_calls", "length")
        calls = choice["message"]["tool_calls"]
        for each in calls[: None if choice["finish_reason"] == "tool_calls" else -1]:
            names.add(each["function"]["name"])
            arguments = json.loads(each["function"]["arguments"])
            assert isinstance(arguments, dict)
            assert each["function"]["name"] == "stop" or arguments in ({"a": 1}, {"a": 2})
    assert names == {"add", "stop"}


def test_one_call_at_a_time_and_a_named_tool(address):
    named = {"type": "function", "function": {"name": "add"}}
    for choice in (named, {"type": "allowed_tools", "mode": "required", "tools": [named]}):
        answer = post(address, tools=[STOP, ADD], tool_choice=choice, parallel_tool_calls=False, seed=3)[1]
        message = answer["choices"][0]["message"]
        assert [each["function"]["name"] for each in message["tool_calls"]] == ["add"] and message["content"] is None
        assert "parts" not in message


def test_a_named_tool_is_called_once(address):
    bias = {str(ord("a")): 20}
    for choice in ({"type": "function", "function": {"name": "add"}}, "add"):
        for seed in range(4):
            settings = {"tools": [STOP, ADD], "tool_choice": choice, "seed": seed, "logit_bias": bias}
            (call,) = post(address, **settings)[1]["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] == "add"


def test_a_stream_gives_the_calls_of_the_whole_answer(address):
    settings = {
        "tools": [ADD, STOP],
        "tool_choice": "required",
        "seed": 1,
        "max_tokens": 150,
        "logit_bias": {"326": 20},
    }
    whole = post(address, **settings)[1]["choices"][0]
    body = json.dumps({"messages": ASK, "stream": True} | settings).encode()
    request = Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: {")]
    calls: list[dict[str, str]] = []
    for choice in (json.loads(line)["choices"][0] for line in lines):
        for delta in choice["delta"].get("tool_calls", ()):
            if "id" in delta:
                calls.append({"name": delta["function"]["name"], "arguments": ""})
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert calls == [each["function"] for each in whole["message"]["tool_calls"]] and len(calls) > 1
    assert choice["finish_reason"] == whole["finish_reason"]


def test_a_free_answer_with_tools_may_call_none_and_stays_valid(address):
    answer = post(address, tools=[ADD], n=8, seed=2, max_tokens=60)[1]
    for choice in answer["choices"]:
        for each in choice["message"].get("tool_calls") or ():
            assert choice["finish_reason"] == "length" or json.loads(each["function"]["arguments"])["a"] in (1, 2)


def test_tools_and_a_format_give_a_call_or_the_format(address):
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SIZE}}
    for seed in range(4):
        message = post(address, tools=[ADD], response_format=schema, seed=seed, max_tokens=300)[1]["choices"][0][
            "message"
        ]
        assert message.get("tool_calls") or "size" in json.loads(message["content"])


def test_a_thought_is_returned_apart_from_the_prose(address):
    settings = {"guided_regex": "<think>ab{2}</think>\n\nc{3}", "n": 2}
    message = post(address, **settings)[1]["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("abb", "ccc") and "parts" not in message
    history = [*ASK, message, {"role": "user", "content": "fox"}]
    with_thought = post(address, messages=history, max_tokens=1)[1]["usage"]["prompt_tokens"]
    message.pop("reasoning_content")
    assert post(address, messages=history, max_tokens=1)[1]["usage"]["prompt_tokens"] == with_thought


@pytest.mark.parametrize(
    "parameters", [{"not": {}}, {"oneOf": [{"type": "string"}, {"minLength": 2}]}, {"uniqueItems": True}]
)
def test_a_tool_that_is_not_strict_may_have_a_schema_that_cannot_be_promised(address, parameters):
    schema = {"type": "object", "properties": {"x": parameters}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    settings = {"tool_choice": "required", "max_tokens": 2}
    assert post(address, tools=[tool], **settings)[0] == 200
    strict = {"type": "function", "function": tool["function"] | {"strict": True}}
    code, answer = post(address, tools=[strict], **settings)
    assert code == 400 and answer["error"]["param"] == "tools", answer


def test_arguments_have_the_parameters_alone(address):
    """A function takes no others, and a random model would add some without end: as clients that name none send it."""
    parameters = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for seed in range(4):
        settings = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed, "temperature": 1.5}
        choice = post(address, tools=[tool], **settings)[1]["choices"][0]
        arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
        assert arguments.keys() == {"a"} and choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"properties": {}, "$defs": {}, "x-a": 1}])
def test_a_tool_that_names_no_parameters_is_called_without(address, parameters):
    tool = {"type": "function", "function": {"name": "f"} | ({} if parameters is None else {"parameters": parameters})}
    for seed in range(2):
        settings = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed, "temperature": 1.5}
        choice = post(address, tools=[tool], **settings)[1]["choices"][0]
        assert choice["message"]["tool_calls"][0]["function"]["arguments"].strip() == "{}", choice


def test_arguments_are_an_object_where_the_parameters_name_no_type(address):
    parameters = {"required": ["a"], "properties": {"a": {"enum": [1, 2]}}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}
    for seed in range(3):
        message = post(address, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=seed)[1]
        arguments = json.loads(message["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
        assert arguments in ({"a": 1}, {"a": 2})
