"""POST /v1/embeddings: a vector for each text, the mean of the model's last hidden states over the text's tokens.

The model was trained to continue texts and not to compare them, so the vectors group texts coarsely; they are
normalized to length 1, and no state is learned for them. Each text is one task of the worker, computed in pieces
between the steps of the running requests (tasks.py).
"""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Annotated, Any, Literal

import torch
from anyio.to_thread import run_sync
from pydantic import Field, StrictInt
from starlette.requests import Request
from starlette.responses import Response

from fledgling.infer.engine import Engine
from fledgling.model.cache import CacheRow
from fledgling.serve.errors import ErrorResponse, build_error
from fledgling.serve.json_body import encode_json
from fledgling.serve.request_body import DISCONNECT_POLL_SECONDS, Handler, ParseLanes, answer_errors, read_body
from fledgling.serve.schemas import BadRequest, ContextText, IgnoringBody, Name, PromptIds, parse_body
from fledgling.serve.service import Service
from fledgling.serve.tasks import Pieces, TaskHandle

MAX_TEXTS = 2048  # of one request, as in OpenAI's API
FAILED = ErrorResponse(build_error("the engine failed on this text", "server_error"), 500)
CPU_PIECE_TOKENS, GPU_PIECE_TOKENS = 64, 1024  # of a text, computed between two steps
QUEUE_SHARE = 4  # of the places in the queue, a request's texts take one in so many at a time


class EmbeddingsRequest(IgnoringBody):
    """Body of POST /v1/embeddings."""

    model: Name = ""
    input: (
        ContextText
        | Annotated[list[ContextText], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)]
        | PromptIds
        | Annotated[list[PromptIds], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: StrictInt | None = None

    def input_list(self) -> list[str | list[int]]:
        """Returns the texts, one or several, each as text or token ids."""
        value: Any = self.input
        return [value] if isinstance(value, str) or isinstance(value[0], int) else list(value)


def embed_tokens(engine: Engine, tokens: list[int]) -> Pieces:
    """Computes the hidden states of a text in pieces, with a cache of its own, and returns its vector.

    The vector is the mean of the hidden states of the tokens after bos, with length 1: C numbers.
    """
    ids, cache, row = [engine.tokenizer.bos, *tokens], engine.runner.new_cache(), CacheRow()
    size = CPU_PIECE_TOKENS if engine.device.type == "cpu" else GPU_PIECE_TOKENS
    total = torch.zeros(engine.model.config.width)
    for start in range(0, len(ids), size):
        if start:
            yield
        hidden = engine.runner.extend_cache(cache, [row], [ids[start : start + size]])[0].float()  # (T, C)
        total += hidden[0 if start else 1 :].sum(0).cpu()  # waits for the device, so that a piece's time is its own
    return torch.nn.functional.normalize(total / len(tokens), dim=0).tolist()


def embeddings_handler(service: Service) -> Handler:
    """Returns the handler of the route."""
    lanes = ParseLanes()

    async def respond(request: Request) -> Response:
        body = await read_body(request, service.max_body_bytes)
        parsed, inputs = await lanes.parse(partial(_parse_request, service), body)
        vectors = await embed_texts(request, service, inputs)
        if isinstance(vectors, Response):
            return vectors
        service.ignored_fields.add(parsed.ignored_fields)
        content = await run_sync(lambda: encode_json(_build_response(service, parsed, inputs, vectors)))
        return Response(content, media_type="application/json")

    return answer_errors(respond)


async def embed_texts(request: Request, service: Service, inputs: list[list[int]]) -> list[list[float]] | Response:
    """Returns the vectors of texts, given as token ids, or the response where the engine failed or the client has gone.

    Raises QueueFull where the worker rejects a text.
    """
    vectors: list[list[float]] = []
    count = max(1, service.worker.max_queue_size // QUEUE_SHARE)
    for start in range(0, len(inputs), count):
        results = _Results(service, inputs[start : start + count])
        finished = asyncio.ensure_future(results.wait())
        try:
            while not finished.done():
                await asyncio.wait([finished], timeout=DISCONNECT_POLL_SECONDS)
                if await request.is_disconnected():
                    return Response(status_code=499)
            vectors += finished.result()
        except asyncio.CancelledError:
            raise
        except Exception:
            return FAILED  # the worker has the reason
        finally:
            results.cancel()
            finished.cancel()
    return vectors


def _parse_request(service: Service, raw: bytes) -> tuple[EmbeddingsRequest, list[list[int]]]:
    """Returns the body and the token ids of its texts. Raises BadRequest."""
    body: EmbeddingsRequest = parse_body(EmbeddingsRequest, raw)
    service.check_model_name(body.model)
    check_dimensions(service, body.dimensions)
    inputs = [service.tokenize_text(value, "input") for value in body.input_list()]
    for number, ids in enumerate(inputs):
        if not 0 < len(ids) < service.context:
            message = f"input {number} has {len(ids):,} tokens; expected 1 to {service.context - 1:,}"
            raise BadRequest(message, "input", "context_length_exceeded" if ids else None)
    return body, inputs


def check_dimensions(service: Service, dimensions: int | None) -> None:
    """Raises BadRequest for another length of vectors than the model's width."""
    width = service.worker.engine.model.config.width
    if dimensions not in (None, width):
        raise BadRequest(f"dimensions: expected {width}, the model's width, got {dimensions}", "dimensions")


class _Results:
    """Submits a task for each text and waits for all of them. Raises QueueFull where the worker rejects one."""

    def __init__(self, service: Service, inputs: list[list[int]]) -> None:
        loop = asyncio.get_running_loop()
        self.futures: list[asyncio.Future[list[float]]] = [loop.create_future() for _ in inputs]
        self.handles: list[TaskHandle] = []

        def deliver(future: asyncio.Future[list[float]], value: Any, error: Exception | None) -> None:
            if not future.done():
                future.set_result(value) if error is None else future.set_exception(error)

        try:
            for future, ids in zip(self.futures, inputs, strict=True):

                def emit(value: Any, error: Exception | None, future: asyncio.Future = future) -> None:
                    loop.call_soon_threadsafe(deliver, future, value, error)

                run = lambda engine, ids=ids: embed_tokens(engine, ids)  # noqa: E731
                self.handles.append(service.worker.submit_task(run, emit))
        except Exception:
            self.cancel()
            raise

    async def wait(self) -> list[list[float]]:
        """Returns the vectors."""
        return list(await asyncio.gather(*self.futures))

    def cancel(self) -> None:
        """Cancels the tasks that have not begun."""
        for handle in self.handles:
            handle.cancel()


def _build_response(
    service: Service, body: EmbeddingsRequest, inputs: list[list[int]], vectors: list[list[float]]
) -> dict[str, Any]:
    def encode(vector: list[float]) -> list[float] | str:
        if body.encoding_format != "base64":
            return vector
        return base64.b64encode(torch.tensor(vector, dtype=torch.float32).numpy().astype("<f4").tobytes()).decode()

    data = [{"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)]
    count = sum(map(len, inputs))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": service.model_name, "usage": usage}
