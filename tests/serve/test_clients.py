"""Real clients against a server: their helpers work, and nothing that an ordinary default sends is rejected.

openai-python is among the tests' packages; `python -m benchmarks clients` tries the others and writes docs/clients.md.
Bodies of programs without a Python package are written from memory; those of other clients were recorded
(request_bodies.py).
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Literal
from urllib.request import Request, urlopen

import pytest

from tests.serve.conftest import serving
from tests.serve.request_bodies import BODIES, RECORDED
from tests.serve.test_app import ASK, call
from tests.waits import WAIT_SECONDS

pytestmark = pytest.mark.skipif(find_spec("openai") is None, reason="openai is not installed")
pydantic = pytest.importorskip("pydantic")


class Size(pydantic.BaseModel):
    """A schema with few answers, which a random model ends."""

    size: Literal["small", "large"]
    fits: bool


class Add(pydantic.BaseModel):
    """Adds two numbers."""

    a: Literal[1, 2]
    b: Literal[3, 4]


@pytest.fixture(scope="module")
def api(roomy_server, client):
    return client(roomy_server[0])


@pytest.mark.parametrize("name", BODIES)
def test_what_a_program_sends_by_default_is_answered(roomy_server, name):
    path, body = BODIES[name]
    status, answer, _ = call(roomy_server[0], path, json.dumps(body | SHORT).encode(), Content_Type="application/json")
    assert status == 200, answer


SHORT = {"max_tokens": 4, "stream": False}


@pytest.mark.parametrize("name", RECORDED)
def test_what_a_client_sent_is_answered(roomy_server, name):
    path, content_type, fields = RECORDED[name]
    body = json.dumps({"model": "tiny", **fields}).encode()
    request = Request(roomy_server[0] + path, body, {"Content-Type": content_type})
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    assert answer.status == 200 and not any("error" in json.loads(line) for line in lines)


def test_the_stream_helper_accumulates_calls_of_the_models_own_tool(adder, client):
    with (
        serving(adder) as (address, _),
        client(address).chat.completions.stream(model="", messages=ASK, temperature=0) as stream,
    ):
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"chunk", "content.delta", "content.done"} <= kinds and message.content == "=!"
    parts = message.model_extra["parts"]
    assert [(part["index"], part["type"], part["text"]) for part in parts] == [
        (0, "python", "2+3"),
        (1, "output", "5"),
        (2, "text", "!"),
    ]


def test_an_accumulated_answer_is_taken_back_as_it_was(adder, client):
    """The prompt of the next turn is the same for a complete answer and for one that the helper accumulated."""
    with serving(adder) as (address, _):
        api = client(address)
        whole = api.chat.completions.create(model="", messages=ASK, temperature=0).choices[0].message
        with api.chat.completions.stream(model="", messages=ASK, temperature=0) as stream:
            accumulated = stream.get_final_completion().choices[0].message
        counts = set()
        for message in (whole, accumulated):
            history = [*ASK, message.model_dump(), {"role": "user", "content": "fox"}]
            counts.add(api.chat.completions.create(model="", messages=history, max_tokens=1).usage.prompt_tokens)
    assert len(counts) == 1


def test_the_parse_helper_returns_the_class(api):
    completion = api.chat.completions.parse(model="", messages=ASK, response_format=Size, seed=1)
    assert isinstance(completion.choices[0].message.parsed, Size)
    with api.chat.completions.stream(model="", messages=ASK, response_format=Size, seed=1) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == completion.choices[0].message.parsed


def test_a_loop_over_tools_runs_to_an_answer(api):
    import openai

    tools = [openai.pydantic_function_tool(Add)]
    messages: list = [*ASK]
    first = api.chat.completions.parse(model="", messages=messages, tools=tools, tool_choice="required", seed=2)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    messages.append(message)  # as the helper returns it, with what it parsed
    for each in message.tool_calls:
        value = each.function.parsed_arguments
        messages.append({"role": "tool", "tool_call_id": each.id, "content": str(value.a + value.b)})
    last = api.chat.completions.create(model="", messages=messages, tools=tools, max_tokens=5)
    assert last.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert last.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens
    with api.chat.completions.stream(
        model="", messages=ASK, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=2
    ) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.done" in kinds and isinstance(streamed[0].function.parsed_arguments, Add)


def test_responses_are_the_chats_answers(api):
    settings = {"model": "", "seed": 4, "max_tokens": 12}
    chat = api.chat.completions.create(messages=[{"role": "system", "content": "Be brief."}, *ASK], **settings)
    response = api.responses.create(
        model="", input="the quick fox", instructions="Be brief.", max_output_tokens=12, extra_body={"seed": 4}
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.usage.output_tokens == chat.usage.completion_tokens
    assert response.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")
    streamed = "".join(
        event.delta
        for event in api.responses.create(
            model="", input=ASK, instructions="Be brief.", max_output_tokens=12, extra_body={"seed": 4}, stream=True
        )
        if event.type == "response.output_text.delta"
    )
    assert streamed == response.output_text


def test_the_responses_helpers_work(api):
    import openai

    parsed = api.responses.parse(model="", input="fox", text_format=Size, extra_body={"seed": 1})
    assert isinstance(parsed.output_parsed, Size)
    tools = [
        {"type": "function", "name": "add", "parameters": openai.pydantic_function_tool(Add)["function"]["parameters"]}
    ]
    with api.responses.stream(
        model="", input="fox", tools=tools, tool_choice="required", parallel_tool_calls=False, extra_body={"seed": 2}
    ) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    called = response.output[0]
    assert called.type == "function_call" and Add.model_validate_json(called.arguments)
    history = [{"role": "user", "content": "fox"}, *response.output]
    history.append({"type": "function_call_output", "call_id": called.call_id, "output": "4"})
    answer = api.responses.create(model="", input=history, tools=tools, max_output_tokens=5)
    assert answer.usage.input_tokens > response.usage.input_tokens + response.usage.output_tokens


def test_embeddings_have_length_one_and_depend_on_their_text_alone(api, roomy_engine):
    one = api.embeddings.create(model="", input="the quick fox").data[0].embedding  # base64, the helper's default
    several = api.embeddings.create(model="", input=["a dog", "the quick fox"], encoding_format="float").data
    assert len(one) == roomy_engine.model.config.width
    assert sum(value * value for value in one) == pytest.approx(1, abs=1e-5)
    assert several[1].embedding == pytest.approx(one, abs=1e-5) and several[0].embedding != pytest.approx(one, abs=1e-2)
    ids = roomy_engine.tokenizer.encode("the quick fox")
    assert api.embeddings.create(model="", input=[ids]).data[0].embedding == pytest.approx(one, abs=1e-5)
    many = api.embeddings.create(model="", input=["a dog"] * 40 + ["the quick fox"], encoding_format="float").data
    assert len(many) == 41 and many[40].embedding == pytest.approx(one, abs=1e-5), "more than the queue holds"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "a", "dimensions": 7}, "dimensions: expected 32"),
        ({"input": ""}, "input 0 has 0 tokens"),
        ({"input": []}, "input: at least 1"),
        ({"input": ["a"] * 2049}, "input: at most 2,048"),
        ({"input": "fox " * 3000}, "whole context"),
        ({"input": [5, 329]}, "329 is not the id"),
        ({}, "input: required"),
    ],
)
def test_what_cannot_be_embedded_is_named(roomy_server, fields, message):
    code, answer, _ = call(
        roomy_server[0], "/v1/embeddings", json.dumps(fields).encode(), Content_Type="application/json"
    )
    assert code == 400 and message in answer["error"]["message"]
    assert answer["error"]["param"] in ("input", "dimensions")


def test_a_prompt_that_is_too_long_is_named_by_the_field_of_its_route(roomy_server):
    for route, field in (("completions", "prompt"), ("responses", "input"), ("embeddings", "input")):
        body = json.dumps({field: "fox " * 3000}).encode()
        code, answer, _ = call(roomy_server[0], f"/v1/{route}", body, Content_Type="application/json")
        assert (code, answer["error"]["param"], answer["error"]["code"]) == (400, field, "context_length_exceeded")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "a", "previous_response_id": "resp_1"}, "responses are not stored"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "an item of type 'item_reference'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input: a part of type input_image; the model",
        ),
        ({"input": [{"role": "robot", "content": "a"}]}, "input.0.role"),
        ({"input": "a", "n": 2}, "n: expected at most 1"),
    ],
)
def test_what_a_response_cannot_have_is_named(roomy_server, fields, message):
    code, answer, _ = call(
        roomy_server[0], "/v1/responses", json.dumps(fields).encode(), Content_Type="application/json"
    )
    assert code == 400 and message in answer["error"]["message"]
