"""A server under load: a full queue, clients that leave, many at once, a step that fails, large bodies."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import pytest

from fledgling.serve import app as app_module
from fledgling.serve import request_body
from tests.serve.conftest import CONTEXT, serving
from tests.serve.test_app import call
from tests.waits import WAIT_SECONDS, wait_for

pytestmark = pytest.mark.skipif(find_spec("openai") is None, reason="openai is not installed")


@contextlib.contextmanager
def sending(address: str, path: str, body: dict[str, Any]) -> Iterator[None]:
    """Sends one request, and leaves at the end without reading the answer."""
    raw, host = json.dumps(body).encode(), urlsplit(address)
    with socket.create_connection((host.hostname, host.port)) as leaving:
        head = f"POST {path} HTTP/1.1\r\nHost: {host.hostname}\r\nContent-Type: application/json\r\n"
        leaving.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        yield


def test_a_full_queue_is_a_429_with_retry_after(random_engine, client, monkeypatch):
    extend, steps, rejected = random_engine.runner.extend_cache, [], threading.Event()

    def wait_after_four_steps(*arguments):
        steps.append(1)
        if len(steps) > 4:
            rejected.wait(WAIT_SECONDS)
        return extend(*arguments)

    monkeypatch.setattr(random_engine.runner, "extend_cache", wait_after_four_steps)
    with serving(random_engine, max_batch_size=1, max_queue_size=1) as (address, worker):
        stream = client(address).completions.create(
            model="", prompt="a", max_tokens=CONTEXT, stream=True, logit_bias={"97": 100}
        )
        next(iter(stream))
        body = json.dumps({"prompt": "b"}).encode()
        code, answer, headers = call(address, "/v1/completions", body, Content_Type="application/json")
        rejected.set()
        assert code == 429 and int(headers["retry-after"]) >= 1 and answer["error"]["code"] == "queue_full"
        stream.close()
        wait_for(lambda: worker.load == 0)
        assert call(address, "/v1/completions", body, Content_Type="application/json")[0] == 200


def test_a_client_that_disconnects_frees_its_row(random_engine, monkeypatch):
    """A client that streams, and one that waits for the complete response, which takes 8 seconds."""
    extend = random_engine.runner.extend_cache
    monkeypatch.setattr(random_engine.runner, "extend_cache", lambda *given: time.sleep(0.1) or extend(*given))
    with serving(random_engine, max_batch_size=1, max_queue_size=4) as (address, worker):
        for stream in (True, False):
            requests, cancelled = worker.counters.requests, worker.counters.cancelled
            body = {"prompt": "a", "max_tokens": 80, "logit_bias": {"97": 100}, "stream": stream}
            with sending(address, "/v1/completions", body):
                wait_for(lambda before=requests: worker.counters.requests > before)
            wait_for(lambda: worker.load == 0)
            assert worker.counters.cancelled > cancelled


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
def test_a_client_that_disconnects_frees_the_places_of_its_texts(path, random_engine, monkeypatch):
    begun, left = [], threading.Event()

    def embed_slowly(engine, texts):
        begun.append(1)
        left.wait(WAIT_SECONDS)
        yield
        return [[1.0]] * len(texts)

    monkeypatch.setattr("fledgling.serve.embeddings.embed_tokens", embed_slowly)
    with serving(random_engine, max_queue_size=8) as (address, worker):
        with sending(address, path, {"input": ["a"] * 1000, "model": "tiny"}):  # 32 pieces
            wait_for(lambda: worker.load == 2)
        wait_for(lambda: worker.load == 0)  # no piece has ended: only their cancellation frees them
        left.set()
        assert [worker.load for _ in range(20) if not time.sleep(0.01)] == [0] * 20
    assert len(begun) <= 1


def test_many_clients_at_once_get_the_answers_of_each_alone(server, client):
    address, _ = server
    create = client(address).chat.completions.create

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"fox {number}"}]
        return create(model="", messages=messages, seed=number, max_tokens=12).choices[0].message.content

    alone = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_a_failing_step_is_reported_and_the_server_continues(random_engine, client, monkeypatch):
    import openai

    with serving(random_engine) as (address, worker):
        extend_cache, calls = random_engine.runner.extend_cache, []

        def broken(*arguments, **named):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return extend_cache(*arguments, **named)

        monkeypatch.setattr(random_engine.runner, "extend_cache", broken)
        with pytest.raises(openai.InternalServerError):
            client(address).completions.create(model="", prompt="a", max_tokens=20, logit_bias={"97": 100})
        assert client(address).completions.create(model="", prompt="a", max_tokens=3).choices
        assert "out of memory" in worker.last_error


def test_large_bodies_are_parsed_one_at_a_time_and_small_ones_do_not_wait_for_them(random_engine, monkeypatch):
    """Six large bodies at once; while the first is parsed, a small one is answered."""
    running, most, first, small_done = [], [], threading.Event(), threading.Event()
    parse = app_module._parse_request

    def observed(endpoint, service, body):
        if len(body) <= request_body.SMALL_BODY_BYTES:
            return parse(endpoint, service, body)
        running.append(1)
        most.append(len(running))
        first.set()
        assert small_done.wait(WAIT_SECONDS)
        running.pop()
        return parse(endpoint, service, body)

    monkeypatch.setattr(app_module, "_parse_request", observed)
    large = json.dumps({"prompt": "fox " * 40_000}).encode()
    small = json.dumps({"prompt": "fox", "max_tokens": 1}).encode()
    with serving(random_engine) as (address, _), ThreadPoolExecutor(6) as pool:
        answers = [
            pool.submit(call, address, "/v1/completions", large, Content_Type="application/json") for _ in range(6)
        ]
        assert first.wait(WAIT_SECONDS)
        assert call(address, "/v1/completions", small, Content_Type="application/json")[0] == 200
        small_done.set()
        assert {answer.result()[1]["error"]["code"] for answer in answers} == {"context_length_exceeded"}
    assert max(most) == request_body.LARGE_LANES == 1
