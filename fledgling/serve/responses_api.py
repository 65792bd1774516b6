"""POST /v1/responses: OpenAI's Responses API over the same conversation, complete or as named events.

Responses are not stored: the whole conversation is in `input`, and `previous_response_id` is an error. Items become
messages (chat.py answers them); an answer becomes items again, a message and calls of the request's tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from fledgling.serve import chat
from fledgling.serve.json_body import shorten_text
from fledgling.serve.responses import FAILURES, GeneratedChoice, build_chat_logprobs, join_part_text, make_id
from fledgling.serve.schemas import (
    MAX_MESSAGES,
    BadRequest,
    ChatRequest,
    CommonRequest,
    ContextText,
    JsonObject,
    Name,
    StreamOptions,
    TokenCount,
    Tools,
    validate_body,
)
from fledgling.serve.service import EVENT_STREAM, Endpoint, ParsedRequest, Service
from fledgling.serve.tool_calls import CallPiece, CallStream, StreamedToolCall, list_tool_calls
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished

LOGPROBS = "message.output_text.logprobs"  # of `include`
InputItem = Annotated[dict[str, Any], Field(json_schema_extra={"x-bounded-by": "the model's context"})]


class ResponsesRequest(CommonRequest):
    """Body of POST /v1/responses."""

    input: ContextText | Annotated[list[InputItem], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    instructions: ContextText | None = None
    max_output_tokens: TokenCount | None = None
    text: JsonObject | None = None
    tools: Tools | None = None
    tool_choice: Name | JsonObject | None = None
    parallel_tool_calls: StrictBool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    calculator: StrictBool = True
    include: Annotated[list[Name], Field(fail_fast=True, max_length=16)] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=1)] | None = None
    stream_options: StreamOptions | None = None


OWN_NAMES = {"messages": "input", "max_tokens": "max_output_tokens"}  # of a chat request's fields


def parse_request(service: Service, body: ResponsesRequest) -> ParsedRequest:
    """Makes the chat request of a body and its job. Raises BadRequest or UserError."""
    shared = [name for name in ResponsesRequest.model_fields if name in ChatRequest.model_fields]
    fields: dict[str, Any] = {name: getattr(body, name) for name in shared}
    messages = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else read_items(body.input)
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    response_format = (body.text or {}).get("format")
    if response_format is not None and not isinstance(response_format, Mapping):
        raise BadRequest("text.format: expected an object", "text")
    with_logprobs = LOGPROBS in (body.include or ())
    fields |= {
        "messages": messages,
        "max_tokens": body.max_output_tokens,
        "response_format": response_format,
        "logprobs": with_logprobs,
        "top_logprobs": body.top_logprobs if with_logprobs else None,
    }
    reasoning = (body.model_extra or {}).get("reasoning")
    if isinstance(reasoning, Mapping) and reasoning.get("effort") == "none":
        fields["reasoning_effort"] = "none"
    try:
        parsed = chat.parse_request(service, validate_body(ChatRequest, fields))
    except BadRequest as error:
        for name, own in OWN_NAMES.items():  # also "messages.0.role"
            if (error.param or "").partition(".")[0] == name:
                error.param = own + (error.param or "")[len(name) :]
                if error.message.startswith(name):
                    error.message = own + error.message[len(name) :]
        raise
    parsed.id, parsed.body = make_id("resp"), body
    return parsed


def read_items(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the messages of input items: calls in a row are of one message. Raises BadRequest for other items."""
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({key: item[key] for key in ("role", "content") if key in item})
        elif kind == "function_call":
            if not messages or messages[-1].get("role") != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            messages[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
        elif kind == "function_call_output":
            content = item.get("output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind != "reasoning":
            shown = shorten_text(str(kind))
            raise BadRequest(f"input.{number}: an item of type {shown!r}; the model reads text and calls", "input")
    return messages


def _describe_response(service: Service, parsed: ParsedRequest, status: str, output: list[Any]) -> dict[str, Any]:
    """Returns a response object."""
    body: ResponsesRequest = parsed.body
    incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        "id": parsed.id,
        "object": "response",
        "created_at": parsed.created,
        "status": status,
        "error": None,
        "incomplete_details": incomplete,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": {},
        "model": service.model_name,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": parsed.jobs[0].sampling.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": parsed.jobs[0].sampling.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None if status == "in_progress" else _build_usage(parsed),
    }


def _build_usage(parsed: ParsedRequest) -> dict[str, Any]:
    return {
        "input_tokens": parsed.prompt_tokens,
        "input_tokens_details": {"cached_tokens": parsed.cached_tokens},
        "output_tokens": parsed.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": parsed.thought_tokens},
        "total_tokens": parsed.prompt_tokens + parsed.completion_tokens,
    }


def _text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _reasoning_item(item_id: str, status: str, thought: str) -> dict[str, Any]:
    content = [_reasoning_part(thought)] if status != "in_progress" else []
    return {"id": item_id, "type": "reasoning", "status": status, "summary": [], "content": content}


def _reasoning_part(thought: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": thought}


def _message_item(item_id: str, status: str, content: list[Any]) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _call_item(call: StreamedToolCall, status: str) -> dict[str, Any]:
    item = {"id": call.id.replace("call_", "fc_"), "type": "function_call", "status": status, "call_id": call.id}
    return item | {"name": call.name, "arguments": call.arguments if status != "in_progress" else ""}


def _find_status(choice: GeneratedChoice) -> str:
    return "incomplete" if choice.finish_reason in ("length", "context") else "completed"


def build_response(service: Service, parsed: ParsedRequest) -> dict[str, Any]:
    """Returns the body of a complete response."""
    choice = parsed.choices[0]
    status, output = _find_status(choice), []
    calls = list_tool_calls(choice.parts) if parsed.jobs[0].client_calls else []
    if choice.thought:
        ended = "completed" if choice.content or calls else status
        output.append(_reasoning_item(make_id("rs"), ended, choice.thought))
    if choice.content or not (calls or choice.thought):
        tokens = choice.tokens[choice.thought_tokens :] if parsed.include_logprobs else []
        logprobs = build_chat_logprobs(service.tokenizer, tokens)["content"]
        output.append(_message_item(make_id("msg"), status, [_text_part(choice.content, logprobs)]))
    output += [_call_item(call, status if call is calls[-1] else "completed") for call in calls]
    return _describe_response(service, parsed, status, output)


class ResponseEvents:
    """The events of a stream: of the response, of each item, and of each piece of text or arguments."""

    def __init__(self, service: Service, parsed: ParsedRequest) -> None:
        self.service, self.parsed = service, parsed
        self.number = -1  # of the newest event
        self.thought_id = ""  # of the open thought; empty: none is open
        self.thought = ""
        self.message_id = ""  # of the open message; empty: none is open
        self.message_text = ""
        self.message_logprobs: list[Any] = []
        self.pending_logprobs: list[Any] = []  # of tokens whose text is held back
        self.call: StreamedToolCall | None = None  # that is open
        self.calls = CallStream(parsed.jobs[0].client_calls)
        self.output: list[dict[str, Any]] = []  # finished items

    def start(self) -> Iterator[dict[str, Any]]:
        """Yields the events before the first token."""
        response = _describe_response(self.service, self.parsed, "in_progress", [])
        yield self._make_event("created", response=response)
        yield self._make_event("in_progress", response=response)

    def chunks_of_event(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """Adds an event of the worker to the choice and yields the events that report it."""
        generated = self.parsed.choices[choice]
        generated.update(event)
        if isinstance(event, ChoiceFinished):
            yield from self._finish(generated)
            return
        tokens = event.tokens if self.parsed.include_logprobs else ()
        logprobs = build_chat_logprobs(self.service.tokenizer, tokens)["content"]
        text = join_part_text(event.parts)  # of one event, prose precedes calls: after a call the answer ends
        if thought := join_part_text(event.parts, "thinking"):  # which precedes prose
            yield from self._push_thought(thought)
        if self.thought_id:  # no log-probabilities of a thought, as in a complete answer
            self.pending_logprobs = []
        self.pending_logprobs += logprobs if text or not self.thought_id else []
        if text or (self.pending_logprobs and self.message_id):
            logprobs, self.pending_logprobs = self.pending_logprobs, []
            yield from self._push_text(text, logprobs)
        for part in event.parts:
            piece = self.calls.push(part)
            if piece is not None and (piece.begins or piece.arguments):
                yield from self._push_call(piece)

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields nothing: the last event is that of the choice's end."""
        yield from ()

    def _push_thought(self, text: str) -> Iterator[dict[str, Any]]:
        if not self.thought_id:
            self.thought_id = make_id("rs")
            yield self._item_event("added", _reasoning_item(self.thought_id, "in_progress", ""))
            yield self._make_event("content_part.added", **self._place(), part=_reasoning_part(""))
        self.thought += text
        yield self._make_event("reasoning_text.delta", **self._place(), delta=text)

    def _push_text(self, text: str, logprobs: list[Any]) -> Iterator[dict[str, Any]]:
        if not self.message_id:
            yield from self._close("completed")
            self.message_id = make_id("msg")
            yield self._item_event("added", _message_item(self.message_id, "in_progress", []))
            yield self._make_event("content_part.added", **self._place(), part=_text_part("", []))
        self.message_text += text
        self.message_logprobs += logprobs
        yield self._make_event("output_text.delta", **self._place(), delta=text, logprobs=logprobs)

    def _push_call(self, piece: CallPiece) -> Iterator[dict[str, Any]]:
        if piece.begins:
            yield from self._close("completed")
            self.call = piece.call
            yield self._item_event("added", _call_item(piece.call, "in_progress"))
        if piece.arguments:
            place = {"item_id": _call_item(piece.call, "")["id"], "output_index": len(self.output)}
            yield self._make_event("function_call_arguments.delta", **place, delta=piece.arguments)

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        """Yields the events that end the open item."""
        if self.thought_id:
            yield self._make_event("reasoning_text.done", **self._place(), text=self.thought)
            yield self._make_event("content_part.done", **self._place(), part=_reasoning_part(self.thought))
            item = _reasoning_item(self.thought_id, status, self.thought)
            self.thought_id, self.thought = "", ""
        elif self.message_id:
            part = _text_part(self.message_text, self.message_logprobs)
            yield self._make_event("output_text.done", **self._place(), text=part["text"], logprobs=part["logprobs"])
            yield self._make_event("content_part.done", **self._place(), part=part)
            item = _message_item(self.message_id, status, [part])
            self.message_id, self.message_text, self.message_logprobs = "", "", []
        elif self.call:
            item = _call_item(self.call, status)
            fields = {"item_id": item["id"], "output_index": len(self.output), "name": item["name"]}
            yield self._make_event("function_call_arguments.done", **fields, arguments=item["arguments"])
        else:
            return
        self.call = None
        yield self._item_event("done", item)
        self.output.append(item)

    def _finish(self, choice: GeneratedChoice) -> Iterator[dict[str, Any]]:
        failure = FAILURES.get(choice.finish_reason or "")
        if failure:
            response = _describe_response(self.service, self.parsed, "failed", self.output)
            error = {"code": "server_error", "message": failure[0]}
            yield self._make_event("failed", response=response | {"error": error})
            return
        if not (self.output or self.thought_id or self.message_id or self.call):
            yield from self._push_text("", [])  # an answer without text is an empty message
        status = _find_status(choice)
        yield from self._close(status)
        yield self._make_event(status, response=_describe_response(self.service, self.parsed, status, self.output))

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.thought_id or self.message_id, "output_index": len(self.output), "content_index": 0}

    def _item_event(self, kind: str, item: dict[str, Any]) -> dict[str, Any]:
        return self._make_event(f"output_item.{kind}", output_index=len(self.output), item=item)

    def _make_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number, **fields}


ENDPOINT = Endpoint(ResponsesRequest, parse_request, build_response, ResponseEvents, EVENT_STREAM)
