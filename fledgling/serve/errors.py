"""The body of an error, in OpenAI's format, and in that of the API whose route answers with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

ANTHROPIC_PATHS = "/v1/messages"
# Ollama's routes, of which this server has some. Other applications with the same middleware have /api/ too (`watch`).
OLLAMA_NAMES = ("chat", "copy", "create", "delete", "embed", "embeddings", "generate", "ps", "pull", "push", "show")
OLLAMA_PATHS = frozenset(f"/api/{name}" for name in (*OLLAMA_NAMES, "tags", "version"))
ANTHROPIC_KINDS = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large"}
ANTHROPIC_KINDS |= {429: "rate_limit_error"}


def build_error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Returns OpenAI's error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def convert_error(body: dict[str, Any], path: str, status: int) -> dict[str, Any]:
    """Returns OpenAI's error body as the clients of a path's API expect it."""
    message = body["error"]["message"]
    if path in OLLAMA_PATHS:
        return {"error": message}
    if path == ANTHROPIC_PATHS or path.startswith(f"{ANTHROPIC_PATHS}/"):
        kind = ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    return body


class ErrorResponse(JSONResponse):
    """An error response, written in the form of the API that the request's path belongs to."""

    def __init__(self, body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body, status, headers)
        self.error, self.error_headers = body, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        body = convert_error(self.error, scope["path"], self.status_code)
        await JSONResponse(body, self.status_code, self.error_headers)(scope, receive, send)
