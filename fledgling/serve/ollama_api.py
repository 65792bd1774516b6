"""Ollama's answers (chat, generate) over the same conversation, or a text as it is, in lines of JSON unless complete.

Options that change an answer are honored under Ollama's names; those of its runner (`num_ctx`, `num_thread`) are
ignored and counted. Durations are in nanoseconds: until the first token, which includes the wait for a place in the
batch, from it to the last, and both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, StrictBool

from fledgling.infer.json_schema import close_objects
from fledgling.serve import chat, completion
from fledgling.serve.other_settings import OTHER_SETTINGS, reject_fields
from fledgling.serve.responses import FAILURES, GeneratedChoice, join_part_text, make_id, unix_time
from fledgling.serve.schemas import (
    MAX_MESSAGES,
    MAX_TOOL_CALLS,
    BadRequest,
    ChatRequest,
    CompletionRequest,
    ContextText,
    IgnoringBody,
    Integer,
    JsonObject,
    Name,
    Number,
    SchemaText,
    StopString,
    StopStrings,
    Tools,
    validate_body,
)
from fledgling.serve.service import LINE_STREAM, Endpoint, ParsedRequest, Service
from fledgling.serve.tool_calls import list_tool_calls
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished
from fledgling.text.truncation import max_prompt_tokens

OPTION_NAMES = {  # Ollama's name: the field of a chat request
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    **{
        name: name
        for name in ["temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty"]
    },
}
SETTINGS = ("context", *OTHER_SETTINGS, *OPTION_NAMES)
HINTS = {
    "context": "send the earlier turns to /api/chat",
    "response_format": "use format",
}
HINTS |= {name: f"use options.{name}" for name in OPTION_NAMES}
Image = Annotated[list[Any], Field(max_length=0, description="Only empty: the model reads text only.")]


class Options(IgnoringBody):
    """Settings of sampling."""

    num_predict: Integer | None = None  # negative: as many as fit
    repeat_penalty: Number | None = None
    temperature: Number | None = None
    top_k: Integer | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    seed: Integer | None = None
    stop: StopString | StopStrings | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None


class OllamaMessage(IgnoringBody):
    """One message; arguments of calls are objects."""

    role: Name
    content: ContextText | None = None
    images: Image | None = None
    tool_calls: Annotated[list[JsonObject], Field(fail_fast=True, max_length=MAX_TOOL_CALLS)] | None = None


class _OllamaRequest(IgnoringBody):
    model: Name = ""
    format: SchemaText | JsonObject | None = None
    options: Options | None = None
    stream: StrictBool | None = None  # None: a stream
    truncate: StrictBool | None = None  # None: true


class OllamaChatRequest(_OllamaRequest):
    """Body of POST /api/chat."""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True, max_length=MAX_MESSAGES)] = Field(
        default_factory=list
    )
    tools: Tools | None = None


class GenerateRequest(_OllamaRequest):
    """Body of POST /api/generate: one question, or with `raw` a text that is continued without the layout."""

    prompt: ContextText = ""
    system: ContextText | None = None
    suffix: Annotated[ContextText, Field(description="Only empty: the model fills no middle.")] | None = None
    images: Image | None = None
    raw: StrictBool | None = None


def parse_chat(service: Service, body: OllamaChatRequest) -> ParsedRequest:
    """Makes the chat request of a body and its job. Raises BadRequest or UserError."""
    messages = []
    for message in body.messages:
        converted: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            converted["tool_calls"] = [_read_call(call) for call in message.tool_calls]
        messages.append(converted)
    return _parse_body(service, body, messages, body.tools)


def parse_generate(service: Service, body: GenerateRequest) -> ParsedRequest:
    """Makes the request of a question, or of a text to continue, and its job. Raises BadRequest or UserError."""
    if body.suffix:
        reason = "does not support insert: it was not taught to fill the middle of a text"
        raise BadRequest(f"suffix: {service.model_name!r} {reason}; send what precedes it as prompt", "suffix")
    if body.raw and body.system:
        raise BadRequest("system: raw mode does not support it; write it into the prompt", "system")
    if body.raw and body.prompt:
        return _parse_raw(service, body)
    system = [{"role": "system", "content": body.system}] if body.system else []
    messages = [*system, {"role": "user", "content": body.prompt}] if body.prompt else []
    return _parse_body(service, body, messages, None)


def _parse_raw(service: Service, body: GenerateRequest) -> ParsedRequest:
    """Makes the text completion of a prompt, after bos and without the layout of a conversation.

    A prompt that leaves no room for an answer loses its beginning, as Ollama does, unless `truncate` is false.
    """
    reject_fields(body, SETTINGS, HINTS)
    fields = _read_fields(body)
    prompt: str | list[int] = body.prompt
    if body.truncate is not False:
        ids = service.tokenizer.encode(
            body.prompt[-service.max_text_bytes :]
        )  # no token has more characters than bytes
        prompt = ids[1 - max_prompt_tokens(service.context, fields["max_tokens"]) :]
        service.changed_turns.add(["cut"] if len(prompt) < len(ids) else [])
    fields |= {"prompt": prompt, "max_tokens": fields["max_tokens"] or service.context}
    return _parse_fields(service, completion.parse_request, CompletionRequest, fields)


def _read_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        raise BadRequest("messages: a tool call without a function", "messages")
    return {"function": {"name": function.get("name"), "arguments": json.dumps(function.get("arguments") or {})}}


def _parse_body(service: Service, body: _OllamaRequest, messages: list[Any], tools: list[Any] | None) -> ParsedRequest:
    reject_fields(body, SETTINGS, HINTS)
    if not messages:  # Ollama's request to load the model
        service.check_model_name(body.model)
        stream = body.stream is not False
        loaded = ParsedRequest([], stream, False, False, [], make_id("chatcmpl"), unix_time())
        loaded.body = time.monotonic_ns()
        return loaded
    fields = _read_fields(body) | {"messages": messages, "tools": tools}
    fields["truncation"] = "disabled" if body.truncate is False else "auto"
    fields["think"] = (body.model_extra or {}).get("think")
    return _parse_fields(service, chat.parse_request, ChatRequest, fields)


def _parse_fields(service: Service, parse: Callable[..., ParsedRequest], kind: Any, fields: Any) -> ParsedRequest:
    """Returns what `parse` makes of fields; an error of a constraint is named after Ollama's field."""
    try:
        parsed = parse(service, validate_body(kind, fields))
    except BadRequest as error:
        if error.param != "structured_outputs":
            raise
        raise BadRequest(error.message.replace("structured_outputs.json", "format", 1), "format") from None
    parsed.body = time.monotonic_ns()
    return parsed


