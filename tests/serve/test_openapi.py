"""schemathesis over the server's OpenAPI description: valid and invalid bodies, and responses as described.

FLEDGLING_CASES sets the number of cases of each operation (default 30 of OpenAI's first routes and 8 of the others).
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledgling.serve.app import make_app
from fledgling.serve.service import Service
from fledgling.serve.worker import Worker

pytestmark = pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
CASES = int(os.environ.get("FLEDGLING_CASES", "30"))
CHECKS = (  # of schemathesis
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def list_checks():
    from schemathesis import checks

    return [getattr(checks, name) for name in CHECKS]


@pytest.fixture(scope="module")
def description(random_engine):
    import schemathesis

    worker = Worker(random_engine, max_batch_size=16, max_queue_size=64)
    service = Service(worker, random_engine.tokenizer, "tiny", 1, hosts=None)
    yield schemathesis.openapi.from_asgi("/openapi.json", make_app(service))
    worker.close()
    assert worker.last_error is None


def find_operation(description, label: str):
    operations = (result.ok() for result in description.get_all_operations())
    return next(operation for operation in operations if operation.label == label)


OPERATIONS = ("POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models/{name}", "GET /v1/models")
LIMITS = {  # the other routes, and the field that limits an answer
    "POST /v1/responses": ("max_output_tokens",),
    "POST /v1/embeddings": (),
    "POST /v1/messages": ("max_tokens",),
    "POST /v1/messages/count_tokens": (),
    "POST /api/chat": ("options", "num_predict"),
    "POST /api/generate": ("options", "num_predict"),
    "POST /api/embed": (),
    "POST /api/embeddings": (),
    "POST /api/show": (),
    "GET /api/tags": (),
    "GET /api/ps": (),
    "GET /health": (),
}


def shorten(body, path) -> None:
    """Limits the answer that a body asks for, unless the body does, so that the test is short."""
    *outer, name = path
    for key in outer:
        if body.get(key) is None:
            body[key] = {}
        body = body[key]
    if isinstance(body, dict) and body.get(name) is None:
        body[name] = 4


def test_every_described_operation_is_tried(description):
    assert {result.ok().label for result in description.get_all_operations()} == {*OPERATIONS, *LIMITS}


@pytest.mark.parametrize("label", [*OPERATIONS, *LIMITS])
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_body_breaks_the_server(description, label, mode):
    from schemathesis import GenerationMode

    operation = find_operation(description, label)
    if mode == "negative" and label.startswith("GET"):
        pytest.skip("these routes have no invalid requests")

    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
    @settings(
        max_examples=CASES if label in OPERATIONS else max(8, CASES // 4),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def send(case):
        if isinstance(case.body, dict) and (path := LIMITS.get(label, ("max_tokens",))):
            shorten(case.body, path)
        case.call_and_validate(checks=list_checks())

    send()


WORDS = st.text(min_size=1, max_size=12).filter(str.strip)
MESSAGES = st.lists(WORDS, min_size=1, max_size=5).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)
SHORT = {"max_tokens": st.integers(1, 6)}
FIELDS = {
    "stream": st.booleans(),
    "n": st.integers(1, 3),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "seed": st.integers(0, 2**62),
    "stop": WORDS | st.lists(WORDS, max_size=4),
    "user": st.text(max_size=8),
}
CHAT = {"logprobs": st.booleans()}
TEXT = {"logprobs": st.integers(0, 5), "echo": st.booleans()}
BODIES = {
    "POST /v1/chat/completions": ({"messages": MESSAGES.filter(lambda messages: len(messages) % 2)}, FIELDS | CHAT),
    "POST /v1/completions": ({"prompt": WORDS}, FIELDS | TEXT),
}


@pytest.mark.parametrize("label", BODIES)
def test_valid_bodies_get_the_described_response(description, label):
    """Bodies that schemathesis generates seldom pass the validation of values; these do, and get an answer."""
    operation = find_operation(description, label)
    required, optional = BODIES[label]
    kinds = set()

    @given(body=st.fixed_dictionaries(required | SHORT, optional=optional))
    @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
    def send(body):
        answer = operation.Case(body=body, media_type="application/json").call_and_validate(checks=list_checks())
        text = answer.content.decode()
        assert answer.status_code == 200 or "context" in text, text
        kinds.add(answer.headers["content-type"][0].split(";")[0])

    send()
    assert kinds == {"application/json", "text/event-stream"}
