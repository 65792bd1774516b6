"""POST /v1/chat/completions: a conversation in, an answer out, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fledgling.serve.answers import REASONS, as_parts, chat_logprobs, new_id, now, prose, usage
from fledgling.serve.requests import BadRequest, ChatRequest
from fledgling.serve.service import Asked, Service
from fledgling.serve.worker import Done, Event, Job
from fledgling.text.conversation import render_prompt

Request = ChatRequest


def ask(service: Service, body: ChatRequest) -> Asked:
    """Render the conversation and say how it is to be answered. Raises BadRequest or UserError."""
    service.check(body.model)
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs = true", "top_logprobs")
    prompt = render_prompt(service.tokenizer, {"messages": [message.plain() for message in body.messages]})
    sampling = service.sampling(body, prompt, body.max_completion_tokens or body.max_tokens, body.top_logprobs or 0)
    n = body.n or 1
    options = body.stream_options
    return Asked(
        jobs=[Job(tuple(prompt), sampling, n, body.stops(), body.calculator)],
        stream=bool(body.stream),
        usage=bool(options and options.include_usage),
        logprobs=bool(body.logprobs),
        prefixes=[""] * n,
        id=new_id("chatcmpl"),
        created=now(),
    )


def _envelope(service: Service, asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": asked.id, "object": kind, "created": asked.created, "model": service.model}


def whole(service: Service, asked: Asked) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    choices = []
    for number, answer in enumerate(asked.answers):
        message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
        if any(piece.kind != "text" for piece in answer.parts):
            message["parts"] = as_parts(answer.parts)
        choices.append(
            {
                "index": number,
                "message": message,
                "finish_reason": REASONS[answer.reason or "stop"],
                "logprobs": chat_logprobs(service.tokenizer, answer.drawn) if asked.logprobs else None,
            }
        )
    counted = usage(asked.prompt_tokens, asked.answer_tokens)
    return {**_envelope(service, asked, "chat.completion"), "choices": choices, "usage": counted}


class Chunks:
    """The bodies of a stream: a role for each choice, what is said, why it ended, and the usage where asked for."""

    def __init__(self, service: Service, asked: Asked) -> None:
        self.service, self.asked = service, asked

    def first(self) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        for number in range(len(self.asked.answers)):
            yield self._chunk(number, {"role": "assistant", "content": ""})

    def of(self, choice: int, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of one event."""
        self.asked.answers[choice].take(event)
        if isinstance(event, Done):
            if event.reason == "error":
                yield {"error": {"message": "the engine failed", "type": "server_error", "param": None, "code": None}}
            yield self._chunk(choice, {}, REASONS[event.reason])
            return
        delta: dict[str, Any] = {"content": prose(event.pieces)}
        if any(piece.kind != "text" for piece in event.pieces):
            delta["parts"] = as_parts(event.pieces)
        if event.pieces or self.asked.logprobs:
            logprobs = chat_logprobs(self.service.tokenizer, event.drawn) if self.asked.logprobs else None
            yield self._chunk(choice, delta, logprobs=logprobs)

    def last(self) -> Iterator[dict[str, Any]]:
        """The usage."""
        if self.asked.usage:
            counted = usage(self.asked.prompt_tokens, self.asked.answer_tokens)
            yield {**_envelope(self.service, self.asked, "chat.completion.chunk"), "choices": [], "usage": counted}

    def _chunk(self, choice: int, delta: dict, reason: str | None = None, logprobs: dict | None = None) -> dict:
        one = {"index": choice, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return {**_envelope(self.service, self.asked, "chat.completion.chunk"), "choices": [one]}
