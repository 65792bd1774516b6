"""POST /v1/messages: Anthropic's Messages API over the same conversation, complete or as named events.

Blocks become messages (chat.py answers them), and an answer becomes blocks again: text, and calls of the request's
tools. `/v1/messages/count_tokens` counts a prompt without answering it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fledgling.serve import chat
from fledgling.serve.json_body import shorten_text
from fledgling.serve.other_settings import OTHER_SETTINGS, reject_fields
from fledgling.serve.request_body import Handler, ParseLanes, answer_errors, read_body
from fledgling.serve.responses import FAILURES, GeneratedChoice, join_part_text, make_id
from fledgling.serve.schemas import (
    MAX_MESSAGES,
    MAX_PARTS,
    BadRequest,
    ChatRequest,
    ContextText,
    IgnoringBody,
    JsonObject,
    Name,
    Number,
    StopStrings,
    TokenCount,
    Tools,
    parse_body,
    validate_body,
)
from fledgling.serve.service import EVENT_STREAM, Endpoint, ParsedRequest, Service
from fledgling.serve.tool_calls import CallStream, list_tool_calls
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished

Block = Annotated[dict[str, Any], Field(json_schema_extra={"x-bounded-by": "the model's context"})]
Blocks = Annotated[list[Block], Field(fail_fast=True, max_length=MAX_PARTS)]
UNUSED_BLOCKS = ("thinking", "redacted_thinking")
TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class BlockMessage(IgnoringBody):
    """One message: text, or blocks."""

    role: Literal["user", "assistant", "system"]
    content: ContextText | Blocks


class MessagesRequest(IgnoringBody):
    """Body of POST /v1/messages."""

    model: Name = ""
    messages: Annotated[list[BlockMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: TokenCount | None = None
    system: ContextText | Blocks | None = None
    stream: StrictBool | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    stop_sequences: StopStrings | None = None
    tools: Tools | None = None
    tool_choice: JsonObject | None = None
    thinking: JsonObject | None = None
    output_format: JsonObject | None = None
    output_config: JsonObject | None = None


def parse_request(service: Service, body: MessagesRequest) -> ParsedRequest:
    """Makes the chat request of a body and its job. Raises BadRequest or UserError."""
    parsed = chat.parse_request(service, _make_chat_request(body))
    parsed.id, parsed.body = make_id("msg"), body
    return parsed


def _make_chat_request(body: MessagesRequest) -> ChatRequest:
    messages = [message for each in body.messages for message in _read_message(each)]
    if body.system:
        messages.insert(0, {"role": "system", "content": _read_text(body.system, "system")})
    choice, kind = body.tool_choice or {}, (body.tool_choice or {}).get("type", "auto")
    if kind not in (*TOOL_CHOICES, "tool"):
        raise BadRequest(f"tool_choice.type: expected auto, any, tool or none, got {shorten_text(str(kind))!r}")
    reject_fields(body, ("stop", *OTHER_SETTINGS), dict.fromkeys(["stop"], "use stop_sequences"))
    fields = {
        "model": body.model,
        "messages": messages,
        "max_tokens": body.max_tokens,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences,
        "tools": [_read_tool(number, tool) for number, tool in enumerate(body.tools or ())],
        "tool_choice": {"function": {"name": choice.get("name")}} if kind == "tool" else TOOL_CHOICES[kind],
        "response_format": _read_format(body),
        "parallel_tool_calls": not choice.get("disable_parallel_tool_use"),
        "thinking": body.thinking,
    }
    return validate_body(ChatRequest, fields)


def _read_format(body: MessagesRequest) -> dict[str, Any] | None:
    """Returns the response format of output_config.format, or of output_format as it was called before."""
    config = body.output_config or {}
    name, form = ("output_config.format", config["format"]) if config.get("format") else ("output_format", None)
    form = form or body.output_format
    if not form:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise BadRequest(f"{name}: expected the type json_schema and a schema", name.split(".")[0])
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": form["schema"], "strict": True}}


def _read_tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    if "input_schema" not in tool:  # Anthropic's own tools have a type and no schema
        raise BadRequest(f"tools.{number}.input_schema: required", "tools")
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool["input_schema"]}
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _read_message(message: BlockMessage) -> Iterator[dict[str, Any]]:
    """Yields the messages of one: results of tools first, then its text and calls."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    text, calls = [], []
    for block in message.content:
        kind = block.get("type")
        if kind == "tool_result":
            content = _read_text(block.get("content") or "", "messages")
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block.get("id"), "function": function})
        elif kind not in UNUSED_BLOCKS:
            text.append(block)
    if text or calls:
        content = _read_text(text, "messages")
        yield {"role": message.role, "content": content} | ({"tool_calls": calls} if calls else {})


