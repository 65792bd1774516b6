"""POST /v1/chat/completions: answers a conversation, complete or as a stream of chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fledgling.infer.detokenizer import THOUGHT_END, THOUGHT_START, ContentPart
from fledgling.serve.constraints import AnswerForm, read_answer_form
from fledgling.serve.errors import build_error
from fledgling.serve.extra_fields import forbids_thought, name_demanded_thought
from fledgling.serve.responses import (
    FAILURES,
    FINISH_REASONS,
    GeneratedChoice,
    PartStream,
    build_chat_logprobs,
    build_parts,
    build_usage,
    join_part_text,
    make_id,
    unix_time,
)
from fledgling.serve.schemas import BadRequest, ChatRequest
from fledgling.serve.service import Endpoint, ParsedRequest, Service
from fledgling.serve.tool_calls import CallPiece, CallStream, StreamedToolCall, is_tool_call, list_tool_calls
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, GenerationJob
from fledgling.text.conversation import begins_thought, render_prompt
from fledgling.text.template_layout import split_thought
from fledgling.text.truncation import drop_oldest_turns
from fledgling.text.turns import normalize_turns

OWN_TOOL = ("python", "output")  # kinds of parts: calls of the model's own tool, and what it returned


@dataclass(frozen=True)
class RenderedRequest:
    """The prompt of a chat request, and the form of its answer."""

    prompt: list[int]
    form: AnswerForm
    begins_thought: bool
    dropped_turns: int  # by `truncation`


def render_request(service: Service, body: ChatRequest, any_size: bool = False) -> RenderedRequest:
    """Renders the conversation to a prompt. Raises BadRequest or UserError.

    any_size: also one whose texts cannot fit into the context, which is an error otherwise.
    """
    service.check_model_name(body.model)
    messages = drop_earlier_thoughts([message.to_conversation_message() for message in body.messages])
    engine = service.worker.engine
    form = read_answer_form(body, engine.grammars, engine.has_tool_tokens)
    messages, changes = normalize_turns(messages, [tool.describe() for tool in form.tools])
    service.changed_turns.add(changes)
    dropped = 0
    if body.truncation == "auto":
        messages, dropped = drop_oldest_turns(service.tokenizer, messages, service.context, _max_new_tokens(body))
    if not any_size:
        service.check_prompt_size(_iterate_texts(messages))
    prompt = render_prompt(service.tokenizer, {"messages": messages})
    is_thought = begins_thought(service.tokenizer, prompt) or opens_thought(messages[-1])
    if not is_thought and (name := name_demanded_thought(body)):
        raise BadRequest(f"{name}: not supported; the layout of this model begins no thought", name)
    if is_thought and (form.is_whole or forbids_thought(body)):  # what is demanded is demanded of the answer
        prompt, is_thought = prompt + service.tokenizer.encode(f"\n{THOUGHT_END}\n\n"), False
    return RenderedRequest(prompt, form, is_thought, dropped)


def _max_new_tokens(body: ChatRequest) -> int | None:
    return body.max_completion_tokens or body.max_tokens


def parse_request(service: Service, body: ChatRequest) -> ParsedRequest:
    """Renders the conversation to a prompt and makes its job. Raises BadRequest or UserError."""
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs = true", "top_logprobs")
    rendered = render_request(service, body)
    prompt, form = rendered.prompt, rendered.form
    try:
        sampling = service.make_sampling_params(body, prompt, _max_new_tokens(body), body.top_logprobs or 0)
    except BadRequest as error:
        if form.tools and error.code == "context_length_exceeded":
            error.message += f"; {_describe_tools_size(service, form)}"
        raise
    n = body.n or 1
    service.check_num_choices(n)
    options = body.stream_options
    return ParsedRequest(
        jobs=[
            GenerationJob(
                prompt=tuple(prompt),
                sampling=sampling,
                n=n,
                stop_strings=service.choose_stop_strings(body, form.is_whole),
                tools=body.calculator and (form.grammar is None or bool(form.tools)),
                grammar=form.grammar,
                client_calls=bool(form.tools),
                begins_thought=rendered.begins_thought,
            )
        ],
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        include_logprobs=bool(body.logprobs),
        echo_prefixes=[""] * n,
        id=make_id("chatcmpl"),
        created=unix_time(),
        dropped_turns=rendered.dropped_turns,
    )


def drop_earlier_thoughts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the messages without the thoughts that clients kept in the text of earlier answers."""
    kept = []
    for number, message in enumerate(messages, start=1):
        content = message["content"]
        is_earlier = message["role"] == "assistant" and number < len(messages) and isinstance(content, str)
        if is_earlier and content.lstrip().startswith(THOUGHT_START) and THOUGHT_END in content:
            message = message | {"content": split_thought(content)[1]}
        kept.append(message)
    return kept


def opens_thought(message: Mapping[str, Any]) -> bool:
    """Returns whether a last message is the beginning of an answer that ends within its thought."""
    start = "".join(_iterate_texts([dict(message)])) if message["role"] == "assistant" else ""
    return start.lstrip().startswith(THOUGHT_START) and THOUGHT_END not in start


