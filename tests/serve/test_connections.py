"""Slow, idle, greedy and broken clients on real sockets: each gets the reason, and others are served."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from fledgling.serve.connections import (
    MAX_CHUNKS,
    MAX_EARLY_BYTES,
    MAX_HEADER_BYTES,
    RETRY_AFTER,
    ConnectionLimits,
    ConnectionTable,
    Phase,
    group_address,
)
from tests.serve.conftest import serving
from tests.waits import WAIT_SECONDS

SHORT = 0.4  # seconds; a client must send within them after it has connected
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(address: str, source: str = "127.0.0.1") -> socket.socket:
    """Opens a connection from a loopback address of its own."""
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_SECONDS, source_address=(source, 0))


def read_to_end(client: socket.socket) -> tuple[int, dict[str, str], dict]:
    """Reads until the server closes; returns status, headers and body of the last response; 0 without one."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            data += part
    start = data.rfind(b"HTTP/1.1 ")
    if start < 0:
        return 0, {}, {}
    head, _, body = data[start:].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, json.loads(body or b"null")


def keeps_its_connection(client: socket.socket) -> bool:
    """Asks for the health on an open connection and reads the answer."""
    client.sendall(HEALTH)
    data = b""
    while not data.endswith(b"}") and (part := client.recv(65536)):
        data += part
    return data.startswith(b"HTTP/1.1 200")


def is_healthy(address: str, source: str = "127.0.0.1") -> bool:
    with connect(address, source) as client:
        client.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return read_to_end(client)[0] == 200


@pytest.fixture(scope="module")
def impatient(random_engine) -> Iterator[str]:
    """A server whose limits are short and whose caps are small."""
    limits = ConnectionLimits(SHORT, SHORT, SHORT, WAIT_SECONDS, SHORT, max_connections=12, max_per_address=8)
    with serving(random_engine, connections=limits) as (address, _):
        yield address


@pytest.fixture(scope="module")
def small(random_engine) -> Iterator[str]:
    """A server with small caps, where no time limit passes during a test."""
    with serving(random_engine, connections=ConnectionLimits(max_connections=12, max_per_address=8)) as (address, _):
        yield address


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"G", "headers_timeout"),
        (b"GET /health HTTP/1.1\r\nHost: loc", "headers_timeout"),
        (HEAD, "headers_timeout"),
        (HEAD + b"Content-Length: 99\r\n\r\n{", "body_timeout"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "body_timeout"),
        (HEAD + b"Content-Length: 99\r\nExpect: 100-continue\r\n\r\n", "body_timeout"),
    ],
    ids=["one byte", "half a header", "no end of headers", "half a body", "half a chunk", "expects 100"],
)
def test_half_a_request_is_a_408_with_retry_after(impatient, sent, code):
    with connect(impatient) as client:
        client.sendall(sent)
        status, headers, body = read_to_end(client)
    assert (status, body["error"]["code"]) == (408, code)
    assert headers["retry-after"] == str(RETRY_AFTER) and headers["connection"] == "close"


@pytest.mark.parametrize("rest", [b"Content-Le", b"Content-Length: 99\r\n\r\n{"], ids=["headers", "body"])
@pytest.mark.parametrize("path", ["/api/chat", "/api/embed?x=1", "/v1/messages", "/v1/completions"])
def test_a_time_limit_is_reported_in_the_form_of_the_path_s_api(impatient, path, rest):
    with connect(impatient) as client:
        client.sendall(HEAD.replace(b"/v1/completions", path.encode()) + rest)
        status, _, body = read_to_end(client)
    assert status == 408
    if path.startswith("/api"):
        assert list(body) == ["error"] and "did not arrive" in body["error"]
    elif path == "/v1/messages":
        assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    else:
        assert body["error"]["code"].endswith("_timeout")


def test_too_many_chunks_are_an_error_in_the_form_of_the_path_s_api(small):
    head = HEAD.replace(b"/v1/completions", b"/api/chat") + b"Transfer-Encoding: chunked\r\n\r\n"
    with connect(small) as client:
        client.sendall(head + b"1\r\n{\r\n" * (MAX_CHUNKS + 2))
        status, _, body = read_to_end(client)
    assert status == 413 and "chunks" in body["error"]


@pytest.mark.parametrize(
    ("length", "statuses"), [(MAX_HEADER_BYTES - 200, {200}), (MAX_HEADER_BYTES + 600, {400, 431})]
)
def test_headers_above_the_limit_are_rejected_and_those_below_read(impatient, length, statuses):
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    with connect(impatient) as client:
        client.sendall(head + b"X-A: " + b"a" * length + b"\r\n\r\n")
        assert read_to_end(client)[0] in statuses


