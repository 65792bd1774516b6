"""schemathesis over the server's own description: bodies right and wrong, none may break it or its description.

FLEDGLING_CASES sets how many cases each operation gets (default 30; 1,250 makes 5,000 in all).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledgling.serve.app import make_app
from fledgling.serve.service import Service
from fledgling.serve.worker import Worker

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import checks  # noqa: E402

CASES = int(os.environ.get("FLEDGLING_CASES", "30"))
CHECKS = (
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
)


@pytest.fixture(scope="module")
def description(talker):
    worker = Worker(talker, max_batch_size=16, max_queue_size=64)
    service = Service(worker, talker.tokenizer, "tiny", 1, hosts=None)
    yield schemathesis.openapi.from_asgi("/openapi.json", make_app(service))
    worker.close()
    assert worker.last_error is None


OPERATIONS = ("POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models/{name}", "GET /v1/models")


@pytest.mark.parametrize("label", OPERATIONS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_nothing_that_is_sent_breaks_the_server(description, label, mode):
    operation = next(found for result in description.get_all_operations() if (found := result.ok()).label == label)
    if mode.value == "negative" and label.startswith("GET"):
        pytest.skip("there is no wrong way to ask for these")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
    def send(case):
        if isinstance(case.body, dict) and case.body.get("max_tokens") is None:
            case.body["max_tokens"] = 4  # long answers would only cost time
        case.call_and_validate(checks=CHECKS)

    send()


WORDS = st.text(min_size=1, max_size=12).filter(str.strip)
SAID = st.lists(WORDS, min_size=1, max_size=5).map(
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
ASKED = {
    "POST /v1/chat/completions": ({"messages": SAID.filter(lambda said: len(said) % 2)}, FIELDS | CHAT),
    "POST /v1/completions": ({"prompt": WORDS}, FIELDS | TEXT),
}


@pytest.mark.parametrize("label", ASKED)
def test_what_may_be_asked_is_answered_as_described(description, label):
    """What schemathesis makes of the description seldom passes the closer look; this does, and is answered."""
    operation = next(found for result in description.get_all_operations() if (found := result.ok()).label == label)
    needed, more = ASKED[label]
    kinds = set()

    @given(body=st.fixed_dictionaries(needed | SHORT, optional=more))
    @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
    def send(body):
        answer = operation.Case(body=body, media_type="application/json").call_and_validate(checks=CHECKS)
        told = answer.content.decode()
        assert answer.status_code == 200 or "context" in told, told
        kinds.add(answer.headers["content-type"][0].split(";")[0])

    send()
    assert kinds == {"application/json", "text/event-stream"}
