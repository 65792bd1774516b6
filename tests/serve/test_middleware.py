"""The key and the Host header are checked on the ASGI scope, whatever a client writes elsewhere."""

from __future__ import annotations

import asyncio
import socket

import pytest
from starlette.requests import HTTPConnection

from fledgling.serve.app import make_app
from fledgling.serve.page_files import page_paths
from fledgling.serve.service import Service
from fledgling.serve.worker import Worker
from tests.serve.conftest import serving

KEY = "a-long-key"
PRIVATE = ("/v1/models", "/v1/models/tiny", "/metrics", "/openapi.json", "/v1/chat/completions", "/nothing-here")
HOSTILE_HOSTS = (
    b"localhost/health?",
    b"localhost/health#",
    b"localhost:80/health?x=",
    b"x@localhost/health?",
    b"[::1]/health?",
    b"localhost\\health",
    b"/health?",
    b"//health?",
    b"?",
    b"#",
    b"",
    b"\xff/health?",
    b"localhost/page.css?",
)
DISGUISES = (  # of /metrics as something public, and of public paths as something else
    "/health/../metrics",
    "/health/metrics",
    "/health//metrics",
    "//metrics",
    "/metrics/",
    "/METRICS",
    "/Health",
    "/health/",
    "//health",
    "/./health",
    "/health\x00",
    "/health;x",
    "/health?x",
    "/health#x",
    "/health%2f",
    "/ health",
    "\\health",
    "http://localhost/health",
    "http://localhost/metrics",
    "*",
    "",
    "health",
    "/page.css/../metrics",
    "/index.html/",
)


@pytest.fixture(scope="module")
def app(random_engine):
    worker = Worker(random_engine, 2, 2)
    yield make_app(Service(worker, random_engine.tokenizer, "tiny", 1, api_key=KEY, hosts=None))
    worker.close()


def ask(app, path: str = "/metrics", headers=(), kind: str = "http", **changes) -> list[dict]:
    """Sends one connection to the application; returns what it sends."""
    sent: list[dict] = []
    messages = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> dict:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    } | changes
    asyncio.run(app(scope, receive, send))
    return sent


def status(app, *arguments, **named) -> int:
    return ask(app, *arguments, **named)[0]["status"]


@pytest.fixture
def no_url(monkeypatch):
    """Makes `request.url`, which is built from the Host header, an error."""

    def fail(self):
        raise AssertionError("the URL is what the client says")

    monkeypatch.setattr(HTTPConnection, "url", property(fail))


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize("host", HOSTILE_HOSTS)
def test_no_host_header_opens_a_route(app, no_url, path, host):
    assert status(app, path, headers=[(b"host", host)]) == 401


@pytest.mark.parametrize("path", DISGUISES)
def test_a_path_that_is_not_exactly_public_needs_the_key(app, no_url, path):
    assert status(app, path) == 401


def test_public_routes_need_no_key_and_private_ones_take_it(app, no_url):
    assert status(app, "/health") == 200
    assert all(status(app, path) == 200 for path in page_paths())
    assert status(app, "/metrics", headers=[(b"authorization", f"Bearer {KEY}".encode())]) == 200


def test_a_public_path_is_public_for_its_own_methods_only(app, no_url):
    assert status(app, "/health", method="POST") == 401
    assert status(app, "/health", method="OPTIONS") == 401
    assert status(app, "/health", method="HEAD") == 200


@pytest.mark.parametrize(
    ("root", "path"),
    [("/metrics", "/metrics/metrics"), ("/health", "/health/metrics"), ("/x", "/metrics"), ("/health/", "/health/v1")],
)
def test_a_root_path_opens_no_route(app, no_url, root, path):
    """The router takes the root path away before it matches; the gate sees the same path."""
    assert status(app, path, root_path=root) == 401


def test_a_mounted_application_has_its_health(app):
    assert status(app, "/prefix/health", root_path="/prefix") == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/chat/completions"])
def test_a_websocket_is_closed_before_its_path_is_looked_at(app, path):
    assert ask(app, path, kind="websocket", scheme="ws") == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic a-long-key",
        b"Bearer a-long-ke",
        b"Bearer a-long-keyy",
        b"Bearer A-LONG-KEY",
        b"Bearer \xe9",
        b"a-long-key",
        b"Bearer a-long-key, Bearer x",
    ],
)
def test_only_the_key_is_the_key(app, value):
    assert status(app, headers=[(b"authorization", value)]) == 401