def test_no_byte_prolongs_the_headers_deadline(impatient):
    """One byte at a time, each as soon as the last one was taken, until the server answers."""
    with connect(impatient) as client:
        client.settimeout(0.01)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for _ in range(2000):
            client.sendall(b"a")
            try:
                answer = client.recv(65536)
                break
            except TimeoutError:
                continue
        assert b" 408 " in answer


def test_a_connection_that_sends_nothing_is_closed_without_an_answer(impatient):
    with connect(impatient) as client:
        assert read_to_end(client) == (0, {}, {})


def test_an_idle_connection_is_closed_after_its_answer(impatient):
    with connect(impatient) as client:
        client.sendall(HEALTH)
        assert read_to_end(client)[0] == 200


def test_a_body_that_the_application_does_not_read_has_a_deadline_too(impatient):
    """The answer (404) is sent at once; the rest of the body may not keep the connection."""
    with connect(impatient) as client:
        client.sendall(HEAD.replace(b"/v1/completions", b"/nowhere") + b"Content-Length: 99\r\n\r\n{")
        assert read_to_end(client)[0] == 404


def test_an_answer_that_takes_too_long_is_a_503(random_engine, monkeypatch):
    from fledgling.serve import worker as worker_module

    monkeypatch.setattr(worker_module.Worker, "_run_step", lambda self, arrived: None)  # never generates
    with serving(random_engine, connections=ConnectionLimits(answer_seconds=SHORT)) as (address, worker):
        body = b'{"prompt": "a"}'
        with connect(address) as client:
            client.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status, headers, answer = read_to_end(client)
        worker._active = []
    assert (status, answer["error"]["code"]) == (503, "answer_timeout") and "retry-after" in headers


def test_a_client_that_does_not_read_its_answers_is_cut_off(random_engine):
    """14 MB of answers, more than the kernel keeps for a client with a small buffer; it reads none and is reset."""
    request = b"GET /page.js HTTP/1.1\r\nHost: a\r\n\r\n"
    limits = ConnectionLimits(stall_seconds=SHORT)
    with serving(random_engine, connections=limits, hosts=None) as (address, _):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = address.removeprefix("http://").split(":")
            client.connect((host, int(port)))
            client.sendall(request * (MAX_EARLY_BYTES // len(request)))
            events = select.poll()
            events.register(client, select.POLLHUP)
            assert events.poll(1000 * WAIT_SECONDS), "the server keeps an answer that is never read"
        assert is_healthy(address)


def test_requests_that_arrive_faster_than_they_are_answered_are_not_kept_in_memory(small):
    """Pipelined requests without end; the server keeps MAX_EARLY_BYTES of them, not 100 MB."""
    with connect(small) as client, pytest.raises(ConnectionError):
        for _ in range(1000):
            client.sendall(HEALTH * 2000)
    assert is_healthy(small)


@pytest.mark.parametrize("started", [b"", b"GET /health HT", HEAD + b"Content-Length: 9\r\n\r\n{"])
def test_half_sent_requests_of_any_number_leave_room_for_health(small, started):
    """Five times the cap, from nine addresses: a newest takes the place of the one that waited longest."""
    with contextlib.ExitStack() as stack:
        for number in range(60):
            client = stack.enter_context(connect(small, f"127.0.1.{number % 9 + 1}"))
            client.sendall(started)
            if number % 20 == 0:
                assert is_healthy(small) and is_healthy(small, "127.0.1.1")
        assert is_healthy(small) and is_healthy(small, "127.0.2.1")


def test_an_address_does_not_take_the_place_of_another(small):
    """The idle connection of one address outlives any number of another address's."""
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(connect(small, "127.0.3.1"))
        assert keeps_its_connection(quiet)
        for _ in range(40):
            stack.enter_context(connect(small, "127.0.3.2")).sendall(b"GET")
        assert is_healthy(small, "127.0.3.2")
        assert keeps_its_connection(quiet)


def test_clients_that_left_before_they_give_way_disturb_no_others(small):
    """Half-sent requests that are reset (no FIN): the table closes sockets that are no longer connected."""
    for _ in range(40):
        client = connect(small, "127.0.6.1")
        client.sendall(b"GET /health HT")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert is_healthy(small, "127.0.6.1")


def test_a_half_sent_request_that_gives_way_is_a_503_with_retry_after(small):
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(small, "127.0.4.1"))
        first.sendall(b"GET /health HT")
        assert is_healthy(small)  # so that the bytes have been read
        for _ in range(8):
            stack.enter_context(connect(small, "127.0.4.1")).sendall(b"GET")
        status, headers, body = read_to_end(first)
    assert (status, body["error"]["code"]) == (503, "too_many_connections")
    assert headers["retry-after"] == str(RETRY_AFTER)


def test_an_address_whose_every_connection_is_being_answered_is_a_429(random_engine, monkeypatch):
    """And a server whose every connection is: 503. Other requests of the caps' size are still answered."""
    from fledgling.serve import worker as worker_module

    monkeypatch.setattr(worker_module.Worker, "_run_step", lambda self, arrived: None)
    limits = ConnectionLimits(max_connections=3, max_per_address=2)
    body = b'{"prompt": "a"}'
    with serving(random_engine, connections=limits) as (address, worker), contextlib.ExitStack() as stack:
        for number in range(3):
            client = stack.enter_context(connect(address, f"127.0.5.{number // 2 + 1}"))
            client.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            while worker.load <= number:
                pass
            if number == 1:
                with connect(address, "127.0.5.1") as rejected:
                    status, headers, answer = read_to_end(rejected)
                assert (status, answer["error"]["type"]) == (429, "rate_limit_error") and "retry-after" in headers
        with connect(address, "127.0.5.9") as rejected:
            rejected.sendall(HEALTH)
            status, headers, answer = read_to_end(rejected)
        assert (status, answer["error"]["code"]) == (503, "too_many_connections") and "retry-after" in headers
        worker._active = []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),  # a client that uses TLS
        (b"GET /health\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /" + b"a" * 2 * MAX_HEADER_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * MAX_HEADER_BYTES, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 2 * MAX_HEADER_BYTES + b"\r\n\r\n", 431),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * (MAX_CHUNKS + 1), 413),
    ],
    ids=lambda value: str(value)[:32],
)
def test_a_request_that_cannot_be_parsed_is_an_error_in_the_servers_format(small, sent, status):
    with connect(small) as client:
        client.sendall(sent)
        answered, headers, body = read_to_end(client)
    assert (answered, body["error"]["code"]) == (status, "invalid_http_request")
    assert headers["content-type"] == "application/json" and headers["connection"] == "close"
    assert is_healthy(small)


