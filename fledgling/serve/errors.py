"""The body of an error, in OpenAI's format."""

from __future__ import annotations

from typing import Any


def build_error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Returns OpenAI's error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
