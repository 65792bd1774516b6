"""POST /v1/embeddings: a vector for each text, the mean of the model's last hidden states over the text's tokens.

The model was trained to continue texts and not to compare them, so the vectors group texts coarsely; they are
normalized to length 1, and no state is learned for them. Texts are tasks of the worker, computed in pieces between the
steps of the running requests (tasks.py). Short texts of similar length share a piece, which has as many tokens, padding
included, as a piece of a long text: it takes about as long.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
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
QUEUE_SHARE = 4  # of the places in the queue, a request's tasks take one in so many at a time


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


def count_piece_tokens(engine: Engine) -> int:
    """Returns the most tokens of a piece."""
    return CPU_PIECE_TOKENS if engine.device.type == "cpu" else GPU_PIECE_TOKENS


def group_texts(lengths: Sequence[int], piece_tokens: int) -> list[list[int]]:
    """Returns the indices of texts in groups, each of one piece, or of one text that is longer; the shortest first.

    Args:
        lengths: of the texts, in tokens with bos.
        piece_tokens: the most tokens of a piece, those that pad its texts to one length included.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or (len(groups[-1]) + 1) * lengths[index] > piece_tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def embed_tokens(engine: Engine, texts: Sequence[Sequence[int]]) -> Pieces:
    """Computes the hidden states of texts in pieces, with a cache of their own, and returns their vectors.

    A vector is the mean of the hidden states of a text's tokens after bos, with length 1: C numbers. Texts that share a
    piece change it by rounding alone (1e-5 in fp32): products of other shapes add up in another order.
    """
    ids, cache = [[engine.tokenizer.bos, *tokens] for tokens in texts], engine.runner.new_cache()
    rows = [CacheRow() for _ in texts]
    size = max(1, count_piece_tokens(engine) // len(texts))
    totals = torch.zeros(len(texts), engine.model.config.width)
    for start in range(0, max(map(len, ids)), size):
        if start:
            yield
        open_rows = [index for index, row_ids in enumerate(ids) if len(row_ids) > start]
        chunks = [ids[index][start : start + size] for index in open_rows]
        hidden = engine.runner.extend_cache(cache, [rows[index] for index in open_rows], chunks).float()  # (B, T, C)
        first = 0 if start else 1
        sums = [states[first : len(chunk)].sum(0) for states, chunk in zip(hidden, chunks, strict=True)]
        totals[open_rows] += torch.stack(sums).cpu()  # waits for the device, so that a piece's time is its own
    counts = torch.tensor([[len(tokens)] for tokens in texts])
    return torch.nn.functional.normalize(totals / counts, dim=-1).tolist()


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
    vectors: list[list[float]] = [[]] * len(inputs)
    groups = group_texts([len(ids) + 1 for ids in inputs], count_piece_tokens(service.worker.engine))
    count = max(1, service.worker.max_queue_size // QUEUE_SHARE)
    for start in range(0, len(groups), count):
        some = groups[start : start + count]
        results = _Results(service, [[inputs[index] for index in group] for group in some])
        finished = asyncio.ensure_future(results.wait())
        try:
            while not finished.done():
                await asyncio.wait([finished], timeout=DISCONNECT_POLL_SECONDS)
                if await request.is_disconnected():
                    return Response(status_code=499)
            for group, computed in zip(some, finished.result(), strict=True):
                for index, vector in zip(group, computed, strict=True):
                    vectors[index] = vector
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
    """Submits a task for each group of texts and waits for all of them. Raises QueueFull where one is rejected."""

    def __init__(self, service: Service, groups: list[list[list[int]]]) -> None:
        loop = asyncio.get_running_loop()
        self.futures: list[asyncio.Future[list[list[float]]]] = [loop.create_future() for _ in groups]
        self.handles: list[TaskHandle] = []

        def deliver(future: asyncio.Future[list[list[float]]], value: Any, error: Exception | None) -> None:
            if not future.done():
                future.set_result(value) if error is None else future.set_exception(error)

        try:
            for future, texts in zip(self.futures, groups, strict=True):

                def emit(value: Any, error: Exception | None, future: asyncio.Future = future) -> None:
                    loop.call_soon_threadsafe(deliver, future, value, error)

                run = lambda engine, texts=texts: embed_tokens(engine, texts)  # noqa: E731
                self.handles.append(service.worker.submit_task(run, emit))
        except Exception:
            self.cancel()
            raise

    async def wait(self) -> list[list[list[float]]]:
        """Returns the vectors of each group."""
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