def test_no_redirect_is_made_from_the_host_header(random_engine):
    worker = Worker(random_engine, 2, 2)
    try:
        app = make_app(Service(worker, random_engine.tokenizer, "tiny", 1, hosts=None))
        answer = ask(app, "/metrics/", headers=[(b"host", b"evil.example")])
        assert answer[0]["status"] == 404
        assert not any(name == b"location" for name, _ in answer[0]["headers"])
    finally:
        worker.close()


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b"evil.example"],
        [b"localhost", b"evil.example"],
        [b"localhost.evil"],
        [b"[::1"],
        [b"[]"],
        [b"x@localhost"],
        [b"localhost:80@evil.example"],
        [b"localhost:x"],
        [b"localhost:"],
        [b"[::1]evil"],
        [b"localhost:80:80"],
    ],
)
def test_one_host_header_with_a_name_of_this_server_is_needed(random_engine, hosts):
    worker = Worker(random_engine, 2, 2)
    try:
        app = make_app(Service(worker, random_engine.tokenizer, "tiny", 1))
        assert status(app, "/health", headers=[(b"host", host) for host in hosts]) == 421
        assert status(app, "/health", headers=[(b"host", b"[::1]:80")]) == 200
    finally:
        worker.close()


@pytest.mark.parametrize(
    "head",
    [
        "GET /metrics HTTP/1.1\r\nHost: localhost/health?\r\n",
        "GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n",
        "GET /%6detrics HTTP/1.1\r\nHost: /health?\r\n",
        "GET /health/..%2fmetrics HTTP/1.1\r\nHost: localhost\r\n",
        "GET //metrics HTTP/1.0\r\nHost: x/health#\r\n",
        "GET /metrics HTTP/1.0\r\n",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Original-URL: /health\r\nX-Forwarded-Prefix: /health\r\n",
    ],
)
def test_no_request_on_the_wire_opens_a_route(gated_server, head):
    with socket.create_connection(gated_server, timeout=60) as client:
        client.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert client.recv(65536).split(b" ")[1] in (b"400", b"401")


@pytest.fixture(scope="module")
def gated_server(random_engine):
    with serving(random_engine, api_key=KEY, hosts=None) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        yield host, int(port)


ORIGIN = b"https://chat.example"


@pytest.fixture(scope="module")
def shared_app(random_engine):
    worker = Worker(random_engine, 2, 2)
    hosts = ("localhost", "host.docker.internal")
    access = {"api_key": KEY, "hosts": hosts, "origins": (ORIGIN.decode(),)}
    yield make_app(Service(worker, random_engine.tokenizer, "tiny", 1, **access))
    worker.close()


def preflight(app, origin: bytes) -> dict:
    headers = [(b"host", b"localhost"), (b"origin", origin), (b"access-control-request-method", b"POST")]
    headers.append((b"access-control-request-headers", b"authorization, content-type, x-stainless-lang"))
    return ask(app, "/v1/chat/completions", headers, method="OPTIONS")[0]


def test_an_allowed_origin_passes_the_preflight_without_a_key_and_no_other_does(shared_app, app):
    answer = preflight(shared_app, ORIGIN)
    assert answer["status"] == 200 and (b"access-control-allow-origin", ORIGIN) in answer["headers"]
    for origin in (b"https://evil.example", b"null", b"https://chat.example.evil", b"http://chat.example"):
        answer = preflight(shared_app, origin)
        assert answer["status"] == 400 and b"access-control-allow-origin" not in dict(answer["headers"])
    assert preflight(app, ORIGIN)["status"] == 401  # without --allow-origin


def test_an_allowed_origin_still_needs_the_key_and_may_read_the_error(shared_app):
    headers = [(b"host", b"localhost"), (b"origin", ORIGIN)]
    rejected = ask(shared_app, "/v1/models", headers)[0]
    assert rejected["status"] == 401 and (b"access-control-allow-origin", ORIGIN) in rejected["headers"]
    for key in ((b"authorization", f"Bearer {KEY}".encode()), (b"x-api-key", KEY.encode())):
        assert status(shared_app, "/v1/models", [*headers, key]) == 200


def test_an_allowed_host_is_a_name_of_this_server(shared_app):
    for host in (b"host.docker.internal:8000", b"HOST.docker.internal", b"localhost"):
        assert status(shared_app, "/health", [(b"host", host)]) == 200
    assert status(shared_app, "/health", [(b"host", b"docker.internal")]) == 421
