"""POST /v1/chat/completions: a conversation in, an answer out, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fledgling.serve.responses import (
    FINISH_REASONS,
    build_chat_logprobs,
    build_parts,
    build_usage,
    join_text,
    make_id,
    unix_time,
)
from fledgling.serve.schemas import BadRequest, ChatRequest
from fledgling.serve.service import ParsedRequest, Service
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, GenerationJob
from fledgling.text.conversation import render_prompt

Request = ChatRequest


def ask(service: Service, body: ChatRequest) -> ParsedRequest:
    """Render the conversation and say how it is to be answered. Raises BadRequest or UserError."""
    service.check_model_name(body.model)
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs = true", "top_logprobs")
    prompt = render_prompt(
        service.tokenizer, {"messages": [message.to_conversation_message() for message in body.messages]}
    )
    sampling = service.make_sampling_params(
        body, prompt, body.max_completion_tokens or body.max_tokens, body.top_logprobs or 0
    )
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
    )


def _envelope(service: Service, asked: ParsedRequest, kind: str) -> dict[str, Any]:
    return {"id": asked.id, "object": kind, "created": asked.created, "model": service.model_name}


def whole(service: Service, asked: ParsedRequest) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    choices = []
    for number, answer in enumerate(asked.choices):
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
        if any(piece.kind != "text" for piece in answer.parts):
            message["parts"] = build_parts(answer.parts)
        choices.append(
            {
                "index": number,
                "message": message,
                "finish_reason": FINISH_REASONS[answer.finish_reason or "stop"],
                "logprobs": build_chat_logprobs(service.tokenizer, answer.tokens) if asked.include_logprobs else None,
            }
        )
    counted = build_usage(asked.prompt_tokens, asked.completion_tokens)
    return {**_envelope(service, asked, "chat.completion"), "choices": choices, "usage": counted}


class Chunks:
    """The bodies of a stream: a role for each choice, what is said, why it ended, and the usage where asked for."""

    def __init__(self, service: Service, asked: ParsedRequest) -> None:
        self.service, self.asked = service, asked

    def first(self) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        for number in range(len(self.asked.choices)):
            yield self._chunk(number, {"role": "assistant", "content": ""})

    def of(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """The chunks of one event."""
        self.asked.choices[choice].update(event)
        if isinstance(event, ChoiceFinished):
            if event.finish_reason == "error":
                yield {"error": {"message": "the engine failed", "type": "server_error", "param": None, "code": None}}
            yield self._chunk(choice, {}, FINISH_REASONS[event.finish_reason])
            return
        delta: dict[str, Any] = {"content": join_text(event.parts)}
        if any(piece.kind != "text" for piece in event.parts):
            delta["parts"] = build_parts(event.parts)
        if event.parts or self.asked.include_logprobs:
            logprobs = (
                build_chat_logprobs(self.service.tokenizer, event.tokens) if self.asked.include_logprobs else None
            )
            yield self._chunk(choice, delta, logprobs=logprobs)

    def last(self) -> Iterator[dict[str, Any]]:
        """The usage."""
        if self.asked.include_usage:
            counted = build_usage(self.asked.prompt_tokens, self.asked.completion_tokens)
            yield {**_envelope(self.service, self.asked, "chat.completion.chunk"), "choices": [], "usage": counted}

    def _chunk(self, choice: int, delta: dict, reason: str | None = None, logprobs: dict | None = None) -> dict:
        one = {"index": choice, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return {**_envelope(self.service, self.asked, "chat.completion.chunk"), "choices": [one]}
