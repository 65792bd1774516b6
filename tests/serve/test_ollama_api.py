"""Ollama's API: the chat's answers in lines of JSON, with options under its names."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import pytest

from tests.serve.conftest import ROOMY_CONTEXT
from tests.serve.test_app import call
from tests.waits import WAIT_SECONDS

ASK = {"role": "user", "content": "the quick fox"}
OPTIONS = {"num_predict": 8, "temperature": 0, "repeat_penalty": 1.2, "num_ctx": 4096, "num_thread": 2}
SIZE = {
    "type": "object",
    "properties": {"size": {"enum": ["s", "l"]}},
    "required": ["size"],
    "additionalProperties": False,
}
PICK = {"type": "function", "function": {"name": "pick", "parameters": SIZE}}


def send(address: str, path: str, **fields) -> tuple[int, dict]:
    body = json.dumps({"model": "tiny:latest", "stream": False, "options": OPTIONS} | fields).encode()
    return call(address, path, body, Content_Type="application/json")[:2]


def read_lines(address: str, path: str, **fields) -> list[dict]:
    body = json.dumps({"model": "tiny", "options": OPTIONS} | fields).encode()
    request = Request(address + path, body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.read().decode().splitlines()]


def test_an_answer_is_the_chats_and_a_stream_is_the_default(roomy_server):
    address = roomy_server[0]
    body = {"messages": [ASK], "max_tokens": 8, "temperature": 0, "repetition_penalty": 1.2}
    chat = call(address, "/v1/chat/completions", json.dumps(body).encode(), Content_Type="application/json")[1]
    answer = send(address, "/api/chat", messages=[ASK])[1]
    assert answer["message"] == {"role": "assistant", "content": chat["choices"][0]["message"]["content"]}
    assert (
        answer["done"] and answer["eval_count"] == chat["usage"]["completion_tokens"] and answer["total_duration"] > 0
    )
    lines = read_lines(address, "/api/chat", messages=[ASK])
    assert "".join(line["message"]["content"] for line in lines) == answer["message"]["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    generated = send(address, "/api/generate", prompt="the quick fox", system="")[1]
    assert generated["response"] == answer["message"]["content"]
    assert (
        "".join(line["response"] for line in read_lines(address, "/api/generate", prompt="the quick fox"))
        == (generated["response"])
    )


@pytest.mark.parametrize("stop", [None, "W"])
def test_a_raw_prompt_is_continued_without_the_layout(roomy_server, stop):
    address, text = roomy_server[0], "the quick fox"
    options = OPTIONS | {"num_predict": 40, "stop": stop}
    body = {"prompt": text, "max_tokens": 40, "temperature": 0, "repetition_penalty": 1.2, "stop": stop}
    plain = call(address, "/v1/completions", json.dumps(body).encode(), Content_Type="application/json")[1]
    fields = {"prompt": text, "raw": True, "suffix": "", "context": [], "options": options}
    answer = send(address, "/api/generate", **fields)[1]
    assert answer["response"] == plain["choices"][0]["text"] and answer["done_reason"] == ("stop" if stop else "length")
    assert answer["prompt_eval_count"] == plain["usage"]["prompt_tokens"] and answer["eval_count"] > 1
    assert answer["prompt_eval_count"] < send(address, "/api/generate", prompt=text)[1]["prompt_eval_count"]
    lines = read_lines(address, "/api/generate", **fields)
    assert "".join(line["response"] for line in lines) == answer["response"] and lines[-1]["done"]
    json_options = {"num_predict": 1}
    assert send(address, "/api/generate", **fields | {"format": "json", "options": json_options})[1]["response"] == "{"


def test_a_raw_prompt_beyond_the_context_loses_its_beginning_unless_truncate_is_false(roomy_server):
    text, fields = "a " * 3_000, {"raw": True, "options": {"num_predict": 5, "temperature": 0}}
    answer = send(roomy_server[0], "/api/generate", prompt=text, **fields)[1]
    assert answer["prompt_eval_count"] == ROOMY_CONTEXT - 5 and answer["eval_count"] == 5
    assert b'changed_turns_total{change="cut"}' in urlopen(roomy_server[0] + "/metrics", timeout=WAIT_SECONDS).read()
    no_limit = send(roomy_server[0], "/api/generate", prompt=text, raw=True, options={"num_predict": -1, "seed": 1})[1]
    assert no_limit["prompt_eval_count"] == ROOMY_CONTEXT * 3 // 4
    status, answer = send(roomy_server[0], "/api/generate", prompt=text, truncate=False, **fields)
    assert status == 400 and "the prompt has " in answer["error"]


def test_turns_are_dropped_where_the_context_is_full_unless_truncate_is_false(roomy_server):
    turns = [{"role": role, "content": "the quick fox " * 60} for role in ("user", "assistant", "user")]
    assert send(roomy_server[0], "/api/chat", messages=turns)[0] == 200
    status, answer = send(roomy_server[0], "/api/chat", messages=turns, truncate=False)
    assert status == 400 and "the prompt has " in answer["error"]


def test_formats_and_tools_constrain_the_answer(roomy_server):
    address, long = roomy_server[0], {"num_predict": -1}
    answer = send(address, "/api/chat", messages=[ASK], format=SIZE, options=long)[1]
    assert json.loads(answer["message"]["content"])["size"] in ("s", "l")
    assert send(address, "/api/generate", prompt="a", format="json", options={"num_predict": 1})[1]["response"] == "{"
    calls = [{"function": {"name": "pick", "arguments": {"size": "s"}}}]
    history = [ASK, {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "done"}]
    answer = send(address, "/api/chat", messages=history, tools=[PICK])[1]
    assert (
        answer["prompt_eval_count"] > send(address, "/api/chat", messages=[ASK], tools=[PICK])[1]["prompt_eval_count"]
    )


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "system: raw mode does not support it"),
        ("/api/generate", {"prompt": "a", "raw": True, "context": [1]}, "context: not supported; send the earlier"),
        ("/api/generate", {"prompt": "a", "raw": True, "template": "b"}, "template: not supported; the model has one"),
        ("/api/generate", {"prompt": "a", "raw": True, "suffix": "b"}, "suffix: 'tiny' does not support insert"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, "suffix: 'tiny' does not support insert"),
        ("/api/generate", {"prompt": "a", "raw": True, "format": "xml"}, "format: expected 'json'"),
        ("/api/generate", {"prompt": "a", "raw": True, "format": {"not": {}}}, "format: "),
        ("/api/chat", {"messages": [ASK], "format": {"not": {}}}, "format: "),
        (
            "/api/chat",
            {"messages": [ASK], "options": {"repeat_penalty": 1.1, "repeat_last_n": 0}},
            "repeat_last_n: not",
        ),
        ("/api/generate", {"prompt": "a", "images": ["aa"]}, "images: at most 0 items"),
        ("/api/generate", {"prompt": "a", "format": "xml"}, "format: expected 'json' or a JSON schema"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ("/api/chat", {"messages": [ASK], "options": {"temperature": 9}}, "temperature: expected at most 2"),
        ("/api/chat", {"messages": [ASK], "options": {"temprature": 1}}, "temprature: no such field; temperature?"),
        ("/api/chat", {"messages": [ASK], "options": {"mirostat": 2}}, "mirostat: not supported"),
        ("/api/generate", {"prompt": "a", "context": [1]}, "context: not supported; send the earlier turns"),
        ("/api/chat", {"messages": [ASK], "think": True}, "think: not supported"),
        ("/api/chat", {"messages": [ASK], "temperature": 0}, "temperature: not supported; use options.temperature"),
        ("/api/chat", {"messages": [], "model": "owl"}, "no model 'owl'"),
        ("/api/chat", {"messages": [ASK], "model": "owl"}, "no model 'owl'"),
    ],
)
def test_what_cannot_be_honored_is_named(roomy_server, path, fields, message):
    status, answer = send(roomy_server[0], path, **fields)
    assert status in (400, 404) and message in answer["error"]


def test_a_format_of_a_class_has_its_properties_alone(roomy_server):
    """As model_json_schema() writes it, without additionalProperties: a random model would add some without end."""
    schema = {name: value for name, value in SIZE.items() if name != "additionalProperties"}
    for seed in range(3):
        options = {"seed": seed, "temperature": 1.5}
        answer = send(roomy_server[0], "/api/chat", messages=[ASK], format=schema, options=options)[1]
        assert set(json.loads(answer["message"]["content"])) == {"size"}, answer


def test_a_request_without_a_question_is_done_at_once(roomy_server):
    for path, fields in (("/api/chat", {"messages": []}), ("/api/generate", {"keep_alive": "5m"})):
        answer = send(roomy_server[0], path, **fields)[1]
        assert answer["done"] and answer["done_reason"] == "load"
        assert [line["done_reason"] for line in read_lines(roomy_server[0], path, **fields)] == ["load"]


def test_a_form_s_content_type_is_read_on_these_routes_unless_a_page_sends_it(roomy_server):
    address, body = roomy_server[0], b'{"messages": [], "stream": false}'
    form = "application/x-www-form-urlencoded"  # curl -d, urllib
    assert call(address, "/api/chat", body, Content_Type=form)[0] == 200
    assert call(address, "/api/chat", body, Content_Type="")[0] == 200
    pages = ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"})
    for content_type in (form, "", "text/plain", "multipart/form-data"):
        for page in pages:
            status, answer, _ = call(address, "/api/chat", body, Content_Type=content_type, **page)
            assert status == 415 and 'send the header "Content-Type: application/json"' in answer["error"]
        assert call(address, "/v1/chat/completions", body, Content_Type=content_type)[0] == 415
    assert call(address, "/api/pull")[1]["error"].endswith("no such route")
