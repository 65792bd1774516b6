"""Calls of a request's tools in an answer, whole or piece by piece.

The model writes a call as {"name": "NAME", "arguments": {...}} (text/turns.py); a client gets name and arguments apart,
the arguments as text that grows.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fledgling.infer.detokenizer import ContentPart

_HEAD = re.compile(r'\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')


def is_tool_call(part: ContentPart) -> bool:
    """Whether a part is a call of one of the request's tools: those of the model's own begin with no brace."""
    return part.kind == "python" and part.text.startswith("{")


@dataclass
class StreamedToolCall:
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

    def parse_arguments(self) -> dict[str, Any] | None:
        """Returns the arguments as an object that every JSON reader takes; None where they were cut.

        JSON allows numbers that no double holds (1e999) and escapes of half a character: the model may write them, and
        they become the largest double and a question mark.
        """
        try:
            value = json.loads(self.arguments, parse_float=_read_number, parse_int=_read_number)
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def to_json(self) -> dict[str, Any]:
        """Returns the call in OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def _read_number(text: str) -> int | float:
    """Returns a number of JSON, at most the largest double."""
    value = float(text)
    if abs(value) > sys.float_info.max:
        return sys.float_info.max if value > 0 else -sys.float_info.max
    return value if set(text) & set(".eE") else int(text)


@dataclass(frozen=True)
class CallPiece:
    """What a part adds to a call."""

    call: StreamedToolCall
    index: int  # of the call among those of the answer
    begins: bool  # the name has just become known
    arguments: str  # further text of the arguments


class CallStream:
    """The calls of the request's tools in the parts of one choice, as they come.

    Args:
        enabled: whether the request has tools; otherwise no part is taken for a call.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.calls: list[StreamedToolCall] = []
        self.is_open = False

    def push(self, part: ContentPart) -> CallPiece | None:
        """Returns what a part adds to a call; None where it is prose, or a call of the model's own tool."""
        if part.opens:
            self.is_open = self.enabled and is_tool_call(part)
            if self.is_open:
                self.calls.append(StreamedToolCall())
        if part.kind != "python" or not self.is_open:
            return None
        name, arguments = self.calls[-1].push(part.text)
        return CallPiece(self.calls[-1], len(self.calls) - 1, name is not None, arguments)


def list_tool_calls(parts: Iterable[ContentPart]) -> list[StreamedToolCall]:
    """Returns the calls of a whole answer; of one that was cut before its name, nothing."""
    calls = []
    for part in parts:
        if is_tool_call(part):
            call = StreamedToolCall()
            call.push(part.text)
            if call.name:
                calls.append(call)
    return calls
