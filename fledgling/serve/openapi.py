"""The OpenAPI description of the server, written by the classes that check the requests."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from fledgling import __version__
from fledgling.serve.schemas import ChatRequest, CompletionRequest

NUMBER, TEXT, WHOLE = {"type": "number"}, {"type": "string"}, {"type": "integer", "minimum": 0}


def _thing(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


EVENT = _thing({"data": {"type": "string", "description": "a chunk as JSON; [DONE] last"}}, event=TEXT)
ERROR = _thing({"error": _thing({"message": TEXT, "type": TEXT, "param": _maybe(TEXT), "code": _maybe(TEXT)})})
MODEL = _thing({"id": TEXT, "object": {"const": "model"}, "created": WHOLE, "owned_by": TEXT})
USAGE = _thing({"prompt_tokens": WHOLE, "completion_tokens": WHOLE, "total_tokens": WHOLE})
REASON = {"enum": ["stop", "length"]}
MESSAGE = _thing(
    {"role": {"const": "assistant"}, "content": TEXT},
    parts=_list(_thing({"type": {"enum": ["text", "python", "output"]}, "text": TEXT})),
)
ENVELOPE = {"id": TEXT, "object": TEXT, "created": WHOLE, "model": TEXT, "usage": USAGE}
CHAT = _thing({**ENVELOPE, "choices": _list(_thing({"index": WHOLE, "message": MESSAGE, "finish_reason": REASON}))})
COMPLETION = _thing({**ENVELOPE, "choices": _list(_thing({"index": WHOLE, "text": TEXT, "finish_reason": REASON}))})
HEALTH = _thing(
    {"status": {"const": "ok"}, "model": TEXT, "load": WHOLE, "max_queue_size": WHOLE, "max_batch_size": WHOLE}
)


def build_openapi() -> dict[str, Any]:
    """The description as one dictionary."""
    names, schemas = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation")], ref_template="#/components/schemas/{model}"
    )
    chat, text = (names[kind, "validation"] for kind in (ChatRequest, CompletionRequest))
    return {
        "openapi": "3.1.0",
        "info": {"title": "fledgling", "version": __version__},
        "paths": {
            "/v1/chat/completions": {"post": _operation("Answer a conversation.", CHAT, chat, stream=True)},
            "/v1/completions": {"post": _operation("Continue a text.", COMPLETION, text, stream=True)},
            "/v1/models": {"get": _operation("The model.", _thing({"object": TEXT, "data": _list(MODEL)}))},
            "/v1/models/{name}": {
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": TEXT}],
                "get": _operation("The model of that name.", MODEL),
            },
            "/health": {"get": _operation("Alive, and how busy.", HEALTH)},
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    summary: str, answer: dict[str, Any], body: dict[str, Any] | None = None, stream: bool = False
) -> dict[str, Any]:
    """One operation: its answer, and the errors it can give."""
    content = {"application/json": {"schema": answer}}
    if stream:
        content["text/event-stream"] = {"schema": EVENT}  # of one event
    errors = {"401": "no key, or a wrong one", "404": "no such model", "421": "another host's name"}
    if body is not None:
        errors |= {"400": "a field is off", "413": "too large", "415": "not JSON", "429": "too many requests"}
    responses: dict[str, Any] = {"200": {"description": "done", "content": content}}
    for status, text in sorted(errors.items()):
        responses[status] = {"description": text, "content": {"application/json": {"schema": ERROR}}}
    operation: dict[str, Any] = {"summary": summary, "security": [{"key": []}, {}], "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation
