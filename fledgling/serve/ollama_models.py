"""Ollama's routes that generate nothing: the served models (tags, show, ps), and vectors of texts (embed, embeddings).

The vectors are those of embeddings.py. `digest` tells served models apart and is no hash of their files; a model never
expires. A text that exceeds the context is cut, as Ollama does, unless `truncate` is false.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import torch
from anyio.to_thread import run_sync
from pydantic import Field, StrictBool, StrictInt
from starlette.requests import Request
from starlette.responses import Response
from torch import nn

from fledgling import __version__
from fledgling.export.chat_template import tokenizer_config
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.serve.embeddings import MAX_TEXTS, check_dimensions, embed_texts
from fledgling.serve.json_body import encode_json
from fledgling.serve.ollama_api import OPTION_NAMES, Options
from fledgling.serve.request_body import Handler, ParseLanes, answer_errors, read_body
from fledgling.serve.schemas import BadRequest, ContextText, IgnoringBody, Name, parse_body
from fledgling.serve.service import LATEST, Service, find_service

OLLAMA_VERSION = "0.12.0"  # whose API these routes follow: clients ask for a least version
WEIGHT_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
NEVER = "9999-12-31T23:59:59Z"  # when a model is unloaded


class ShowRequest(IgnoringBody):
    """Body of POST /api/show; `name` is the older name of `model`."""

    model: Name = ""
    name: Name = ""
    options: Options | None = None  # of sampling: nothing here depends on them


class _VectorRequest(IgnoringBody):
    model: Name = ""
    truncate: StrictBool | None = None  # None: true
    options: Options | None = None  # of sampling: no vector depends on them


class EmbedRequest(_VectorRequest):
    """Body of POST /api/embed."""

    input: ContextText | Annotated[list[ContextText], Field(fail_fast=True, max_length=MAX_TEXTS)] = ""
    dimensions: StrictInt | None = None

    def texts(self) -> list[str]:
        """Returns the texts; none where the request only loads the model."""
        return ([self.input] if self.input else []) if isinstance(self.input, str) else self.input


class EmbeddingsPromptRequest(_VectorRequest):
    """Body of POST /api/embeddings, the older form of /api/embed, for one text."""

    prompt: ContextText = ""

    def texts(self) -> list[str]:
        """Returns the text; none where the request only loads the model."""
        return [self.prompt] if self.prompt else []


def format_time(seconds: float) -> str:
    """Returns Unix time as Ollama's clients read it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def describe_model(service: Service) -> dict[str, Any]:
    """Returns what lists of models have of a served model."""
    name = f"{service.model_name}{LATEST}"
    digest = hashlib.sha256(f"{name} {service.created}".encode()).hexdigest()
    entry = {"name": name, "model": name, "size": _count_bytes(service), "digest": digest}
    return {**entry, "details": _describe_details(service)}


def _count_bytes(service: Service) -> int:
    model = service.worker.engine.model
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _describe_details(service: Service) -> dict[str, Any]:
    count = service.worker.engine.model.count_parameters()
    size = next(
        f"{count / unit:.1f}{name}" for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if count >= unit / 10
    )
    family = {"parent_model": "", "format": "safetensors", "family": "fledgling", "families": ["fledgling"]}
    return {**family, "parameter_size": size, "quantization_level": name_weights(service.worker.engine.model)}


def name_weights(model: nn.Module) -> str:
    """Returns how the weights are stored, as Ollama names it: by the bits of packed ones, or by their dtype."""
    bits = [weight.data.bits for weight in model.parameters() if isinstance(weight.data, QuantizedTensor)]
    if bits:
        return f"Q{min(bits)}"
    return WEIGHT_NAMES.get(next(model.parameters()).dtype, "unknown")


def describe_version() -> dict[str, str]:
    """Returns the body of /api/version: the version of Ollama whose API this is, and this program's own."""
    return {"version": OLLAMA_VERSION, "server": f"fledgling {__version__}"}


def describe_tags(services: Sequence[Service]) -> dict[str, Any]:
    """Returns the body of /api/tags: the served models."""
    models = [describe_model(service) | {"modified_at": format_time(service.created)} for service in services]
    return {"models": models}