def _read_fields(body: _OllamaRequest) -> dict[str, Any]:
    """Returns the fields that both kinds of completion have: options, format, stream. Raises BadRequest."""
    options = body.options or Options()
    fields = {field: getattr(options, name) for name, field in OPTION_NAMES.items()}
    if (options.num_predict or 0) <= 0:
        fields["max_tokens"] = None
    constraint: dict[str, Any] | None = None
    if body.format == "json":
        constraint = {"json_object": True}
    elif isinstance(body.format, dict):
        constraint = {"json": close_objects(body.format)}
    elif body.format:
        raise BadRequest("format: expected 'json' or a JSON schema", "format")
    return fields | {"model": body.model, "structured_outputs": constraint, "stream": body.stream is not False}


@dataclass(frozen=True)
class _Piece:
    """Prose and thought of a line."""

    text: str = ""
    thought: str = ""
    is_last: bool = False

    def with_thought(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields, with the thought where there is one."""
        return fields | ({"thinking": self.thought} if self.thought else {})


def _message_of(choice: GeneratedChoice, parsed: ParsedRequest, piece: _Piece) -> dict[str, Any]:
    message = piece.with_thought({"role": "assistant", "content": piece.text})
    calls = list_tool_calls(choice.parts) if piece.is_last and parsed.jobs[0].client_calls else []
    if calls:
        message["tool_calls"] = []
        for call in calls:
            if (value := call.parse_arguments()) is not None:
                message["tool_calls"].append({"function": {"name": call.name, "arguments": value}})
    return message


def _chat_line(choice: GeneratedChoice, parsed: ParsedRequest, piece: _Piece) -> dict[str, Any]:
    return {"message": _message_of(choice, parsed, piece)}


def _generate_line(choice: GeneratedChoice, parsed: ParsedRequest, piece: _Piece) -> dict[str, Any]:
    return piece.with_thought({"response": piece.text})


Line = Callable[[GeneratedChoice, ParsedRequest, _Piece], dict[str, Any]]


def _make_envelope(service: Service) -> dict[str, Any]:
    return {"model": service.model_name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _make_loaded_line(line: Line, service: Service, parsed: ParsedRequest) -> dict[str, Any]:
    """Returns the answer to a request without a question, which loads the model in Ollama; here it always is."""
    text = {"response": ""} if line is _generate_line else {"message": {"role": "assistant", "content": ""}}
    return {**_make_envelope(service), **text, "done": True, "done_reason": "load"}


def _make_end_fields(choice: GeneratedChoice, parsed: ParsedRequest) -> dict[str, Any]:
    reason = "length" if choice.finish_reason in ("length", "context") else "stop"
    end, began = time.monotonic_ns(), choice.began_ns
    durations = {"total_duration": end - parsed.body, "load_duration": 0}
    prompt = {"prompt_eval_count": parsed.prompt_tokens, "prompt_eval_duration": began - parsed.body}
    answer = {"eval_count": parsed.completion_tokens, "eval_duration": end - began}
    return {"done": True, "done_reason": reason, **durations, **prompt, **answer}


def _response_builder(line: Line) -> Callable[[Service, ParsedRequest], dict[str, Any]]:
    def build_response(service: Service, parsed: ParsedRequest) -> dict[str, Any]:
        if not parsed.jobs:
            return _make_loaded_line(line, service, parsed)
        choice = parsed.choices[0]
        return {
            **_make_envelope(service),
            **line(choice, parsed, _Piece(choice.content, choice.thought, True)),
            **_make_end_fields(choice, parsed),
        }

    return build_response


class OllamaLines:
    """The lines of a stream: a piece of text each, and the counts last."""

    def __init__(self, line: Line, service: Service, parsed: ParsedRequest) -> None:
        self.line, self.service, self.parsed = line, service, parsed

    def start(self) -> Iterator[dict[str, Any]]:
        """Yields the only line where nothing is generated."""
        if not self.parsed.jobs:
            yield _make_loaded_line(self.line, self.service, self.parsed)

    def chunks_of_event(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """Adds an event of the worker to the choice and yields the line that reports it."""
        generated = self.parsed.choices[choice]
        generated.update(event)
        if isinstance(event, ChoiceFinished):
            if failure := FAILURES.get(event.finish_reason):
                yield {"error": failure[0]}
                return
            line = self.line(generated, self.parsed, _Piece(is_last=True))
            yield {**_make_envelope(self.service), **line, **_make_end_fields(generated, self.parsed)}
            return
        piece = _Piece(join_part_text(event.parts), join_part_text(event.parts, "thinking"))
        if piece.text or piece.thought:
            yield {**_make_envelope(self.service), **self.line(generated, self.parsed, piece), "done": False}

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields nothing: the last line is that of the choice's end."""
        yield from ()


def _make_endpoint(body: type[IgnoringBody], parse: Callable[[Service, Any], ParsedRequest], line: Line) -> Endpoint:
    def make_lines(service: Service, parsed: ParsedRequest) -> OllamaLines:
        return OllamaLines(line, service, parsed)

    return Endpoint(body, parse, _response_builder(line), make_lines, LINE_STREAM)


CHAT = _make_endpoint(OllamaChatRequest, parse_chat, _chat_line)
GENERATE = _make_endpoint(GenerateRequest, parse_generate, _generate_line)
