"""The ASGI application: OpenAI's routes, the page, health and metrics.

Everything that arrives is untrusted. A request passes, in this order, the checks of host and key (middleware.py),
content type, size, shape (schemas.py) and length; then it becomes jobs of the worker, and this module only carries
events to the client. A client that disconnects cancels its jobs. Tokenization runs on a thread pool and generation on
the worker's thread: the event loop does not compute.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fledgling.infer.mcp_tools import McpTools
from fledgling.serve import chat, completion, messages_api, ollama_api, ollama_models, responses_api
from fledgling.serve.embeddings import embeddings_handler
from fledgling.serve.errors import ErrorResponse, build_error
from fledgling.serve.json_body import encode_json
from fledgling.serve.mcp_api import make_mcp_routes
from fledgling.serve.metrics import render_metrics
from fledgling.serve.middleware import AccessMiddleware
from fledgling.serve.ollama_models import EmbeddingsPromptRequest, EmbedRequest
from fledgling.serve.openapi import build_openapi
from fledgling.serve.page_files import make_page_routes
from fledgling.serve.request_body import (
    DISCONNECT_POLL_SECONDS,
    Handler,
    ParseLanes,
    answer_errors,
    bad_request_response,
    read_body,
)
from fledgling.serve.responses import FAILURES
from fledgling.serve.schemas import BadRequest, parse_body
from fledgling.serve.service import Endpoint, ParsedRequest, ResponseChunks, Service, StreamForm, find_service
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, JobHandle, QueueFull

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx passes each chunk on at once


def make_app(service: Service, others: Sequence[Service] = (), mcp: McpTools | None = None) -> AccessMiddleware:
    """Returns the ASGI application of a service.

    Completions and the list of models know the `others` too, by the name of their model. Embeddings, health and metrics
    are those of `service`, and so are the limits of access. The page offers the tools of `mcp`.
    """
    services = (service, *others)
    public = [
        Route("/health", _json_handler(lambda request: service.describe_health())),
        *make_page_routes(),
    ]
    routes = [
        *public,
        Route("/v1/chat/completions", _completion_handler(services, chat.ENDPOINT), methods=["POST"]),
        Route("/v1/completions", _completion_handler(services, completion.ENDPOINT), methods=["POST"]),
        Route("/v1/responses", _completion_handler(services, responses_api.ENDPOINT), methods=["POST"]),
        Route("/v1/messages", _completion_handler(services, messages_api.ENDPOINT), methods=["POST"]),
        Route("/v1/messages/count_tokens", messages_api.count_tokens_handler(service), methods=["POST"]),
        Route("/v1/embeddings", embeddings_handler(service), methods=["POST"]),
        Route("/api/chat", _completion_handler(services, ollama_api.CHAT), methods=["POST"]),
        Route("/api/generate", _completion_handler(services, ollama_api.GENERATE), methods=["POST"]),
        Route("/api/tags", _json_handler(lambda request: ollama_models.describe_tags(services))),
        Route("/api/ps", _json_handler(lambda request: ollama_models.describe_running(services))),
        Route("/api/show", ollama_models.show_handler(services), methods=["POST"]),
        Route("/api/embed", ollama_models.embed_handler(service, EmbedRequest), methods=["POST"]),
        Route("/api/embeddings", ollama_models.embed_handler(service, EmbeddingsPromptRequest), methods=["POST"]),
        Route("/api/version", _json_handler(lambda request: ollama_models.describe_version())),
        Route("/v1/models", _json_handler(lambda request: _describe_models(services))),
        Route("/v1/models/{name:path}", _json_handler(partial(_describe_model, services))),
        *make_mcp_routes(mcp),
        Route("/metrics", _metrics_handler(service)),
        Route("/openapi.json", _json_handler(lambda request: build_openapi())),
    ]
    handlers: dict[Any, Any] = {404: _no_such_route, 405: _no_such_route, 500: _server_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # its Location would be made from the client's Host header
    return AccessMiddleware(app, service, public)


def _describe_models(services: Sequence[Service]) -> dict[str, Any]:
    return {"object": "list", "data": [service.describe_model() for service in services]}


def _describe_model(services: Sequence[Service], request: Request) -> dict[str, Any]:
    name = request.path_params["name"]
    return find_service(services, name).describe_model(name)


def _json_handler(build_body: Callable[[Request], dict[str, Any]]) -> Handler:
    async def respond(request: Request) -> Response:
        try:
            return JSONResponse(build_body(request))
        except BadRequest as error:
            return bad_request_response(error)

    return respond


def _metrics_handler(service: Service) -> Handler:
    async def respond(request: Request) -> Response:
        return Response(render_metrics(service), media_type="text/plain; version=0.0.4; charset=utf-8")

    return respond


def _completion_handler(services: Sequence[Service], endpoint: Endpoint) -> Handler:
    bridge, lanes = EventBridge(), ParseLanes()

    async def respond(request: Request) -> Response:
        body = await read_body(request, services[0].max_body_bytes)
        service, parsed = await lanes.parse(partial(_parse_request, endpoint, services), body)
        events = RequestEvents(service, parsed, bridge)
        service.ignored_fields.add(parsed.ignored_fields)
        if parsed.stream:
            lines = _stream_lines(events, endpoint.chunks(service, parsed), endpoint.stream)
            return StreamingResponse(lines, media_type=endpoint.stream.media_type, headers=STREAM_HEADERS)
        return await _collect_response(request, service, endpoint, parsed, events)

    return answer_errors(respond)


def _parse_request(endpoint: Endpoint, services: Sequence[Service], body: bytes) -> tuple[Service, ParsedRequest]:
    """Validates a body and makes its jobs. Raises BadRequest or UserError."""
    validated = parse_body(endpoint.body, body)
    service = find_service(services, validated.model)
    parsed = endpoint.parse_request(service, validated)
    parsed.ignored_fields = validated.ignored_fields
    return service, parsed


class EventBridge:
    """Carries events from the worker's thread to the event loop, with one wakeup for all events of a step: each wakeup
    takes the interpreter lock from the thread that computes."""

    def __init__(self) -> None:
        self.pending: deque[tuple[asyncio.Queue, tuple[int, ChoiceEvent]]] = deque()
        self.wakeup_scheduled = False

    def put(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue, event: tuple[int, ChoiceEvent]) -> None:
        """Makes the loop put an event into a queue; may be called from any thread."""
        self.pending.append((queue, event))
        if not self.wakeup_scheduled:
            self.wakeup_scheduled = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self.wakeup_scheduled = False  # first: an event that is put from now on schedules another wakeup
        while self.pending:
            queue, event = self.pending.popleft()
            queue.put_nowait(event)


class RequestEvents:
    """Submits the jobs of a request and receives their events, as (choice, event), until all choices have ended.

    Raises QueueFull where the worker rejects a job. Call `cancel` when the client has disconnected.
    """

    def __init__(self, service: Service, parsed: ParsedRequest, bridge: EventBridge) -> None:
        self.loop, self.bridge = asyncio.get_running_loop(), bridge
        self.queue: asyncio.Queue[tuple[int, ChoiceEvent]] = asyncio.Queue()
        self.handles: list[JobHandle] = []
        self.open_choices = sum(job.n for job in parsed.jobs)
        try:
            for first_choice, job in zip(parsed.first_choice_indices, parsed.jobs, strict=True):
                self.handles.append(service.worker.submit(job, self._make_emit(first_choice)))
        except QueueFull:
            self.cancel()
            raise

    def _make_emit(self, first_choice: int) -> Callable[[ChoiceEvent], None]:
        def emit(event: ChoiceEvent) -> None:  # on the worker's thread
            self.bridge.put(self.loop, self.queue, (first_choice + event.choice, event))

        return emit

    def cancel(self) -> None:
        """Cancels the jobs that have not ended."""
        for handle in self.handles:
            handle.cancel()

    async def next(self, timeout: float | None = None) -> tuple[int, ChoiceEvent] | None:
        """Returns the next event, None after the last; raises TimeoutError after `timeout` seconds without one."""
        if not self.open_choices:
            return None
        choice, event = await asyncio.wait_for(self.queue.get(), timeout)
        self.open_choices -= isinstance(event, ChoiceFinished)
        return choice, event


async def _stream_lines(events: RequestEvents, chunks: ResponseChunks, form: StreamForm) -> AsyncIterator[str]:
    """Yields the chunks of a stream as an endpoint writes them."""
    try:
        for chunk in chunks.start():
            yield form.write(chunk)
        while (choice_event := await events.next()) is not None:
            for chunk in chunks.chunks_of_event(*choice_event):
                yield form.write(chunk)
        for chunk in chunks.end():
            yield form.write(chunk)
        yield form.last
    finally:
        events.cancel()


async def _collect_response(
    request: Request, service: Service, endpoint: Endpoint, parsed: ParsedRequest, events: RequestEvents
) -> Response:
    """Waits for all choices, checking at intervals whether the client is still connected, and returns the response."""
    loop = asyncio.get_running_loop()
    next_check = loop.time() + DISCONNECT_POLL_SECONDS
    try:
        while True:
            if loop.time() >= next_check:
                if await request.is_disconnected():
                    return Response(status_code=499)
                next_check = loop.time() + DISCONNECT_POLL_SECONDS
            try:
                choice_event = await events.next(next_check - loop.time())
            except TimeoutError:
                continue
            if choice_event is None:
                break
            choice, event = choice_event
            if isinstance(event, ChoiceFinished) and event.finish_reason in FAILURES:
                message, kind, status = FAILURES[event.finish_reason]
                return ErrorResponse(build_error(message, kind), status)
            parsed.choices[choice].update(event)
        body = await run_sync(lambda: encode_json(endpoint.build_response(service, parsed)))
        return Response(body, media_type="application/json")
    finally:
        events.cancel()


async def _no_such_route(request: Request, error: Any) -> Response:
    text = f"{request.method} {request.scope['path'][:200]}: no such route"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    if allowed := (error.headers or {}).get("Allow"):
        text += f" for this method; expected {allowed}"
    return ErrorResponse(build_error(text, "invalid_request_error", None, code), error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    return ErrorResponse(build_error("the server failed; its log has the reason", "server_error"), 500)
