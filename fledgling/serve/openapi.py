"""The OpenAPI description of the server, generated from the classes that validate requests."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from fledgling import __version__
from fledgling.serve.embeddings import EmbeddingsRequest
from fledgling.serve.messages_api import MessagesRequest
from fledgling.serve.ollama_api import GenerateRequest, OllamaChatRequest
from fledgling.serve.ollama_models import EmbeddingsPromptRequest, EmbedRequest, ShowRequest
from fledgling.serve.responses_api import ResponsesRequest
from fledgling.serve.schemas import ChatRequest, CompletionRequest
from fledgling.serve.service import EVENT_STREAM, LINE_STREAM, StreamForm

TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}


def _describe_object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _allow_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


EVENT = _describe_object({"data": {"type": "string", "description": "a chunk as JSON; [DONE] last"}}, event=TEXT)
ERROR = _describe_object(
    {"error": _describe_object({"message": TEXT, "type": TEXT, "param": _allow_null(TEXT), "code": _allow_null(TEXT)})}
)
OLLAMA_ERROR = _describe_object({"error": TEXT})
ANTHROPIC_ERROR = _describe_object(
    {"type": {"const": "error"}, "error": _describe_object({"type": TEXT, "message": TEXT})}
)
MODEL = _describe_object({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT})
USAGE = _describe_object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
REASON = {"enum": ["stop", "length", "tool_calls"]}
FUNCTION = _describe_object({"name": TEXT, "arguments": TEXT})
TOOL_CALL = _describe_object({"id": TEXT, "type": {"const": "function"}, "function": FUNCTION})
MESSAGE = _describe_object(
    {"role": {"const": "assistant"}, "content": _allow_null(TEXT)},
    tool_calls=_list(TOOL_CALL),
    parts=_list(_describe_object({"type": {"enum": ["text", "python", "output"]}, "text": TEXT})),
)
ENVELOPE = {"id": TEXT, "object": TEXT, "created": COUNT, "model": TEXT, "usage": USAGE}
CHAT = _describe_object(
    {**ENVELOPE, "choices": _list(_describe_object({"index": COUNT, "message": MESSAGE, "finish_reason": REASON}))}
)
COMPLETION = _describe_object(
    {**ENVELOPE, "choices": _list(_describe_object({"index": COUNT, "text": TEXT, "finish_reason": REASON}))}
)
RESPONSE = _describe_object(
    {"id": TEXT, "object": {"const": "response"}, "status": TEXT, "output": _list({"type": "object"})}
)
VECTOR = {"anyOf": [_list({"type": "number"}), {"type": "string", "description": "base64 of float32"}]}
EMBEDDING = _describe_object({"object": {"const": "embedding"}, "index": COUNT, "embedding": VECTOR})
EMBEDDINGS = _describe_object({"object": {"const": "list"}, "model": TEXT, "data": _list(EMBEDDING)})
BLOCKS = _describe_object({"id": TEXT, "type": {"const": "message"}, "content": _list({"type": "object"})}, usage={})
LINE = _describe_object({"model": TEXT, "created_at": TEXT, "done": {"type": "boolean"}}, message={}, response=TEXT)
OLLAMA_MODEL = _describe_object({"name": TEXT, "model": TEXT, "size": COUNT, "digest": TEXT, "details": {}})
OLLAMA_MODELS = _describe_object({"models": _list(OLLAMA_MODEL)})
SHOWN = _describe_object(
    {
        "details": {},
        "model_info": {"type": "object"},
        "capabilities": _list(TEXT),
        "parameters": TEXT,
        "template": TEXT,
    }
)
NUMBERS = _list({"type": "number"})
TOKENS = _describe_object({"input_tokens": COUNT})
EMBEDDED_PROMPT = _describe_object({"embedding": NUMBERS})
EMBEDDED = _describe_object({"model": TEXT, "embeddings": _list(NUMBERS), "prompt_eval_count": COUNT})
HEALTH = _describe_object(
    {"status": {"const": "ok"}, "model": TEXT, "load": COUNT, "max_queue_size": COUNT, "max_batch_size": COUNT}
)


def _describe_operation(
    summary: str,
    response: dict[str, Any],
    body: dict[str, Any] | None = None,
    stream: StreamForm | None = None,
    error: dict[str, Any] = ERROR,
) -> dict[str, Any]:
    """Returns one operation with its response and its errors."""
    content = {"application/json": {"schema": response}}
    if stream:  # schema of one event, or of one line
        content[stream.media_type] = {"schema": EVENT if stream is EVENT_STREAM else response}
    errors = {
        "401": "missing or invalid API key",
        "404": "no such model",
        "408": "the request did not arrive in time",
        "421": "not a name of this server",
        "429": "too many requests or connections",
        "503": "too many connections, or the answer took too long",
    }
    if body is not None:
        errors |= {"400": "an invalid field", "413": "too large", "415": "not JSON"}
    responses: dict[str, Any] = {"200": {"description": "done", "content": content}}
    for status, text in sorted(errors.items()):
        responses[status] = {"description": text, "content": {"application/json": {"schema": error}}}
    operation: dict[str, Any] = {"summary": summary, "security": [{"key": []}, {}], "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


POSTS: tuple[tuple[Any, ...], ...] = (  # path, summary, response, and of some: body, stream, error
    ("/v1/chat/completions", "Answers a conversation.", CHAT, ChatRequest, EVENT_STREAM),
    ("/v1/completions", "Continues a text.", COMPLETION, CompletionRequest, EVENT_STREAM),
    ("/v1/responses", "Answers a conversation, as items.", RESPONSE, ResponsesRequest, EVENT_STREAM),
    ("/v1/embeddings", "A vector for each text.", EMBEDDINGS, EmbeddingsRequest),
    ("/v1/messages", "Answers a conversation, as blocks.", BLOCKS, MessagesRequest, EVENT_STREAM, ANTHROPIC_ERROR),
    ("/v1/messages/count_tokens", "Counts a prompt.", TOKENS, MessagesRequest, None, ANTHROPIC_ERROR),
    ("/api/chat", "Answers a conversation, as Ollama does.", LINE, OllamaChatRequest, LINE_STREAM, OLLAMA_ERROR),
    ("/api/generate", "Answers a question, as Ollama does.", LINE, GenerateRequest, LINE_STREAM, OLLAMA_ERROR),
    ("/api/embed", "A vector for each text.", EMBEDDED, EmbedRequest, None, OLLAMA_ERROR),
    ("/api/embeddings", "A vector for a text.", EMBEDDED_PROMPT, EmbeddingsPromptRequest, None, OLLAMA_ERROR),
    ("/api/show", "The model.", SHOWN, ShowRequest, None, OLLAMA_ERROR),
)
GETS: tuple[tuple[Any, ...], ...] = (
    ("/api/tags", "The models.", OLLAMA_MODELS, None, None, OLLAMA_ERROR),
    ("/api/ps", "The loaded models.", OLLAMA_MODELS, None, None, OLLAMA_ERROR),
    ("/v1/models", "The model.", _describe_object({"object": TEXT, "data": _list(MODEL)})),
    ("/v1/models/{name}", "The model of that name.", MODEL),
    ("/health", "Whether the server is alive, and its load.", HEALTH),
)


def build_openapi() -> dict[str, Any]:
    """Returns the description as a dictionary."""
    bodies = {operation[3] for operation in POSTS}
    names, schemas = models_json_schema(
        [(kind, "validation") for kind in sorted(bodies, key=lambda kind: kind.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for path, summary, response, body, *others in POSTS:
        paths[path] = {"post": _describe_operation(summary, response, names[body, "validation"], *others)}
    for path, *operation in GETS:
        paths[path] = {"get": _describe_operation(*operation)}
    paths["/v1/models/{name}"]["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "fledgling", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