def _describe_tools_size(service: Service, form: AnswerForm) -> str:
    """Returns how much of a prompt is the description of its tools, for a client that could offer fewer."""
    described = json.dumps([tool.describe() for tool in form.tools])
    size = len(service.tokenizer.encode(described))
    return f"{len(form.tools)} tools take about {size:,} of them: offer fewer, or none"


def _iterate_texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content)


def _make_envelope(service: Service, parsed: ParsedRequest, kind: str) -> dict[str, Any]:
    """Returns the fields that every response and chunk has; `kind` is its "object"."""
    fields = {"id": parsed.id, "object": kind, "created": parsed.created, "model": service.model_name}
    return fields | ({"dropped_turns": parsed.dropped_turns} if parsed.dropped_turns else {})


def build_response(service: Service, parsed: ParsedRequest) -> dict[str, Any]:
    """Returns the body of a complete response from `parsed.choices`, all of which have finished."""
    choices = []
    for index, choice in enumerate(parsed.choices):
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if calls := _list_calls(parsed, choice.parts):
            message |= {"content": choice.content or None, "tool_calls": [call.to_json() for call in calls]}
        if choice.thought:
            message["reasoning_content"] = choice.thought
        if any(part.kind in OWN_TOOL and not (calls and is_tool_call(part)) for part in choice.parts):
            message["parts"] = build_parts(choice.parts)
        choices.append(
            {
                "index": index,
                "message": message,
                "finish_reason": _finish_reason(choice, bool(calls)),
                "logprobs": build_chat_logprobs(service.tokenizer, choice.tokens) if parsed.include_logprobs else None,
            }
        )
    return {**_make_envelope(service, parsed, "chat.completion"), "choices": choices, "usage": _read_usage(parsed)}


def _read_usage(parsed: ParsedRequest) -> dict[str, Any]:
    return build_usage(parsed.prompt_tokens, parsed.completion_tokens, parsed.cached_tokens, parsed.thought_tokens)


def _list_calls(parsed: ParsedRequest, parts: list[ContentPart]) -> list[StreamedToolCall]:
    """Returns the calls of the request's tools; parts are never taken for calls where a request has no tools."""
    return list_tool_calls(parts) if parsed.jobs[0].client_calls else []


def _finish_reason(choice: GeneratedChoice, has_calls: bool) -> str:
    reason = FINISH_REASONS[choice.finish_reason or "stop"]
    return "tool_calls" if has_calls and reason == "stop" else reason


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    """Returns what a piece of a call tells a client: id and name once they are known, then more of the arguments."""
    if not piece.begins:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.call.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.call.id, "type": "function", "function": function}


class ChatChunks:
    """The chunks of a stream, in this order: a role for each choice, its deltas, its finish reason, and the usage."""

    def __init__(self, service: Service, parsed: ParsedRequest) -> None:
        self.service, self.parsed = service, parsed
        self.calls = [CallStream(job.client_calls) for job in parsed.jobs for _ in range(job.n)]
        self.parts = [PartStream() for _ in parsed.choices]

    def start(self) -> Iterator[dict[str, Any]]:
        """Yields the role of each choice."""
        for index in range(len(self.parsed.choices)):
            yield self._make_chunk(index, {"role": "assistant", "content": ""})

    def chunks_of_event(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """Adds an event to `parsed.choices[choice]` and yields the chunks that report it.

        A `ChoiceFinished` gives the finish reason, after an error object if the engine failed. Other events give one
        delta, or none if they have neither text nor requested log-probabilities.
        """
        generated = self.parsed.choices[choice]
        generated.update(event)
        if isinstance(event, ChoiceFinished):
            if event.finish_reason in FAILURES:
                yield build_error(*FAILURES[event.finish_reason][:2])
            yield self._make_chunk(
                choice, {}, _finish_reason(generated, any(call.name for call in self.calls[choice].calls))
            )
            return
        delta: dict[str, Any] = {"content": join_part_text(event.parts)}
        others = []
        for part in event.parts:
            piece = self.calls[choice].push(part)
            if piece is None:
                others.append(part)
            elif piece.begins or piece.arguments:
                delta.setdefault("tool_calls", []).append(_call_delta(piece))
        if thought := join_part_text(others, "thinking"):
            delta["reasoning_content"] = thought
        if parts := self.parts[choice].push(others):
            delta["parts"] = parts
        if event.parts or self.parsed.include_logprobs:
            with_logprobs = self.parsed.include_logprobs
            logprobs = build_chat_logprobs(self.service.tokenizer, event.tokens) if with_logprobs else None
            yield self._make_chunk(choice, delta, logprobs=logprobs)

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields the usage where it was requested."""
        if self.parsed.include_usage:
            usage = {"usage": _read_usage(self.parsed)}
            yield {**_make_envelope(self.service, self.parsed, "chat.completion.chunk"), "choices": [], **usage}

    def _make_chunk(
        self, index: int, delta: dict, finish_reason: str | None = None, logprobs: dict | None = None
    ) -> dict:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return {**_make_envelope(self.service, self.parsed, "chat.completion.chunk"), "choices": [choice]}


ENDPOINT = Endpoint(ChatRequest, parse_request, build_response, ChatChunks)
