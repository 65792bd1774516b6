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
    }  # fmt: skip
    for name, value in demanding.items():
        with pytest.raises(BadRequest, match=f"{name}: not supported"):
            parse(**{name: value})
    with pytest.raises(BadRequest, match="random_seed: not supported; use seed"):
        parse(random_seed=0)
    neutral = {"typ_p": 1.0, "tfs": 1, "num_beams": 1, "top_n_sigma": -1, "thinking": {"type": "disabled"}}
    assert sorted(parse(do_sample=False, temperature=0, **neutral).ignored_fields) == sorted([*neutral, "do_sample"])


def test_what_other_servers_default_to_is_accepted_and_anything_else_is_rejected():
    """Each of these was ignored once, though it changes the answer or its form."""
    for name, default, other in (
        ("guidance_scale", 1, 1.5), ("encoder_repetition_penalty", 1.0, 1.2), ("best_of", 1, 2), ("n_probs", 0, 5),
        ("lora", [], [{"id": 0, "scale": 0.5}]), ("chat_template_kwargs", {"date": ""}, {"date": "today"}),
        ("ban_eos_token", False, True), ("add_bos_token", True, False),
        ("add_special_tokens", False, True), ("min_length", 0, 5), ("return_token_ids", None, True),
        ("safe_prompt", False, True), ("stopping_strings", [], ["a"]), ("max_new_tokens", -1, 5), ("echo", False, True),
    ):  # fmt: skip
        assert parse(**{name: default}).ignored_fields == [name]
        with pytest.raises(BadRequest, match=rf"{name}: .*not supported") as error:
            parse(**{name: other})
        assert error.value.param == name
    text = b'{"prompt": "a", "add_special_tokens": %s}'
    assert parse_body(CompletionRequest, text % b"true").ignored_fields == ["add_special_tokens"]
    with pytest.raises(BadRequest, match="add_special_tokens: false is not supported; every prompt has one bos"):
        parse_body(CompletionRequest, text % b"false")
    same = {"max_new_tokens": 5, "stopping_strings": ["a"], "random_seed": 3}
    assert sorted(parse(max_tokens=5, stop=["a"], seed=3, **same).ignored_fields) == sorted(same)


def test_what_a_penalty_counts_matters_where_there_is_one():
    for field in ("repetition_penalty", "repeat_penalty", "presence_penalty"):
        parse(repeat_last_n=0, penalize_newline=False, **{field: float(field.startswith("rep"))})
        parse(repeat_last_n=64, penalize_newline=True, **{field: 1.2})
        parse(repeat_last_n=-1, penalize_nl=None, **{field: 1.2})
        for name, value in (("repeat_last_n", 0), ("repeat_last_n", 256), ("penalize_nl", False)):
            with pytest.raises(BadRequest, match=f"{name}: not supported; a penalty counts the whole text"):
                parse(**{field: 1.2, name: value})


@pytest.mark.parametrize(
    "fields", [{"continue_final_message": True, "add_generation_prompt": False}, {"continue_": True}, {}]
)
def test_an_answer_that_is_begun_is_continued_and_none_is_where_there_is_none(fields):
    begun = {"role": "assistant", "content": "b"} | ({} if fields else {"prefix": True})
    assert not parse([*ASK, begun], **fields).ignored_fields
    with pytest.raises(BadRequest, match="the last message is continued where it is the assistant's"):
        parse(ASK if fields else [{**ASK[0], "prefix": True}], **fields)
    parse(continue_final_message=False, add_generation_prompt=True)  # the defaults
    parse([*ASK, begun | {"prefix": True}, *ASK])  # a history that is sent back
    parse_body(CompletionRequest, json.dumps({"prompt": "a", "messages": [1], **fields}).encode())


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


def test_a_body_of_another_shape_under_a_name_of_ours_breaks_nothing():
    for kind, given in ((CompletionRequest, {"prompt": "a"}), (ResponsesRequest, {"input": "a"})):
        for value in (3, "a", [], [3], {"a": 1}, True):
            body = {**given, "messages": value, "repeat_last_n": 3, "continue_final_message": True}
            assert "messages" in parse_body(kind, json.dumps(body).encode()).ignored_fields


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