def describe_running(services: Sequence[Service]) -> dict[str, Any]:
    """Returns the body of /api/ps: the same models, all of which are loaded."""
    models = []
    for service in services:
        entry = describe_model(service)
        on_gpu = service.worker.engine.device.type != "cpu"
        entry |= {"expires_at": NEVER, "size_vram": entry["size"] if on_gpu else 0, "context_length": service.context}
        models.append(entry)
    return {"models": models}


def describe_shown(service: Service, body: ShowRequest) -> dict[str, Any]:
    """Returns the body of /api/show: what is known of the model. Raises BadRequest for another one."""
    service.check_model_name(body.model or body.name)
    engine = service.worker.engine
    config = engine.model.config
    defaults = service.tokenizer.sampling_defaults
    sampling = {name: defaults[field] for name, field in OPTION_NAMES.items() if field in defaults}
    parameters = {"num_ctx": service.context, **sampling}
    layout = tokenizer_config(service.tokenizer, service.context).get("chat_template", "")
    model_info = {
        "general.architecture": "fledgling",
        "general.basename": service.model_name,
        "general.parameter_count": engine.model.count_parameters(),
        "fledgling.context_length": service.context,
        "fledgling.embedding_length": config.width,
        "fledgling.block_count": config.depth,
        "fledgling.feed_forward_length": config.intermediate_size,
        "fledgling.attention.head_count": config.heads,
        "fledgling.attention.head_count_kv": config.kv_heads,
        "fledgling.vocab_size": config.vocab_size,
    }
    return {
        "modelfile": "",
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in parameters.items()),
        # In Jinja. Clients take a template that names tools for a promise that there are any.
        "template": layout if engine.has_tool_tokens else "",
        "license": "",
        "modified_at": format_time(service.created),
        "details": _describe_details(service),
        "model_info": model_info,
        "capabilities": ["completion", "embedding", *(["tools"] if engine.has_tool_tokens else [])],
    }


def show_handler(services: Sequence[Service]) -> Handler:
    """Returns the handler of /api/show."""

    async def respond(request: Request) -> Response:
        body = parse_body(ShowRequest, await read_body(request, services[0].max_body_bytes))
        service = find_service(services, body.model or body.name)
        return _json_response(describe_shown(service, body))

    return answer_errors(respond)


def embed_handler(service: Service, kind: type[EmbedRequest] | type[EmbeddingsPromptRequest]) -> Handler:
    """Returns the handler of /api/embed or /api/embeddings; the vectors are the first model's."""
    lanes = ParseLanes()

    async def respond(request: Request) -> Response:
        start = time.monotonic_ns()
        raw = await read_body(request, service.max_body_bytes)
        body, inputs = await lanes.parse(partial(_read_texts, service, kind), raw)
        vectors = await embed_texts(request, service, inputs)
        if isinstance(vectors, Response):
            return vectors
        service.ignored_fields.add(body.ignored_fields)
        if kind is EmbeddingsPromptRequest:
            return await run_sync(_json_response, {"embedding": vectors[0] if vectors else []})
        counts = {"total_duration": time.monotonic_ns() - start, "load_duration": 0}
        counts["prompt_eval_count"] = sum(map(len, inputs))
        answer = {"model": f"{service.model_name}{LATEST}", "embeddings": vectors, **counts}
        return await run_sync(_json_response, answer)

    return answer_errors(respond)


def _read_texts(service: Service, kind: Any, raw: bytes) -> tuple[Any, list[list[int]]]:
    """Returns the body and the token ids of its texts, cut where `truncate` allows it. Raises BadRequest."""
    body = parse_body(kind, raw)
    service.check_model_name(body.model)
    check_dimensions(service, getattr(body, "dimensions", None))
    field = "input" if kind is EmbedRequest else "prompt"
    inputs, longest = [], service.context - 1
    for number, text in enumerate(body.texts()):
        if body.truncate is not False:
            text = text[: service.max_text_bytes]  # no token has more characters than bytes
            ids = service.tokenizer.encode(text)[:longest]
        else:
            ids = service.tokenize_text(text, field)
        if not 0 < len(ids) <= longest:
            message = f"{field} {number} has {len(ids):,} tokens; expected 1 to {longest:,}"
            raise BadRequest(message, field, "context_length_exceeded" if ids else None)
        inputs.append(ids)
    return body, inputs


def _json_response(value: dict[str, Any]) -> Response:
    return Response(encode_json(value), media_type="application/json")
