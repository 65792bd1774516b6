"""What a model thinks before it answers is apart from the answer in every protocol, complete and streamed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest

from fledgling.infer import detokenizer
from fledgling.serve import chat
from tests.serve.test_app import call
from tests.waits import WAIT_SECONDS

QUESTION = "brown fox"  # whose answer by the random model ends
ASK = {"role": "user", "content": QUESTION}
LIMIT = 40
BODIES = {
    "/v1/chat/completions": {"messages": [ASK], "max_tokens": LIMIT, "seed": 3},
    "/v1/responses": {"input": QUESTION, "max_output_tokens": LIMIT, "temperature": 0},
    "/v1/messages": {"messages": [ASK], "max_tokens": LIMIT, "temperature": 0},
    "/api/chat": {"messages": [ASK], "options": {"num_predict": LIMIT, "temperature": 0}},
    "/api/generate": {"prompt": QUESTION, "options": {"num_predict": LIMIT, "temperature": 0}},
}
BODIES["/v1/chat/completions"] |= {"temperature": 0}


@pytest.fixture
def thinker(roomy_server, monkeypatch) -> SimpleNamespace:
    """A server whose random model begins each answer with a thought, which ends with the first letter of the prose."""
    address = roomy_server[0]
    answer = send(address, "/v1/chat/completions")["choices"][0]["message"]["content"]
    end = next(letter for n, letter in enumerate(answer) if n > 4 and letter.isalnum() and letter not in answer[:n])
    monkeypatch.setattr(chat, "begins_thought", lambda tokenizer, prompt: True)
    monkeypatch.setattr(detokenizer, "THOUGHT_END", end)
    monkeypatch.setattr(detokenizer, "THOUGHT_END_PREFIXES", ())
    thought, _, prose = answer.partition(end)
    return SimpleNamespace(address=address, thought=thought.lstrip("\n"), prose=prose.lstrip())


def send(address: str, path: str, **fields) -> dict:
    body = {"model": "tiny", "stream": False} | BODIES[path] | fields
    status, answer, _ = call(address, path, json.dumps(body).encode(), Content_Type="application/json")
    assert status == 200, answer
    return answer


def read_events(address: str, path: str, **fields) -> list[dict]:
    body = {"model": "tiny", "stream": True} | BODIES[path] | fields
    request = Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        lines = (line.removeprefix("data: ") for line in answer.read().decode().splitlines())
    return [json.loads(line) for line in lines if line.startswith("{")]


def read_answer(path: str, answer: dict) -> tuple[str, str]:
    """Thought and prose of a complete answer."""
    if path == "/v1/chat/completions":
        message = answer["choices"][0]["message"]
        assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < LIMIT
        return message["reasoning_content"], message["content"]
    if path == "/v1/responses":
        thought, message = answer["output"]
        assert (thought["type"], thought["status"], thought["summary"]) == ("reasoning", "completed", [])
        assert 0 < answer["usage"]["output_tokens_details"]["reasoning_tokens"] < LIMIT
        return thought["content"][0]["text"], message["content"][0]["text"]
    if path == "/v1/messages":
        thought, text = answer["content"]
        return thought["thinking"], text["text"]
    message = answer.get("message") or answer
    return message["thinking"], message.get("content", message.get("response"))


def read_prose(path: str, answer: dict) -> str:
    """The prose of an answer without a thought."""
    if path == "/v1/chat/completions":
        return answer["choices"][0]["message"]["content"]
    if path == "/v1/responses":
        return answer["output"][0]["content"][0]["text"]
    return answer["content"][0]["text"] if path == "/v1/messages" else answer["message"]["content"]


def join_events(path: str, events: list[dict]) -> tuple[str, str]:
    """Thought and prose of a streamed answer."""
    if path == "/v1/chat/completions":
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
        pairs = [(delta.get("reasoning_content", ""), delta.get("content", "")) for delta in deltas]
    elif path == "/v1/responses":
        kinds = {"response.reasoning_text.delta": 0, "response.output_text.delta": 1}
        deltas = [(kinds[event["type"]], event["delta"]) for event in events if event["type"] in kinds]
        pairs = [(text, "") if kind == 0 else ("", text) for kind, text in deltas]
        items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert items == events[-1]["response"]["output"]
        assert [item["type"] for item in items] == ["reasoning", "message"]
    elif path == "/v1/messages":
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        pairs = [(delta.get("thinking", ""), delta.get("text", "")) for delta in deltas]
        blocks = [event for event in events if event["type"] == "content_block_start"]
        assert [(block["index"], block["content_block"]["type"]) for block in blocks] == [(0, "thinking"), (1, "text")]
    else:
        lines = [event.get("message") or event for event in events]
        pairs = [(line.get("thinking", ""), line.get("content", line.get("response"))) for line in lines]
    return "".join(thought for thought, _ in pairs), "".join(prose for _, prose in pairs)


@pytest.mark.parametrize("path", BODIES)
def test_a_thought_is_a_part_of_its_own(path, thinker):
    expected = thinker.thought, thinker.prose
    assert read_answer(path, send(thinker.address, path)) == expected
    assert join_events(path, read_events(thinker.address, path)) == expected


def test_the_clients_of_openai_read_a_thought(thinker):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{thinker.address}/v1", api_key="none")
    with client.responses.stream(model="tiny", **BODIES["/v1/responses"]) as stream:
        response = stream.until_done().get_final_response()
    assert response.output[0].content[0].text == thinker.thought and response.output_text == thinker.prose


def test_the_logprobs_of_a_thought_are_not_the_answers(thinker):
    fields = {"include": ["message.output_text.logprobs"]}
    part = send(thinker.address, "/v1/responses", **fields)["output"][1]["content"][0]
    streamed = read_events(thinker.address, "/v1/responses", **fields)[-1]["response"]["output"][1]["content"][0]
    assert streamed == part
    whole = send(thinker.address, "/v1/responses")["usage"]
    thought = whole["output_tokens_details"]["reasoning_tokens"]
    assert len(part["logprobs"]) == whole["output_tokens"] - thought > 0 < thought


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/api/generate"])
def test_what_is_demanded_of_an_answer_is_demanded_after_the_thought(path, thinker):
    """The layout of some models begins a thought, which no schema has: it is closed before the first token."""
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    fields = {
        "/v1/chat/completions": {"response_format": {"type": "json_schema", "json_schema": form | {"name": "s"}}},
        "/v1/responses": {"text": {"format": form | {"name": "s"}}},
        "/v1/messages": {"output_config": {"format": form}},
        "/api/chat": {"format": schema},
    }[path]
    answer = send(thinker.address, path, **fields)
    assert json.loads(read_prose(path, answer)) == {"a": 1}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("/v1/chat/completions", {"enable_thinking": False}),
        ("/v1/chat/completions", {"reasoning_effort": "none"}),
        ("/v1/responses", {"reasoning": {"effort": "none"}}),
        ("/v1/messages", {"thinking": {"type": "disabled"}}),
        ("/api/chat", {"think": False}),
        ("/api/generate", {"think": False}),
    ],
)
def test_a_client_that_asks_for_no_thought_gets_none(path, fields, thinker):
    names = ("thinking", "reasoning_content", "reasoning_text")  # of a thought, by protocol
    without, usual = (json.dumps(send(thinker.address, path, **given)) for given in (fields, {}))
    assert [any(name in answer for name in names) for answer in (without, usual)] == [False, True]


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        ("/v1/chat/completions", {"enable_thinking": True}, "enable_thinking"),
        ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ("/api/chat", {"think": "low"}, "think"),
    ],
)
def test_a_thought_that_is_demanded_is_an_error_only_where_the_model_has_none(path, fields, name, thinker, monkeypatch):
    assert "error" not in send(thinker.address, path, **fields)
    monkeypatch.setattr(chat, "begins_thought", lambda tokenizer, prompt: False)
    with pytest.raises(AssertionError, match=f"{name}: not supported; the layout of this model begins no thought"):
        send(thinker.address, path, **fields)


def test_a_thought_that_a_client_began_is_continued(roomy_server):
    begun = [ASK, {"role": "assistant", "content": "<think>\nit is"}]
    message = send(roomy_server[0], "/v1/chat/completions", messages=begun)["choices"][0]["message"]
    assert message["reasoning_content"] and not message["content"]
    ended = [ASK, {"role": "assistant", "content": "<think>it is</think> so"}]
    assert send(roomy_server[0], "/v1/chat/completions", messages=ended)["choices"][0]["message"]["content"]


def test_the_thought_of_an_earlier_answer_is_not_read_again(roomy_server):
    """In a field of its own, as our answers have it, or in the text, as clients that know no such field keep it."""
    used = set()
    for answer in (
        {"content": "so"},
        {"content": "so", "reasoning_content": "it is"},
        {"content": "<think>\nit is\n</think>\n\nso"},
    ):
        messages = [ASK, {"role": "assistant"} | answer, ASK]
        used.add(send(roomy_server[0], "/v1/chat/completions", messages=messages)["usage"]["prompt_tokens"])
    assert len(used) == 1


def test_a_continued_text_is_returned_as_it_is(roomy_server):
    pytest.importorskip("llguidance")
    body = {"prompt": QUESTION, "max_tokens": 40, "guided_regex": "<think>ab{2}</think>\n\nc{3}", "logprobs": 0}
    answer = call(roomy_server[0], "/v1/completions", json.dumps(body).encode(), Content_Type="application/json")[1]
    (choice,) = answer["choices"]
    assert choice["text"] == "<think>abb</think>\n\nccc"
    assert "".join(choice["logprobs"]["tokens"]).startswith(choice["text"])


def test_an_answer_without_a_thought_has_no_tokens_of_one(roomy_server):
    answer = send(roomy_server[0], "/v1/responses")
    assert [item["type"] for item in answer["output"]] == ["message"]
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == 0


def test_ollamas_durations_add_up(roomy_server):
    for answer in (send(roomy_server[0], "/api/chat"), read_events(roomy_server[0], "/api/chat")[-1]):
        total = answer["prompt_eval_duration"] + answer["eval_duration"]
        assert min(answer["prompt_eval_duration"], answer["eval_duration"]) > 0 and total == answer["total_duration"]
