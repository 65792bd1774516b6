"""OpenAI's client against a server: answers, streams, errors, access and limits."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from importlib.util import find_spec

import pytest
import torch

from fledgling.infer.sampling import SamplingParams
from fledgling.serve.service import Service
from fledgling.serve.worker import Worker
from fledgling.text.conversation import render_prompt
from tests.serve.conftest import serving
from tests.waits import WAIT_SECONDS, wait_for

pytestmark = pytest.mark.skipif(find_spec("openai") is None, reason="openai is not installed")

ASK = [{"role": "user", "content": "the quick fox"}]


def call(address: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, dict]:
    """Sends one request; returns status, parsed body and headers."""
    request = urllib.request.Request(
        address + path, data=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
            return answer.status, json.loads(answer.read() or b"null"), dict(answer.headers)
    except urllib.error.HTTPError as problem:
        return problem.code, json.loads(problem.read() or b"null"), dict(problem.headers)


def test_an_answer_is_the_engines(server, random_engine, client):
    address, _ = server
    answer = client(address).chat.completions.create(model="tiny", messages=ASK, temperature=0, max_tokens=20, seed=3)
    prompt = render_prompt(random_engine.tokenizer, {"messages": ASK})
    expected = random_engine.generate([prompt], SamplingParams(temperature=0, max_new_tokens=20))[0]
    assert answer.usage.prompt_tokens == len(prompt) and answer.usage.completion_tokens == len(expected.tokens)
    assert answer.choices[0].message.content == random_engine.tokenizer.decode(
        [t for t in expected.tokens if t not in random_engine.tokenizer.special_tokens.values()]
    )
    assert answer.choices[0].finish_reason == ("length" if expected.finish_reason == "length" else "stop")


def test_a_stream_equals_the_complete_response(server, client):
    address, _ = server
    settings = {
        "model": "tiny",
        "messages": ASK,
        "seed": 7,
        "max_tokens": 30,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client(address).chat.completions.create(**settings)
    text, ends, count = ["", "", ""], [None] * 3, 0
    stream = client(address).chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    for chunk in stream:
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
            count += len(choice.logprobs.content) if choice.logprobs else 0
        usage = chunk.usage
    assert text == [choice.message.content for choice in whole.choices] and len(set(text)) > 1
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert (usage.prompt_tokens, usage.total_tokens) == (whole.usage.prompt_tokens, whole.usage.total_tokens)
    assert usage.prompt_tokens_details.cached_tokens > 0  # of the request before
    assert count == usage.completion_tokens
    first = whole.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 2 and first.top_logprobs[0].logprob >= first.logprob - 1e-6


def test_a_tool_call_is_returned_in_parts(adder, client):
    with serving(adder) as (address, _):
        answer = client(address).chat.completions.create(model="", messages=ASK, temperature=0)
        pieces = [
            part
            for chunk in client(address).chat.completions.create(model="", messages=ASK, temperature=0, stream=True)
            for part in (chunk.choices[0].delta.model_extra or {}).get("parts", [])
        ]
    assert answer.choices[0].message.content == "=!"
    assert answer.choices[0].message.model_extra["parts"] == [
        {"type": "text", "text": "="},
        {"type": "python", "text": "2+3"},
        {"type": "output", "text": "5"},
        {"type": "text", "text": "!"},
    ]
    assert "".join(p["text"] for p in pieces if p["type"] == "python") == "2+3"
    assert {"index": 1, "type": "output", "text": "5"} in pieces


def test_stop_strings_end_an_answer_and_are_not_shown(chain, tokenizer, client):
    steps = [tokenizer.assistant_start, *b"abcdefgh"]
    with serving(chain(dict(itertools.pairwise(steps)))) as (address, worker):
        for stop, shown in (("de", "abc"), (["zz", "gh"], "abcdef"), ("gz", "abcdefgh"), ("a", "")):
            answer = client(address).chat.completions.create(model="", messages=ASK, temperature=0, stop=stop)
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (shown, "stop"), stop
        wait_for(lambda: worker.load == 0)


def test_completions_take_echo_logprobs_and_several_prompts(server, client):
    address, _ = server
    create = client(address).completions.create
    two = create(model="tiny", prompt=["the quick", "lazy dog"], max_tokens=5, n=2, temperature=0.5, seed=1, echo=True)
    assert [c.index for c in two.choices] == [0, 1, 2, 3]
    assert all(c.text.startswith(p) for c, p in zip(two.choices, ["the quick"] * 2 + ["lazy dog"] * 2, strict=True))
    scored = create(model="tiny", prompt="the quick", max_tokens=4, logprobs=3, temperature=0).choices[0]
    assert len(scored.logprobs.tokens) == len(scored.logprobs.token_logprobs) == 4
    assert all(value <= 0 for value in scored.logprobs.token_logprobs)
    streamed = "".join(c.choices[0].text for c in create(model="", prompt="the", max_tokens=6, seed=2, stream=True))
    assert streamed == create(model="", prompt="the", max_tokens=6, seed=2).choices[0].text


def test_no_alternatives_and_the_sampled_token_among_them(server, client):
    """As OpenAI answers: chat gives no alternatives for 0, text up to one more than was asked, the token itself."""
    chat = client(address := server[0]).chat.completions.create
    answer = chat(model="", messages=ASK, max_tokens=3, logprobs=True, top_logprobs=0).choices[0].logprobs.content
    assert len(answer) == 3 and all(token.logprob < 0 and token.top_logprobs == [] for token in answer)
    for count, most in ((0, 1), (1, 2), (3, 4)):
        for echo in (False, True):
            settings = {"prompt": "the quick", "max_tokens": 9, "logprobs": count, "temperature": 2, "seed": 3}
            given = client(address).completions.create(model="", **settings, echo=echo).choices[0].logprobs
            for token, value, likely in zip(given.tokens, given.token_logprobs, given.top_logprobs, strict=True):
                assert token in likely and len(likely) <= most
                assert count or likely == {token: value}


def test_echo_with_logprobs_scores_the_prompt(server, random_engine, client):
    """Complete, streamed, and without an answer: the log-probabilities of one forward pass."""
    settings = {"model": "", "prompt": "the quick brown", "echo": True, "logprobs": 2, "temperature": 0, "n": 2}
    create, tokenizer = client(server[0]).completions.create, random_engine.tokenizer
    ids = [tokenizer.bos, *tokenizer.encode("the quick brown")]
    with torch.no_grad():
        all_logprobs = random_engine.model.compute_logits(random_engine.model(torch.tensor([ids])))[0].log_softmax(-1)
    expected = [all_logprobs[position, token].item() for position, token in enumerate(ids[1:])]
    for max_tokens in (0, 3):
        whole = create(**settings, max_tokens=max_tokens, logit_bias={"97": 100})
        assert whole.usage.prompt_tokens == len(ids) and whole.usage.completion_tokens == 2 * max_tokens
        for choice in whole.choices:
            logprobs = choice.logprobs
            assert (
                len(logprobs.tokens)
                == len(logprobs.token_logprobs)
                == len(logprobs.top_logprobs)
                == len(ids) - 1 + max_tokens
            )
            assert logprobs.token_logprobs[: len(expected)] == pytest.approx(expected, abs=1e-4)
            assert "".join(logprobs.tokens) == choice.text == "the quick brown" + "a" * max_tokens
            assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
        text, values = "", []
        for chunk in create(**settings | {"n": 1}, max_tokens=max_tokens, logit_bias={"97": 100}, stream=True):
            text += chunk.choices[0].text
            values += chunk.choices[0].logprobs.token_logprobs if chunk.choices[0].logprobs else []
        assert text == whole.choices[0].text
        assert values == pytest.approx(whole.choices[0].logprobs.token_logprobs, abs=1e-4)


def test_the_offsets_of_a_stream_are_those_of_the_complete_response(server, client):
    """Also of tokens whose text is held back, because it may begin a stop string."""
    create = client(server[0]).completions.create
    for echo in (False, True):
        settings = {"model": "", "prompt": "the quick", "max_tokens": 12, "logprobs": 0, "seed": 3, "echo": echo}
        text = create(**settings).choices[0].text.removeprefix("the quick")
        settings["stop"] = [text[:5] + "#", text[6:8] + "#"]
        whole = create(**settings).choices[0].logprobs
        offsets, tokens = [], []
        for chunk in create(**settings, stream=True):
            if logprobs := chunk.choices[0].logprobs:
                offsets += logprobs.text_offset
                tokens += logprobs.tokens
        assert tokens == whole.tokens and offsets == whole.text_offset


def test_cached_tokens_are_counted(random_engine, client):
    messages = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog " * 2}]
    with serving(random_engine, max_batch_size=2) as (address, worker):
        for _ in range(2):
            client(address).chat.completions.create(model="", messages=messages, max_tokens=3)
        wait_for(lambda: worker.load == 0)
        stats = worker.stats
        assert stats.cached_tokens > 0 and stats.prefilled_tokens + stats.cached_tokens == stats.prompt_tokens
        with urllib.request.urlopen(f"{address}/metrics", timeout=WAIT_SECONDS) as answer:
            lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
        assert float(lines["fledgling_prefix_hit_rate"]) == pytest.approx(stats.prefix_hit_rate)
        assert float(lines["fledgling_cached_tokens_total"]) == stats.cached_tokens
        assert float(lines["fledgling_cache_bytes"]) == worker.cache.used_blocks * worker.cache.block_bytes > 0


def test_logit_bias_changes_the_sampled_tokens(server, client):
    create = client(server[0]).completions.create
    pushed = create(model="", prompt="the", max_tokens=5, temperature=0, logit_bias={"97": 100})
    assert pushed.choices[0].text == "aaaaa"
    assert create(model="", prompt="the", max_tokens=5, temperature=0).choices[0].text != "aaaaa"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": ""}]}, 400, "no message of the user"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, 400, "role"),
        ("chat/completions", {"messages": ASK, "temperature": 2.5}, 400, "temperature"),
        ("chat/completions", {"messages": ASK, "temperature": "1"}, 400, "temperature"),
        ("chat/completions", {"messages": ASK, "n": 16384}, 400, "n: "),
        ("chat/completions", {"messages": ASK, "tools": [{}]}, 400, "tools"),
        ("chat/completions", {"messages": ASK, "temprature": 1}, 400, "temprature: no such field; temperature?"),
        ("chat/completions", {"messages": ASK, "stop": ["v"] * 65}, 400, "stop: at most 64 items, 65 given"),
        ("chat/completions", {"messages": ASK, "functions": [{}]}, 400, "functions: not supported; use tools"),
        ("chat/completions", {"messages": ASK, "response_format": {"type": "xml"}}, 400, "got 'xml'"),
        ("chat/completions", {"messages": ASK, "logit_bias": {"990": 1}}, 400, "logit_bias"),
        ("chat/completions", {"messages": ASK, "model": "gpt-9"}, 404, "no model 'gpt-9'"),
        ("chat/completions", {"messages": [{"role": "user", "content": "fox " * 99}]}, 400, "whole context"),
        ("completions", {"prompt": [5, 329]}, 400, "329 is not the id of a token of text"),
        ("completions", {"prompt": ["a"] * 9, "n": 2}, 400, "more than 16 choices"),
        ("completions", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ],
)
def test_an_invalid_request_is_named_in_openais_format(server, path, body, status, message):
    address, worker = server
    code, answer, _ = call(address, f"/v1/{path}", json.dumps(body).encode(), Content_Type="application/json")
    assert code == status and message in answer["error"]["message"], answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    wait_for(lambda: worker.load == 0)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"messages": ' + b"[" * 5000, b"\xff\xfe", b'{"prompt": "\\ud800"}']
)
def test_a_malformed_body_is_a_400(server, body):
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert call(server[0], path, body, Content_Type="application/json")[0] == 400


def test_content_type_size_method_and_address_are_checked(server):
    address, _ = server
    good = json.dumps({"messages": ASK}).encode()
    assert call(address, "/v1/chat/completions", good, Content_Type="text/plain")[0] == 415
    big = json.dumps({"messages": [{"role": "user", "content": "x" * 1_100_000}]}).encode()
    assert call(address, "/v1/chat/completions", big, Content_Type="application/json")[0] == 413
    announced = {"Content_Type": "application/json", "Content_Length": "99999999"}
    assert call(address, "/v1/chat/completions", b"{", **announced)[0] == 413
    assert call(address, "/v1/chat/completions")[0] == 405
    assert call(address, "/v2/chat")[0] == 404
    assert call(address, "/health", Host="evil.example")[0] == 421
    assert call(address, "/health")[1]["status"] == "ok"


def test_a_body_that_does_not_arrive_times_out(server, monkeypatch):
    monkeypatch.setattr("fledgling.serve.request_body.BODY_TIMEOUT", 0.2)
    head = {"Content_Type": "application/json", "Content_Length": "100"}
    assert call(server[0], "/v1/chat/completions", b"{", **head)[1]["error"]["code"] == "body_timeout"


def test_an_api_key_is_required_except_for_health(random_engine, client):
    import openai

    with serving(random_engine, api_key="a-long-key") as (address, _):
        with pytest.raises(openai.AuthenticationError):
            client(address, "a-long-kez").models.list()
        assert client(address, "a-long-key").models.list().data[0].id == "tiny"
        assert call(address, "/health")[0] == 200 and call(address, "/metrics")[0] == 401


def test_control_tokens_in_text_stay_text(server, random_engine):
    """The prompt of a text that names every control token contains only the control tokens of the format."""
    special = set(random_engine.tokenizer.special_tokens.values())
    named = " ".join(random_engine.tokenizer.special_tokens)
    plain = render_prompt(random_engine.tokenizer, {"messages": ASK})
    hostile = render_prompt(random_engine.tokenizer, {"messages": [{"role": "user", "content": named}]})
    assert [t for t in hostile if t in special] == [t for t in plain if t in special]


STOPS = [*(f"<|no{number}|>" for number in range(12)), "gh", "zz"]  # the template's of an editor, and one that occurs
STOP_BODIES = {
    "/v1/chat/completions": {"messages": ASK, "stop": STOPS},
    "/v1/completions": {"prompt": "a", "stop": STOPS},
    "/v1/messages": {"messages": ASK, "max_tokens": 20, "stop_sequences": STOPS},
    "/api/chat": {"messages": ASK, "stream": False, "options": {"stop": STOPS, "temperature": 0}},
    "/api/generate": {"prompt": "a", "stream": False, "options": {"stop": STOPS, "temperature": 0}},
}


def test_a_dozen_stop_strings_are_honored_on_every_route_and_a_model_by_its_tag(chain, tokenizer):
    steps = [tokenizer.assistant_start, *b"abcdefgh"]
    with serving(chain(dict(itertools.pairwise(steps)))) as (address, _):
        for path, body in STOP_BODIES.items():
            raw = json.dumps({"model": "tiny:latest"} | ({} if "options" in body else {"temperature": 0}) | body)
            status, answer = call(address, path, raw.encode(), Content_Type="application/json")[:2]
            assert status == 200, (path, answer)
            assert "ef" in str(answer) and "gh" not in str(answer), path


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "fox " * 40_000}),
        ("completions", {"prompt": ["fox " * 40_000]}),
        ("completions", {"prompt": [65] * 60_000}),
        ("chat/completions", {"messages": [{"role": "user", "content": "fox " * 40_000}]}),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "fox " * 9000}] * 4}]},
        ),
    ],
)
def test_a_prompt_that_cannot_fit_is_an_error_before_it_is_tokenized(server, random_engine, monkeypatch, path, body):
    monkeypatch.setattr(type(random_engine.tokenizer), "encode", lambda self, text: pytest.fail("tokenized"))
    code, answer, _ = call(server[0], f"/v1/{path}", json.dumps(body).encode(), Content_Type="application/json")
    assert (code, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_two_checkpoints_answer_under_their_names(random_engine, adder, client):
    import openai

    worker = Worker(adder, 2, 4)
    second = Service(worker, adder.tokenizer, "second", 1)
    with serving(random_engine, others=[second]) as (address, _):
        models = client(address).models.list().data
        assert [model.id for model in models] == ["tiny", "second"]
        assert client(address).models.retrieve("second").id == "second"
        answers = [
            client(address).chat.completions.create(model=name, messages=ASK, temperature=0, max_tokens=8, seed=1)
            for name in ("tiny", "second")
        ]
        assert [answer.model for answer in answers] == ["tiny", "second"]
        assert answers[0].choices[0].message.content != answers[1].choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="it serves 'tiny'"):
            client(address).chat.completions.create(model="third", messages=ASK)
    worker.close()
