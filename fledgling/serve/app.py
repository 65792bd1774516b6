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
from fledgling.serve.metrics import render_metrics
from fledgling.serve.middleware import AccessMiddleware
from fledgling.serve.openapi import build_openapi
from fledgling.serve.responses import build_error
from fledgling.serve.schemas import BadRequest, parse_body
from fledgling.serve.service import ParsedRequest, Service
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, JobHandle, QueueFull

PAGE = Path(__file__).parent / "page"
PAGE_FILES = ("index.html", "page.css", "page.js", "store.js", "api.js", "message.js", "markdown.js")
PAGE_ROUTES = {"/": "index.html", **{f"/{name}": name for name in PAGE_FILES}}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BODY_TIMEOUT = 30  # seconds that a body may take
MAX_READ_FACTOR = 8  # times the largest body: what is larger is refused unread
DISCONNECT_POLL_SECONDS = (
    0.25  # seconds between two looks whether a client that waits for a whole answer is still there
)


def make_app(service: Service) -> AccessMiddleware:
    """The ASGI application of a service."""
    routes = [
        Route("/v1/chat/completions", _completion_handler(service, chat), methods=["POST"]),
        Route("/v1/completions", _completion_handler(service, completion), methods=["POST"]),
        Route("/v1/models", _json(lambda request: {"object": "list", "data": [service.describe_model()]})),
        Route("/v1/models/{name:path}", _json(lambda request: service.describe_model(request.path_params["name"]))),
        Route("/health", _json(lambda request: service.describe_health())),
        Route("/metrics", _metrics(service)),
        Route("/openapi.json", _json(lambda request: build_openapi())),
        *(Route(path, _file(name)) for path, name in PAGE_ROUTES.items()),
    ]
    handlers = {404: _no_such_route, 405: _no_such_route, 500: _server_error}
    return AccessMiddleware(
        Starlette(routes=routes, exception_handlers=handlers), service, public=("/health", *PAGE_ROUTES)
    )


