"""An error names the field, what was expected and what was given; of a union the branch that came farthest."""

from __future__ import annotations

import json

import pytest

from fledgling.serve.schemas import BadRequest, ChatRequest, CompletionRequest, parse_body

ASK = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ["v"] * 65}, "stop: at most 64 items, 65 given"),
        ({"stop": ["v" * 250] * 17}, "stop: at most 4,096 characters in all, 4,250 given"),
        ({"stop": ["a", 5]}, "stop.1: expected text, got 5"),
        ({"stop": 5}, "stop: expected text or a list, got 5"),
        ({"stop": ["a" * 999]}, "stop.0: at most 256 characters, 999 given"),
        ({"temperature": "0.5"}, "temperature: expected a number, got text '0.5'"),
        ({"temperature": 2.5}, "temperature: expected at most 2, got 2.5"),
        ({"presence_penalty": -3}, "presence_penalty: expected -2 or more, got -3"),
        ({"top_p": -1}, "top_p: expected 0 or more, got -1"),
        ({"n": 16384}, "n: expected at most 16, got 16384"),
        ({"n": 1.5}, "n: expected an integer, got 1.5"),
        ({"n": 10**200}, "n: expected at most 16, got an integer of 665 bits"),
        ({"stream": "yes"}, "stream: expected true or false, got text 'yes'"),
        ({"logit_bias": {"5": "a"}}, "logit_bias.5: expected a number, got text 'a'"),
        ({"messages": []}, "messages: at least 1 items, 0 given"),
        ({"messages": "a"}, "messages: expected a list, got text 'a'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: expected text or a list, got 5"),
        ({"messages": [{"content": "a"}]}, "messages.0.role: required"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type: required"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url; the model reads text only"),
        ({"tools": [5]}, "tools.0: expected an object, got 5"),
        ({"modalities": ["audio"]}, "modalities.0: expected 'text', got text 'audio'"),
    ],
)
def test_a_chat_requests_error_is_one_line(fields, message):
    with pytest.raises(BadRequest) as error:
        body = parse_body(ChatRequest, json.dumps(ASK | fields).encode())
        [each.to_conversation_message() for each in body.messages]
    assert message in error.value.message and "\n" not in error.value.message


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "prompt: expected text or a list, got an object"),
        ([], "prompt: at least 1 items, 0 given"),
        ([[5], ["a"]], "prompt.1.0: expected an integer, got text 'a'"),
        ([5, "a"], "prompt.1: expected an integer"),
        (["a"] * 20, "prompt: at most 16 items, 20 given"),
        (True, "prompt: expected text or a list, got true"),
    ],
)
def test_a_prompts_error_is_of_the_form_that_was_meant(prompt, message):
    with pytest.raises(BadRequest) as error:
        parse_body(CompletionRequest, json.dumps({"prompt": prompt}).encode())
    assert message in error.value.message


def test_a_body_that_is_no_object_is_named():
    with pytest.raises(BadRequest, match="the body: expected an object, got a list of 2"):
        parse_body(ChatRequest, b"[1, 2]")