def test_a_chunked_body_of_ordinary_chunks_is_read(small):
    body = json.dumps({"prompt": "the quick", "max_tokens": 2}).encode()
    chunks = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (body[:9], body[9:]))
    with connect(small) as client:
        client.sendall(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert read_to_end(client)[0] == 200


def test_pipelined_requests_are_answered_in_order(small):
    with connect(small) as client:
        client.sendall(HEALTH * 3 + HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        data = b""
        while part := client.recv(65536):
            data += part
    assert data.count(b"HTTP/1.1 200") == 4


def test_the_table_counts_what_is_open_and_nothing_else(small):
    for _ in range(30):
        assert is_healthy(small)
    with connect(small) as client:
        client.sendall(b"GET")
    assert is_healthy(small)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1", "127.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("", "", True),
    ],
)
def test_an_ipv6_network_of_64_bits_is_one_address(one, other, same):
    assert (group_address(one) == group_address(other)) is same


class _Connection:
    """A connection of the table without a socket."""

    def __init__(self, table: ConnectionTable, address: str, phase: Phase) -> None:
        self.table, self.address, self.phase = table, address, phase

    def give_way(self) -> None:
        self.phase = Phase.CLOSING
        self.table.discard(self)


def test_the_longest_waiting_connection_of_the_busiest_address_gives_way_first():
    table = ConnectionTable(ConnectionLimits(max_connections=4, max_per_address=3))
    made = [
        _Connection(table, "a", Phase.ANSWER),
        _Connection(table, "a", Phase.BODY),
        _Connection(table, "a", Phase.IDLE),
        _Connection(table, "b", Phase.IDLE),
    ]
    assert [table.add(connection) for connection in made] == [0, 0, 0, 0]
    assert table.add(_Connection(table, "c", Phase.HEADERS)) == 0 and made[1].phase is Phase.CLOSING
    assert table.add(_Connection(table, "c", Phase.HEADERS)) == 0 and made[2].phase is Phase.CLOSING
    assert made[0].phase is Phase.ANSWER and made[3].phase is Phase.IDLE and table.count == 4


def test_a_connection_that_enters_another_phase_waits_again():
    table = ConnectionTable(ConnectionLimits(max_connections=4, max_per_address=2))
    first, second = (_Connection(table, "a", Phase.HEADERS) for _ in range(2))
    assert table.add(first) == table.add(second) == 0
    first.phase = Phase.ANSWER
    table.update(first)
    first.phase = Phase.IDLE
    table.update(first)
    assert table.add(_Connection(table, "a", Phase.HEADERS)) == 0
    assert second.phase is Phase.CLOSING and first.phase is Phase.IDLE


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.HEADERS, Phase.BODY])
def test_a_new_connection_never_gives_way_to_older_connections_of_any_phase(phase):
    table = ConnectionTable(ConnectionLimits(max_connections=8, max_per_address=4))
    for _ in range(4):
        table.add(_Connection(table, "a", phase))
    newest = _Connection(table, "a", Phase.HEADERS)
    assert table.add(newest) == 0
    for _ in range(3):
        assert table.add(_Connection(table, "a", phase)) == 0
    assert newest.phase is Phase.HEADERS