def _json(answer: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        try:
            return JSONResponse(answer(request))
        except BadRequest as problem:
            return bad_request_response(problem)

    return respond


def _metrics(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        return Response(render_metrics(service.worker), media_type="text/plain; version=0.0.4; charset=utf-8")

    return respond


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    async def respond(request: Request) -> Response:
        return FileResponse(PAGE / name, headers={**headers, "Cache-Control": "no-cache"})

    return respond


def _completion_handler(service: Service, kind: Any) -> Callable[[Request], Awaitable[Response]]:
    """The handler of one kind of completion: a module with Request, ask, whole and Chunks."""
    post = EventBridge()

    async def respond(request: Request) -> Response:
        try:
            body = await _body(request, service.max_body_bytes)
            asked: ParsedRequest = await run_in_threadpool(_parse_request, kind, service, body)
            events = RequestEvents(service, asked, post)
        except BadRequest as problem:
            return bad_request_response(problem)
        except QueueFull as problem:
            again = {"Retry-After": str(problem.retry_after)}
            text = "the server is at its limit of requests; try again later"
            return JSONResponse(build_error(text, "rate_limit_error", None, "queue_full"), 429, headers=again)
        except ClientDisconnect:
            return Response(status_code=499)
        if asked.stream:
            lines = _lines(events, kind.Chunks(service, asked))
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return await _collect_response(request, service, kind, asked, events)

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
    if announced.isdecimal() and int(announced) > MAX_READ_FACTOR * most:
        raise too_large
    found, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_READ_FACTOR * most:
                    raise too_large
                if size <= most:
                    found += chunk
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {BODY_TIMEOUT} s", code="body_timeout", status=408) from None
    if size > most:
        raise too_large
    return bytes(found)


def _parse_request(kind: Any, service: Service, body: bytes) -> ParsedRequest:
    """Check a body and turn it into jobs; a conversation that cannot be rendered is the client's mistake."""
    try:
        return kind.ask(service, parse_body(kind.Request, body))
    except UserError as problem:
        raise BadRequest(str(problem)) from None


class EventBridge:
    """Events on their way from the worker's thread to the event loop, which is woken once for all of a step: each
    waking takes the interpreter's lock from the thread that computes."""

    def __init__(self) -> None:
        self.pending: deque[tuple[asyncio.Queue, tuple[int, ChoiceEvent]]] = deque()
        self.wakeup_scheduled = False

    def put(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue, event: tuple[int, ChoiceEvent]) -> None:
        """From any thread: have the loop put an event into a queue."""
        self.pending.append((queue, event))
        if not self.wakeup_scheduled:
            self.wakeup_scheduled = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self.wakeup_scheduled = False  # first: whoever puts from now on rings again
        while self.pending:
            queue, event = self.pending.popleft()
            queue.put_nowait(event)


class RequestEvents:
    """The jobs of one request under way: an asynchronous iterator of (choice, event) until all have ended.

    Leaving it in any way, also by the client's disconnection, cancels what is still under way.
    """

    def __init__(self, service: Service, asked: ParsedRequest, post: EventBridge) -> None:
        self.loop, self.post = asyncio.get_running_loop(), post
        self.queue: asyncio.Queue[tuple[int, ChoiceEvent]] = asyncio.Queue()
        self.handles: list[JobHandle] = []
        self.open_choices = sum(job.n for job in asked.jobs)
        try:
            for first, job in zip(asked.first_choice_indices, asked.jobs, strict=True):
                self.handles.append(service.worker.submit(job, self._make_emit(first)))
        except QueueFull:
            self.cancel()
            raise

    def _make_emit(self, first: int) -> Callable[[ChoiceEvent], None]:
        def tell(event: ChoiceEvent) -> None:  # on the worker's thread
            self.post.put(self.loop, self.queue, (first + event.choice, event))

        return tell

    def cancel(self) -> None:
        """Free the rows of whatever has not ended."""
        for handle in self.handles:
            handle.cancel()

    async def next(self, seconds: float | None = None) -> tuple[int, ChoiceEvent] | None:
        """The next event; None when there are no more, raises TimeoutError after `seconds` without one."""
        if not self.open_choices:
            return None
        choice, event = await asyncio.wait_for(self.queue.get(), seconds)
        self.open_choices -= isinstance(event, ChoiceFinished)
        return choice, event


async def _lines(events: RequestEvents, chunks: Any) -> AsyncIterator[str]:
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


async def _collect_response(
    request: Request, service: Service, kind: Any, asked: ParsedRequest, events: RequestEvents
) -> Response:
    """Collect all choices, looking now and then whether the client still waits."""
    try:
        while True:
            try:
                told = await events.next(DISCONNECT_POLL_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    return Response(status_code=499)
                continue
            if told is None:
                break
            choice, event = told
            if isinstance(event, ChoiceFinished) and event.finish_reason == "error":
                return JSONResponse(build_error("the engine failed on this batch", "server_error"), 500)
            asked.choices[choice].update(event)
        return JSONResponse(kind.whole(service, asked))
    finally:
        events.cancel()


def bad_request_response(problem: BadRequest) -> JSONResponse:
    """OpenAI's error body for a bad request."""
    body = build_error(problem.message, "invalid_request_error", problem.param, problem.code)
    return JSONResponse(body, problem.status)


async def _no_such_route(request: Request, problem: Any) -> Response:
    text = f"{request.method} {request.url.path[:200]}: no such route"
    code = "method_not_allowed" if problem.status_code == 405 else "not_found"
    return JSONResponse(build_error(text, "invalid_request_error", None, code), problem.status_code, problem.headers)


async def _server_error(request: Request, problem: Exception) -> Response:
    return JSONResponse(build_error("the server failed; its log says why", "server_error"), 500)
