"""POST /v1/chat/completions: answers a conversation, complete or as a stream of chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fledgling.serve.responses import (
    FINISH_REASONS,
    build_chat_logprobs,
    build_error,
    build_parts,
    build_usage,
    join_text,
    make_id,
    unix_time,
)
from fledgling.serve.schemas import BadRequest, ChatRequest
from fledgling.serve.service import Endpoint, ParsedRequest, Service
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, GenerationJob
from fledgling.text.conversation import render_prompt
from fledgling.text.truncation import drop_oldest_turns


def parse_request(service: Service, body: ChatRequest) -> ParsedRequest:
    """Renders the conversation to a prompt and makes its job. Raises BadRequest or UserError."""
    service.check_model_name(body.model)
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs = true", "top_logprobs")
    messages = [message.to_conversation_message() for message in body.messages]
    max_new_tokens = body.max_completion_tokens or body.max_tokens
    dropped = 0
    if body.truncation == "auto":
        messages, dropped = drop_oldest_turns(service.tokenizer, messages, service.context, max_new_tokens)
        service.check_prompt_size(_texts(messages))
    else:
        service.check_prompt_size(text for message in body.messages for text in message.texts())
    prompt = render_prompt(service.tokenizer, {"messages": messages})
    sampling = service.make_sampling_params(body, prompt, max_new_tokens, body.top_logprobs or 0)
    n = body.n or 1
    options = body.stream_options
    return ParsedRequest(
        jobs=[GenerationJob(tuple(prompt), sampling, n, body.stop_strings(), body.calculator)],
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        include_logprobs=bool(body.logprobs),
        echo_prefixes=[""] * n,
        id=make_id("chatcmpl"),
        created=unix_time(),
        dropped_turns=dropped,
    )


def _texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content)


def _envelope(service: Service, parsed: ParsedRequest, kind: str) -> dict[str, Any]:
    """Returns the fields that every response and chunk has; `kind` is its "object"."""
    fields = {"id": parsed.id, "object": kind, "created": parsed.created, "model": service.model_name}
    return fields | ({"dropped_turns": parsed.dropped_turns} if parsed.dropped_turns else {})


def build_response(service: Service, parsed: ParsedRequest) -> dict[str, Any]:
    """Returns the body of a complete response from `parsed.choices`, all of which have finished."""
    choices = []
    for index, choice in enumerate(parsed.choices):
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if any(part.kind != "text" for part in choice.parts):
            message["parts"] = build_parts(choice.parts)
        choices.append(
            {
                "index": index,
                "message": message,
                "finish_reason": FINISH_REASONS[choice.finish_reason or "stop"],
                "logprobs": build_chat_logprobs(service.tokenizer, choice.tokens) if parsed.include_logprobs else None,
            }
        )
    usage = build_usage(parsed.prompt_tokens, parsed.completion_tokens)
    return {**_envelope(service, parsed, "chat.completion"), "choices": choices, "usage": usage}


class ChatChunks:
    """The chunks of a stream, in this order: a role for each choice, its deltas, its finish reason, and the usage."""

    def __init__(self, service: Service, parsed: ParsedRequest) -> None:
        self.service, self.parsed = service, parsed

    def start(self) -> Iterator[dict[str, Any]]:
        """Yields the role of each choice."""
        for index in range(len(self.parsed.choices)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def chunks_of_event(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """Adds an event to `parsed.choices[choice]` and yields the chunks that report it.

        A `ChoiceFinished` gives the finish reason, after an error object if the engine failed. Other events give one
        delta, or none if they have neither text nor requested log-probabilities.
        """
        self.parsed.choices[choice].update(event)
        if isinstance(event, ChoiceFinished):
            if event.finish_reason == "error":
                yield build_error("the engine failed", "server_error")
            yield self._chunk(choice, {}, FINISH_REASONS[event.finish_reason])
            return
        delta: dict[str, Any] = {"content": join_text(event.parts)}
        if any(part.kind != "text" for part in event.parts):
            delta["parts"] = build_parts(event.parts)
        if event.parts or self.parsed.include_logprobs:
            with_logprobs = self.parsed.include_logprobs
            logprobs = build_chat_logprobs(self.service.tokenizer, event.tokens) if with_logprobs else None
            yield self._chunk(choice, delta, logprobs=logprobs)

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields the usage where it was requested."""
        if self.parsed.include_usage:
            usage = build_usage(self.parsed.prompt_tokens, self.parsed.completion_tokens)
            yield {**_envelope(self.service, self.parsed, "chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: dict, finish_reason: str | None = None, logprobs: dict | None = None) -> dict:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return {**_envelope(self.service, self.parsed, "chat.completion.chunk"), "choices": [choice]}


ENDPOINT = Endpoint(ChatRequest, parse_request, build_response, ChatChunks)
