"""The HTTP side: OpenAI's routes, the page, health and metrics; limits, key and host checked before anything else.

The one idea: everything that arrives is hostile until it has passed: host and key (`gate.py`), content type, size,
shape (`requests.py`), length. Then it is a `Job` of the worker, and this file only carries events to the client. Who
leaves cancels its job. Tokenizing runs on a thread, generation on the worker's: the event loop never computes.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fledgling.config import UserError
from fledgling.serve import chat, completion
from fledgling.serve.answers import error_body
from fledgling.serve.description import describe
from fledgling.serve.gate import Gate
from fledgling.serve.metrics import exposition
from fledgling.serve.requests import BadRequest, read
from fledgling.serve.service import Asked, Service
from fledgling.serve.worker import Done, Event, Full, Handle

PAGE = Path(__file__).parent / "page"
FILES = ("index.html", "page.css", "page.js", "store.js", "api.js", "message.js", "markdown.js")
ROUTES = {"/": "index.html", **{f"/{name}": name for name in FILES}}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ARRIVAL = 30  # seconds that a body may take
HEARD = 8  # times the largest body: what is larger is refused unread
LOOK_AROUND = 0.25  # seconds between two looks whether a client that waits for a whole answer is still there


def make_app(service: Service) -> Gate:
    """The ASGI application of a service."""
    routes = [
        Route("/v1/chat/completions", _posted(service, chat), methods=["POST"]),
        Route("/v1/completions", _posted(service, completion), methods=["POST"]),
        Route("/v1/models", _json(lambda request: {"object": "list", "data": [service.describe()]})),
        Route("/v1/models/{name:path}", _json(lambda request: service.describe(request.path_params["name"]))),
        Route("/health", _json(lambda request: service.health())),
        Route("/metrics", _metrics(service)),
        Route("/openapi.json", _json(lambda request: describe())),
        *(Route(path, _file(name)) for path, name in ROUTES.items()),
    ]
    handlers = {404: _wrong_address, 405: _wrong_address, 500: _broken}
    return Gate(Starlette(routes=routes, exception_handlers=handlers), service, public=("/health", *ROUTES))


def _json(answer: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        try:
            return JSONResponse(answer(request))
        except BadRequest as problem:
            return refusal(problem)

    return respond


def _metrics(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        return Response(exposition(service.worker), media_type="text/plain; version=0.0.4; charset=utf-8")

    return respond


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    async def respond(request: Request) -> Response:
        return FileResponse(PAGE / name, headers={**headers, "Cache-Control": "no-cache"})

    return respond


def _posted(service: Service, kind: Any) -> Callable[[Request], Awaitable[Response]]:
    """The handler of one kind of completion: a module with Request, ask, whole and Chunks."""
    post = Post()

    async def respond(request: Request) -> Response:
        try:
            body = await _body(request, service.body_bytes)
            asked: Asked = await run_in_threadpool(_understand, kind, service, body)
            events = Events(service, asked, post)
        except BadRequest as problem:
            return refusal(problem)
        except Full as problem:
            again = {"Retry-After": str(problem.retry_after)}
            text = "the server is at its limit of requests; try again later"
            return JSONResponse(error_body(text, "rate_limit_error", None, "queue_full"), 429, headers=again)
        except ClientDisconnect:
            return Response(status_code=499)
        if asked.stream:
            lines = _lines(events, kind.Chunks(service, asked))
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return await _whole(request, service, kind, asked, events)

    return respond


async def _body(request: Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are kept; raises BadRequest for a wrong content type, and for a body
    that is larger or does not arrive. One that is a little larger is read to its end, so that its sender hears why.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest(f"content type {kind[:80]!r}: expected application/json", status=415)
    too_large = BadRequest(f"the body is larger than {most:,} bytes", code="body_too_large", status=413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > HEARD * most:
        raise too_large
    found, size = bytearray(), 0
    try:
        async with asyncio.timeout(ARRIVAL):
            async for chunk in request.stream():
                size += len(chunk)
                if size > HEARD * most:
                    raise too_large
                if size <= most:
                    found += chunk
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {ARRIVAL} s", code="body_timeout", status=408) from None
    if size > most:
        raise too_large
    return bytes(found)


def _understand(kind: Any, service: Service, body: bytes) -> Asked:
    """Check a body and turn it into jobs; a conversation that cannot be rendered is the client's mistake."""
    try:
        return kind.ask(service, read(kind.Request, body))
    except UserError as problem:
        raise BadRequest(str(problem)) from None


