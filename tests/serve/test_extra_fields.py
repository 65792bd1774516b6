"""What a client adds is ignored and counted; what would change the answer is rejected by name."""

from __future__ import annotations

import json
import re

import pytest

from fledgling.serve.extra_fields import (
    ANY_NUMBER,
    MAX_COUNTED_NAMES,
    OF_OTHER_ROUTES,
    UNSUPPORTED,
    UNSUPPORTED_FALSE,
    FieldCounter,
)
from fledgling.serve.responses_api import ResponsesRequest
from fledgling.serve.schemas import BadRequest, ChatRequest, CompletionRequest, parse_body

ASK = [{"role": "user", "content": "a"}]


def parse(messages=ASK, **fields) -> ChatRequest:
    return parse_body(ChatRequest, json.dumps({"messages": messages} | fields).encode())


def test_a_clients_own_fields_are_ignored_and_counted():
    message = {"role": "assistant", "content": "b", "refusal": None, "annotations": []}
    message |= {"provider_specific_fields": {"a": 1}}
    part = {"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}
    body = parse(
        [{"role": "user", "content": "a", "id": 5}, message, {"role": "user", "content": [part]}],
        user="u", metadata={"a": "b"}, chat_id="x", num_ctx=2048, reasoning_effort="low", keep_alive=-1, extra=None,
    )  # fmt: skip
    expected = (
        "user metadata chat_id num_ctx reasoning_effort keep_alive extra id provider_specific_fields cache_control"
    )
    assert sorted(body.ignored_fields) == sorted(expected.split())


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_field_that_would_change_the_answer_is_rejected_unless_it_requests_nothing(name):
    for nothing in (None, "", [], {}) + ((False, 0) if name not in ANY_NUMBER else ()):
        parse(**{name: nothing})
    with pytest.raises(BadRequest, match=f"{name}: not supported") as error:
        parse(**{name: "something"})
    assert error.value.param == name


@pytest.mark.parametrize("name", UNSUPPORTED_FALSE)
def test_a_field_that_asks_for_something_where_it_is_false_is_rejected_there(name):
    for nothing in (None, True):
        assert parse(**{name: nothing}).ignored_fields == [name]
    with pytest.raises(BadRequest, match=f"{name}: false is not supported; "):
        parse(**{name: False})


def test_settings_under_names_of_other_servers_are_not_lost():
    """What other servers know and that would change the answer: each was ignored once."""
    demanding = {
        "random_seed": 5, "instructions": "Be brief.", "options": {"temperature": 0}, "extra_body": {"top_k": 5},
        "response_schema": {"type": "object"}, "include_stop_str_in_output": True, "truncate_prompt_tokens": 2,
        "typ_p": 0.5, "tfs": 0.5, "dynatemp_range": 0.5, "no_repeat_ngram_size": 2, "smoothing_factor": 0.2,
        "top_n_sigma": 1, "penalty_alpha": 0.6, "num_beams": 4, "documents": [{"text": "a"}],
        "thinking": {"type": "enabled"},
    }  # fmt: skip
    for name, value in demanding.items():
        with pytest.raises(BadRequest, match=f"{name}: not supported"):
            parse(**{name: value})
    with pytest.raises(BadRequest, match="random_seed: not supported; use seed"):
        parse(random_seed=0)
    neutral = {"typ_p": 1.0, "tfs": 1, "num_beams": 1, "top_n_sigma": -1, "thinking": {"type": "disabled"}}
    assert sorted(parse(do_sample=False, temperature=0, **neutral).ignored_fields) == sorted([*neutral, "do_sample"])


@pytest.mark.parametrize("name", ["temprature", "max_token", "message", "stops"])
def test_a_misspelled_field_is_rejected_with_the_name_that_was_meant(name):
    with pytest.raises(BadRequest, match=rf"{name}: no such field; \w+\?"):
        parse(**{name: 1})


def test_a_name_near_ours_passes_where_another_server_has_it_or_it_asks_for_nothing():
    body = parse(models=["a", "b"], frequencyPenalty=None, toolChoice=None, temprature="")
    assert sorted(body.ignored_fields) == ["frequencyPenalty", "models", "temprature", "toolChoice"]
    with pytest.raises(BadRequest, match=r"temprature: no such field; temperature\?"):
        parse(temprature=0)  # not what is left out
    with pytest.raises(BadRequest, match="frequency_penalty_range: not supported; the whole text counts"):
        parse(frequency_penalty_range=1024)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, ResponsesRequest])
def test_a_field_of_another_route_is_rejected_with_the_name_to_use(kind):
    given = {"messages": ASK} if kind is ChatRequest else {"prompt" if kind is CompletionRequest else "input": "a"}
    for name, hint in OF_OTHER_ROUTES.items():
        if name in kind.model_fields:
            continue
        parse_body(kind, json.dumps(given | {name: None}).encode())
        with pytest.raises(BadRequest, match=re.escape(f"{name}: not supported; {hint}")):
            parse_body(kind, json.dumps(given | {name: 2}).encode())


def test_minus_one_is_no_limit_and_no_name_is_the_served_model():
    assert parse(max_tokens=-1, n_predict=-1, model=None).max_tokens is None
    assert parse_body(ChatRequest, b"\xef\xbb\xbf" + json.dumps({"messages": ASK}).encode()).messages
    with pytest.raises(BadRequest, match="max_tokens: "):
        parse(max_tokens=-2)


def test_a_client_cannot_make_the_counter_grow():
    counter = FieldCounter()
    counter.add(f"name{number}" for number in range(1000))
    counter.add(["name1", "x" * 10_000])
    assert len(counter.counts) == MAX_COUNTED_NAMES + 1 and counter.counts["name1"] == 2
    assert counter.counts["other"] == 1000 - MAX_COUNTED_NAMES + 1
