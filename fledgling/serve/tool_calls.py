"""Calls of a request's tools in an answer, whole or piece by piece.

The model writes a call as {"name": "NAME", "arguments": {...}} (text/turns.py); a client gets name and arguments apart,
the arguments as text that grows.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fledgling.infer.detokenizer import ContentPart

_HEAD = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


def is_tool_call(part: ContentPart) -> bool:
    """Whether a part is a call of one of the request's tools: those of the model's own begin with no brace."""
    return part.kind == "python" and part.text.startswith("{")


@dataclass
class ToolCall:
    """A call as far as it is generated."""

    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")
    text: str = ""
    name: str = ""
    sent: int = 0  # characters of `arguments` that were returned by `push`

    @property
    def arguments(self) -> str:
        """The arguments' JSON so far, without the brace that closes the call."""
        head = _HEAD.match(self.text)
        rest = self.text[head.end() :] if head else ""
        return rest[:-1] if rest.endswith("}") else rest

    def push(self, text: str) -> tuple[str | None, str]:
        """Appends text; returns the name if it has just become known, and further arguments."""
        self.text += text
        new_name = None
        if not self.name and (head := _HEAD.match(self.text)):
            self.name = new_name = json.loads(head[1])
        arguments = self.arguments  # a brace at the end may be the call's own: it is held back
        piece, self.sent = arguments[self.sent :], len(arguments)
        return new_name, piece

    def to_json(self) -> dict[str, Any]:
        """Returns the call in OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def list_tool_calls(parts: Iterable[ContentPart]) -> list[ToolCall]:
    """Returns the calls of an answer; of one that was cut before its name, nothing."""
    calls = []
    for part in parts:
        if is_tool_call(part):
            call = ToolCall()
            call.push(part.text)
            if call.name:
                calls.append(call)
    return calls