class Post:
    """Events on their way from the worker's thread to the event loop, which is woken once for all of a step: each
    waking takes the interpreter's lock from the thread that computes."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[asyncio.Queue, tuple[int, Event]]] = deque()
        self.rung = False

    def put(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue, event: tuple[int, Event]) -> None:
        """From any thread: have the loop put an event into a queue."""
        self.waiting.append((queue, event))
        if not self.rung:
            self.rung = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self.rung = False  # first: whoever puts from now on rings again
        while self.waiting:
            queue, event = self.waiting.popleft()
            queue.put_nowait(event)


class Events:
    """The jobs of one request under way: an asynchronous iterator of (choice, event) until all have ended.

    Leaving it in any way, also by the client's disconnection, cancels what is still under way.
    """

    def __init__(self, service: Service, asked: Asked, post: Post) -> None:
        self.loop, self.post = asyncio.get_running_loop(), post
        self.queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.handles: list[Handle] = []
        self.open = sum(job.n for job in asked.jobs)
        try:
            for first, job in zip(asked.first_choices, asked.jobs, strict=True):
                self.handles.append(service.worker.submit(job, self._teller(first)))
        except Full:
            self.cancel()
            raise

    def _teller(self, first: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:  # on the worker's thread
            self.post.put(self.loop, self.queue, (first + event.choice, event))

        return tell

    def cancel(self) -> None:
        """Free the rows of whatever has not ended."""
        for handle in self.handles:
            handle.cancel()

    async def next(self, seconds: float | None = None) -> tuple[int, Event] | None:
        """The next event; None when there are no more, raises TimeoutError after `seconds` without one."""
        if not self.open:
            return None
        choice, event = await asyncio.wait_for(self.queue.get(), seconds)
        self.open -= isinstance(event, Done)
        return choice, event


async def _lines(events: Events, chunks: Any) -> AsyncIterator[str]:
    """Server-sent events: every chunk one `data:` line, [DONE] last."""
    try:
        for chunk in chunks.first():
            yield _line(chunk)
        while (told := await events.next()) is not None:
            for chunk in chunks.of(*told):
                yield _line(chunk)
        for chunk in chunks.last():
            yield _line(chunk)
        yield "data: [DONE]\n\n"
    finally:
        events.cancel()


def _line(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


async def _whole(request: Request, service: Service, kind: Any, asked: Asked, events: Events) -> Response:
    """Collect all choices, looking now and then whether the client still waits."""
    try:
        while True:
            try:
                told = await events.next(LOOK_AROUND)
            except TimeoutError:
                if await request.is_disconnected():
                    return Response(status_code=499)
                continue
            if told is None:
                break
            choice, event = told
            if isinstance(event, Done) and event.reason == "error":
                return JSONResponse(error_body("the engine failed on this batch", "server_error"), 500)
            asked.answers[choice].take(event)
        return JSONResponse(kind.whole(service, asked))
    finally:
        events.cancel()


def refusal(problem: BadRequest) -> JSONResponse:
    """OpenAI's error body for a bad request."""
    body = error_body(problem.message, "invalid_request_error", problem.param, problem.code)
    return JSONResponse(body, problem.status)


async def _wrong_address(request: Request, problem: Any) -> Response:
    text = f"{request.method} {request.url.path[:200]}: no such route"
    code = "method_not_allowed" if problem.status_code == 405 else "not_found"
    return JSONResponse(error_body(text, "invalid_request_error", None, code), problem.status_code, problem.headers)


async def _broken(request: Request, problem: Exception) -> Response:
    return JSONResponse(error_body("the server failed; its log says why", "server_error"), 500)