def _read_text(content: Any, field: str) -> str:
    """Returns the text of text blocks. Raises BadRequest for others."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{field}: expected text or a list of blocks", field)
    texts = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text" or not isinstance(block.get("text"), str):
            raise BadRequest(f"{field}: a block of type {shorten_text(str(kind))}; the model reads text only", field)
        texts.append(block["text"])
    return "".join(texts)


def _describe_message(
    service: Service, parsed: ParsedRequest, content: list[Any], reason: str | None
) -> dict[str, Any]:
    """Returns a message object."""
    cached = parsed.cached_tokens
    usage = {"input_tokens": parsed.prompt_tokens - cached, "cache_read_input_tokens": cached}
    return {
        "id": parsed.id,
        "type": "message",
        "role": "assistant",
        "model": service.model_name,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage | {"output_tokens": parsed.completion_tokens},
    }


def _stop_reason(choice: GeneratedChoice, has_calls: bool) -> str:
    if choice.finish_reason in ("length", "context"):
        return "max_tokens"
    return "tool_use" if has_calls else "end_turn"


def _thinking_block(thought: str) -> dict[str, Any]:
    """Returns the block of a thought, whose signature is empty: a thought that comes back is not read."""
    return {"type": "thinking", "thinking": thought, "signature": ""}


def build_response(service: Service, parsed: ParsedRequest) -> dict[str, Any]:
    """Returns the body of a complete response; a call that was cut is left out."""
    choice = parsed.choices[0]
    content: list[dict[str, Any]] = [_thinking_block(choice.thought)] if choice.thought else []
    content += [{"type": "text", "text": choice.content}] if choice.content else []
    calls = list_tool_calls(choice.parts) if parsed.jobs[0].client_calls else []
    for call in calls:
        if (value := call.parse_arguments()) is not None:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": value})
    return _describe_message(service, parsed, content, _stop_reason(choice, bool(calls)))


class MessageEvents:
    """The events of a stream: of the message, of each block, and of each piece of text or input."""

    def __init__(self, service: Service, parsed: ParsedRequest) -> None:
        self.service, self.parsed = service, parsed
        self.calls = CallStream(parsed.jobs[0].client_calls)
        self.index = -1  # of the newest block
        self.kind = ""  # of the open block; empty: none is open

    def start(self) -> Iterator[dict[str, Any]]:
        """Yields the event before the first token."""
        yield {"type": "message_start", "message": _describe_message(self.service, self.parsed, [], None)}

    def chunks_of_event(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """Adds an event of the worker to the choice and yields the events that report it."""
        generated = self.parsed.choices[choice]
        generated.update(event)
        if isinstance(event, ChoiceFinished):
            yield from self._finish(generated)
            return
        if thought := join_part_text(event.parts, "thinking"):  # of one event, a thought precedes prose
            if self.kind != "thinking":
                yield from self._open("thinking", _thinking_block(""))
            yield self._make_delta({"type": "thinking_delta", "thinking": thought})
        if text := join_part_text(event.parts):
            if self.kind != "text":
                yield from self._open("text", {"type": "text", "text": ""})
            yield self._make_delta({"type": "text_delta", "text": text})
        for part in event.parts:
            piece = self.calls.push(part)
            if piece is not None and piece.begins:
                block = {"type": "tool_use", "id": piece.call.id, "name": piece.call.name, "input": {}}
                yield from self._open("tool_use", block)
            if piece is not None and piece.arguments:
                yield self._make_delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields the last event."""
        yield {"type": "message_stop"}

    def _finish(self, choice: GeneratedChoice) -> Iterator[dict[str, Any]]:
        if failure := FAILURES.get(choice.finish_reason or ""):
            yield {"type": "error", "error": {"type": "api_error", "message": failure[0]}}
            return
        yield from self._close()
        message = _describe_message(self.service, self.parsed, [], _stop_reason(choice, self.kind == "tool_use"))
        delta = {name: message[name] for name in ("stop_reason", "stop_sequence")}
        yield {"type": "message_delta", "delta": delta, "usage": message["usage"]}

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self.index, self.kind = self.index + 1, kind
        yield {"type": "content_block_start", "index": self.index, "content_block": block}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self.kind:
            yield {"type": "content_block_stop", "index": self.index}

    def _make_delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self.index, "delta": delta}


def count_tokens_handler(service: Service) -> Handler:
    """Returns the handler of /v1/messages/count_tokens: the tokens of the prompt, tools and layout included.

    A prompt that exceeds the context is counted too: clients learn from the number how much to leave out.
    """
    lanes = ParseLanes()

    def count(raw: bytes) -> dict[str, int]:
        request = _make_chat_request(parse_body(MessagesRequest, raw))
        return {"input_tokens": len(chat.render_request(service, request, any_size=True).prompt)}

    async def respond(request: Request) -> Response:
        return JSONResponse(await lanes.parse(count, await read_body(request, service.max_body_bytes)))

    return answer_errors(respond)


ENDPOINT = Endpoint(MessagesRequest, parse_request, build_response, MessageEvents, EVENT_STREAM)
