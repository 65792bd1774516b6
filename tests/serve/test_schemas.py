"""Every field of a request has a bound: what is larger is one clear error that names the field."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from fledgling.serve.embeddings import EmbeddingsRequest
from fledgling.serve.messages_api import MessagesRequest
from fledgling.serve.ollama_api import GenerateRequest, OllamaChatRequest
from fledgling.serve.responses_api import ResponsesRequest
from fledgling.serve.schemas import (
    MAX_MESSAGES,
    MAX_SCHEMA_CHARS,
    BadRequest,
    ChatRequest,
    CompletionRequest,
    parse_body,
)
from tests.serve.test_app import call

BODIES: dict[type, dict[str, Any]] = {
    ChatRequest: {"messages": [{"role": "user", "content": "a"}]},
    CompletionRequest: {"prompt": "a"},
    ResponsesRequest: {"input": "a"},
    EmbeddingsRequest: {"input": "a"},
    MessagesRequest: {"messages": [{"role": "user", "content": "a"}]},
    OllamaChatRequest: {"messages": [{"role": "user", "content": "a"}]},
    GenerateRequest: {"prompt": "a"},
}
LARGE = 20_000
RAW = "RAW"  # marks JSON that Python's encoder would not write
HOSTILE: dict[str, str] = {
    "long text": json.dumps("x" * LARGE),
    "long text beyond ASCII": json.dumps("\U0001f426" * LARGE),
    "many texts": json.dumps(["ab"] * LARGE),
    "many long texts": json.dumps(["a" * 5000] * 5),
    "many numbers": json.dumps([1] * LARGE),
    "many numbers and a text": json.dumps([1] * LARGE + ["a"]),
    "many objects": json.dumps([{}] * LARGE),
    "many keys": json.dumps({str(number): 1 for number in range(LARGE)}),
    "deep arrays": "[" * LARGE + "]" * LARGE,
    "deep objects": '{"a":' * LARGE + "1" + "}" * LARGE,
    "deep below the parser's limit": "[" * 300 + json.dumps("x" * LARGE) + "]" * 300,
    "huge integer": "9" * 4000,
    "integer beyond Python's limit": "9" * LARGE,
    "huge float": "1e400",
    "small float": "-1e400",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "a key twice": '{"a": 1, "a": 2}',
    "half a surrogate pair": '"\\ud800"',
    "half a surrogate pair as a key": '{"\\udfff": 1}',
}


def walk_fields(schema: dict[str, Any], definitions: dict[str, Any], path: tuple = ()) -> list[tuple[tuple, dict]]:
    """Returns (path, schema) of every field, of nested objects too."""
    fields = []
    for branch in [schema, *schema.get("anyOf", ())]:
        if "$ref" in branch:
            branch = definitions[branch["$ref"].rsplit("/", 1)[1]]
        if "items" in branch:
            fields += walk_fields(branch["items"], definitions, (*path, 0))
        for name, child in branch.get("properties", {}).items():
            fields += [((*path, name), child), *walk_fields(child, definitions, (*path, name))]
    return fields


def list_fields() -> list[tuple[type, tuple, dict]]:
    fields = []
    for kind in BODIES:
        schema = kind.model_json_schema()
        fields += [(kind, path, child) for path, child in walk_fields(schema, schema.get("$defs", {}))]
    return fields


FIELDS = list_fields()


def body_with(kind: type, path: tuple, raw: str) -> bytes:
    """Returns a valid body in which the value at `path` is the JSON `raw`."""
    body: dict[str, Any] = json.loads(json.dumps(BODIES[kind]))
    place: Any = body
    for step, following in itertools.pairwise(path):
        if isinstance(step, int):
            place = place[step]
        else:
            place.setdefault(step, [{}] if isinstance(following, int) else {})
            if not isinstance(place[step], list | dict):
                place[step] = [{}] if isinstance(following, int) else {}
            place = place[step]
    place[path[-1]] = RAW
    if path[:1] == ("messages",) and len(path) > 3:
        body["messages"][0]["role"] = "assistant"
        part = body["messages"][0][path[2]][0]
        body["messages"][0][path[2]][0] = {"type": "text", "text": "a"} | part
    return json.dumps(body).replace(f'"{RAW}"', raw).encode()


def is_bounded_by_the_context(schema: dict[str, Any]) -> bool:
    return "x-bounded-by" in json.dumps(schema)


@pytest.mark.parametrize("kind", list(BODIES), ids=lambda kind: kind.__name__)
def test_no_field_accepts_what_is_large(kind):
    """Every field of the schemas, with every hostile value: rejected in one line, or as small as it was declared."""
    accepted = []
    for owner, path, schema in FIELDS:
        if owner is not kind:
            continue
        for name, raw in HOSTILE.items():
            try:
                parse_body(kind, body_with(kind, path, raw))
            except BadRequest as error:
                assert error.status in (400, 413)
                assert len(error.message) <= 400 and "\n" not in error.message, (path, name, error.message)
                error.message.encode()  # can be sent
                continue
            if len(raw) > MAX_SCHEMA_CHARS + 2 and not is_bounded_by_the_context(schema):
                accepted.append((path, name))
    assert not accepted


def test_the_walk_reaches_every_field():
    paths = {path for _, path, _ in FIELDS}
    assert {("messages", 0, "content", 0, "text"), ("messages", 0, "parts", 0, "type"), ("prompt",)} <= paths
    assert {
        ("stream_options", "include_usage"),
        ("messages", 0, "tool_calls", 0, "function", "arguments"),
        ("logit_bias",),
    } <= paths
    assert {name for kind in BODIES for name in kind.model_fields} <= {path[0] for path in paths}


@pytest.mark.parametrize("kind", list(BODIES), ids=lambda kind: kind.__name__)
def test_every_list_and_object_stops_at_its_first_error(kind):
    """A list of 20,000 wrong items is not 20,000 errors, each with a copy of its place."""
    from pydantic import ValidationError

    for owner, path, _ in FIELDS:
        if owner is kind:
            for name in ("many objects", "many numbers and a text", "many texts"):
                try:
                    kind.model_validate_json(body_with(kind, path, HOSTILE[name]))
                except ValidationError as error:
                    assert error.error_count() <= 16, (path, name)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({"1": 5, "01": 5, "001": 5}, "write 1"),
        ({"0001": 5}, "write 1"),
        ({"00": 5}, "write 0"),
        ({"+1": 5}, "'+1'"),
        ({" 1": 5}, "' 1'"),
        ({"-0": 5}, "'-0'"),
        ({"1.0": 5}, "'1.0'"),
        ({"1_0": 5}, "'1_0'"),
        ({"\u0661": 5}, "token ids from 0 to 329"),
        ({"330": 5}, "token ids from 0 to 329"),
        ({"9" * 300: 5}, "token ids from 0 to 329"),
    ],
)
def test_a_token_has_one_name_in_logit_bias(bias, message):
    request = parse_body(CompletionRequest, json.dumps({"prompt": "a", "logit_bias": bias}).encode())
    with pytest.raises(BadRequest) as error:
        request.parse_logit_bias(330)
    assert error.value.param == "logit_bias" and message in error.value.message and len(error.value.message) < 200


def test_a_schema_that_is_nested_too_deeply_is_an_error(roomy_server):
    for depth in (400, 900, 980):
        deep = '{"items":' * depth + "{}" + "}" * depth
        fields = (
            f'"guided_json": {deep}',
            f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}]',
        )
        for field in fields:
            body = f'{{"messages": [{{"role": "user", "content": "a"}}], "max_tokens": 2, {field}}}'
            status = call(roomy_server[0], "/v1/chat/completions", body.encode(), Content_Type="application/json")[0]
            assert status in (200, 400), (depth, field[:20])


def test_the_canonical_keys_of_logit_bias_are_accepted():
    request = parse_body(CompletionRequest, b'{"prompt": "a", "logit_bias": {"0": 1, "10": -2.5, "329": 100}}')
    assert request.parse_logit_bias(330) == ((0, 1.0), (10, -2.5), (329, 100.0))


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a", "n": 1, "n": 16}',
        b'{"prompt": "a", "logit_bias": {"1": 5, "1": 6}}',
        b'{"prompt": "a", "user": {"a": 1, "a": 1}}',
    ],
)
def test_a_key_that_occurs_twice_is_rejected(body):
    with pytest.raises(BadRequest, match="twice in one object"):
        parse_body(CompletionRequest, body)


def test_arguments_of_a_call_may_be_an_object_as_in_histories_of_ollama():
    call = {"function": {"name": "add", "arguments": {"a": 2, "b": "é"}}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    body = parse_body(ChatRequest, json.dumps({"messages": messages}).encode())
    assert body.messages[1].tool_calls[0].function.arguments == '{"a": 2, "b": "é"}'
    with pytest.raises(BadRequest, match="arguments: expected text, got 5"):
        call["function"]["arguments"] = 5
        parse_body(ChatRequest, json.dumps({"messages": messages}).encode())


def test_unknown_fields_are_counted_before_they_are_reported():
    body = json.dumps({"prompt": "a"} | {f"x{number}": 1 for number in range(LARGE)}).encode()
    with pytest.raises(BadRequest, match=r"20,001 keys; expected at most 1,024"):
        parse_body(CompletionRequest, body)


def test_what_ordinary_clients_send_is_accepted():
    messages = [{"role": "user", "content": [{"type": "text", "text": "x" * 5000}]}] * MAX_MESSAGES
    parse_body(ChatRequest, json.dumps({"messages": messages, "metadata": {"a": "b"}, "user": "u" * 500}).encode())
    parse_body(CompletionRequest, json.dumps({"prompt": list(range(5000)), "stop": ["\n\n"] * 4}).encode())
    parse_body(CompletionRequest, '{"prompt": "\\ud83d\\udc26 \u00e9", "max_tokens": 4294967295}'.encode())
