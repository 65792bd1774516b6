"""A server of the page whose answers fail as a test says: rejected, cut after any byte, slow, empty, or restarted.

It serves the page's own files with their policy and checks requests by the classes and the rule that the real server
uses, so a request that the real server rejects is rejected here. Answers are made up, each with a text of its own.
"""

from __future__ import annotations

import http.server
import json
import socket
import struct
import threading
from collections import deque
from typing import Any

from fledgling.config import UserError
from fledgling.serve.errors import build_error
from fledgling.serve.page_files import PAGE, PAGE_HEADERS, page_paths
from fledgling.serve.schemas import BadRequest, ChatRequest, parse_body
from fledgling.text.conversation import check_conversation
from tests.waits import WAIT_SECONDS, wait_for

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "txt": "text/plain"}


def make_stream(text: str, thought: str = "") -> bytes:
    """Returns a complete answer as the server streams it, a chunk for each word, with log-probabilities."""

    def line(delta: dict[str, Any], reason: str | None = None, tokens: list | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": {"content": tokens or []}}
        return f"data: {json.dumps({'id': 'x', 'choices': [choice]}, ensure_ascii=False)}\n\n"

    words = [f"{word} " for word in text.split()]
    token = {"logprob": -0.5, "bytes": [], "top_logprobs": []}
    lines = [line({"role": "assistant", "content": ""})]
    lines += [line({"content": "", "reasoning_content": f"{word} "}) for word in thought.split()]
    lines += [line({"content": word}, tokens=[{"token": word, **token}]) for word in words]
    lines.append(line({}, "stop"))
    usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
    lines += [f"data: {json.dumps({'id': 'x', 'choices': [], 'usage': usage})}\n\n", "data: [DONE]\n\n"]
    return "".join(lines).encode()


class FaultyServer:
    """A server on loopback. `faults` holds what happens to the next requests for an answer, in order:

    None or nothing (a complete answer), an HTTP status, ("cut", byte), ("hang", byte), "empty", "html".
    `sent` has every complete answer, `bodies` every request.
    """

    def __init__(self) -> None:
        self.faults: deque[Any] = deque()
        self.sent: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.answers = 0
        self.models = ["faulty"]
        self.released = threading.Event()  # ends answers that hang
        self.server: http.server.ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, on the port it had before."""
        self.released = threading.Event()
        handler = type("Handler", (_Handler,), {"faulty": self})
        self.server = _Server(("127.0.0.1", self.port), handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def wait_until_faults_are_taken(self) -> None:
        """Waits until requests have taken every fault: one that is stopped on its way leaves its fault to the next."""
        wait_for(lambda: not self.faults)

    def release(self) -> None:
        """Ends the answers that hang now."""
        self.released.set()
        self.released = threading.Event()

    def stop(self) -> None:
        """Closes every connection at once and stops listening."""
        assert self.server is not None
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        for connection in self.server.connections:
            reset(connection)


class _Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the test or the browser has closed."""


def reset(connection: socket.socket) -> None:
    """Closes a connection with a reset."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        pass  # it is closed


class _Handler(http.server.BaseHTTPRequestHandler):
    faulty: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Logs nothing."""

    def respond(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def respond_json(self, status: int, body: Any) -> None:
        self.respond(status, json.dumps(body).encode(), "application/json", {"Retry-After": "1"})

    def do_GET(self) -> None:
        name = page_paths().get(self.path.partition("?")[0])
        if name:
            self.respond(200, (PAGE / name).read_bytes(), TYPES[name.rsplit(".", 1)[1]], PAGE_HEADERS)
        elif self.path == "/v1/models":
            facts = {"max_model_len": 1000, "examples": ["What is 2 + 3?"]}
            self.respond_json(200, {"data": [{"id": name, **facts} for name in self.faulty.models]})
        else:
            self.respond_json(404, build_error("no such route", "invalid_request_error"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        faulty = self.faulty
        try:
            request = parse_body(ChatRequest, body)
            messages = [message.to_conversation_message() for message in request.messages]
            check_conversation({"messages": messages})  # without the rule that joins what does not alternate
        except (BadRequest, UserError) as error:
            return self.respond_json(400, build_error(str(error), "invalid_request_error"))
        if request.model not in ("", *faulty.models):
            return self.respond_json(404, build_error("no such model", "invalid_request_error", "model"))
        faulty.bodies.append(json.loads(body))
        released = faulty.released  # before the fault is taken, which a test may wait for
        fault = faulty.faults.popleft() if faulty.faults else None
        if isinstance(fault, int):
            return self.respond_json(fault, build_error(f"fault {fault}", "rate_limit_error", None, "queue_full"))
        if fault == "html":
            return self.respond(200, b"<html>the proxy's own page</html>", "text/html")
        faulty.answers += 1
        text = "" if fault == "empty" else f"answer number {faulty.answers} with *some* words and `code`."
        stream = make_stream(text)
        kind, byte = fault if isinstance(fault, tuple) else (None, len(stream))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, min(byte, len(stream)), 700):
            piece = stream[start : min(start + 700, byte)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if kind == "hang":
            released.wait(2 * WAIT_SECONDS)  # longer than any wait of a test
        if kind:
            self.close_connection = True
            return reset(self.connection)
        faulty.sent.append(text)
        self.wfile.write(b"0\r\n\r\n")
        return None
