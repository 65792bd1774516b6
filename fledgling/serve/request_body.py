"""Receives the body of a request, and answers with an error where it cannot be accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fledgling.config import UserError
from fledgling.serve.errors import OLLAMA_PATHS, ErrorResponse, build_error
from fledgling.serve.schemas import BadRequest
from fledgling.serve.worker import QueueFull

BODY_TIMEOUT = 30  # seconds until a body must have arrived
SMALL_BODY_BYTES = 65_536
SMALL_LANES, LARGE_LANES = 4, 1  # requests of a route that are parsed at once, of small and of large bodies
DISCONNECT_POLL_SECONDS = 0.25  # between two checks whether a client that waits for a complete response is connected
MAX_READ_FACTOR = 8  # a body up to this factor above the limit is read to its end, so that its sender gets the 413

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


class ParseLanes:
    """Parses bodies on threads, few at once: they take the interpreter's lock from the engine."""

    def __init__(self) -> None:
        self.small, self.large = anyio.CapacityLimiter(SMALL_LANES), anyio.CapacityLimiter(LARGE_LANES)

    async def parse(self, parse: Callable[[bytes], T], body: bytes) -> T:
        """Returns what `parse` makes of a body; large bodies wait for each other."""
        lane = self.small if len(body) <= SMALL_BODY_BYTES else self.large
        return await run_sync(parse, body, limiter=lane)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Returns the body of a request.

    At most `max_bytes` are kept in memory. A body that is a little larger is read to its end, so that its sender
    receives the error.

    Raises:
        BadRequest: wrong content type, a body that is too large or does not arrive in time.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json" and not _is_other_client(request):
        hint = 'send the header "Content-Type: application/json"'
        raise BadRequest(f"content type {content_type[:80]!r}: expected application/json; {hint}", status=415)
    too_large = BadRequest(f"the body is larger than {max_bytes:,} bytes", code="body_too_large", status=413)
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length) > MAX_READ_FACTOR * max_bytes:
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_READ_FACTOR * max_bytes:
                    raise too_large
                if size <= max_bytes:
                    body += chunk
    except TimeoutError:
        message = f"the body did not arrive within {BODY_TIMEOUT} s"
        raise BadRequest(message, code="body_timeout", status=408, retry_after=1) from None
    if size > max_bytes:
        raise too_large
    return bytes(body)


def _is_other_client(request: Request) -> bool:
    """Tells whether a request on Ollama's routes comes from no page: its clients send a form's content type, or none.

    A page can send those to another site without a preflight request (none: with a Blob that has no type), but not
    without the headers `Origin` and `Sec-Fetch-Site`, which the browser sets.
    """
    from_page = "origin" in request.headers or "sec-fetch-site" in request.headers
    return request.scope["path"] in OLLAMA_PATHS and not from_page


def answer_errors(respond: Handler) -> Handler:
    """Returns a handler that answers what `respond` raises: a bad request, a full queue, a client that left."""

    async def respond_or_error(request: Request) -> Response:
        try:
            return await respond(request)
        except BadRequest as error:
            return bad_request_response(error)
        except UserError as error:  # a conversation that cannot be rendered
            return bad_request_response(BadRequest(str(error)))
        except RecursionError:  # in a schema or in arguments, which are walked after the body was parsed
            return bad_request_response(BadRequest("the body: nested too deeply"))
        except QueueFull as error:
            headers = {"Retry-After": str(error.retry_after)}
            text = "the server is at its limit of requests; try again later"
            return ErrorResponse(build_error(text, "rate_limit_error", None, "queue_full"), 429, headers=headers)
        except ClientDisconnect:
            return Response(status_code=499)

    return respond_or_error


def bad_request_response(error: BadRequest) -> ErrorResponse:
    """Returns the error response for a bad request."""
    body = build_error(error.message, "invalid_request_error", error.param, error.code)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after), "Connection": "close"}
    return ErrorResponse(body, error.status, headers)
