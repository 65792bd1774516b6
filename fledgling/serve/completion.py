"""POST /v1/completions: text or token ids in, their continuation out, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fledgling.serve.answers import REASONS, new_id, now, prose, text_logprobs, usage
from fledgling.serve.requests import MOST_CHOICES, BadRequest, CompletionRequest
from fledgling.serve.service import Asked, Service
from fledgling.serve.worker import Done, Event, Job

Request = CompletionRequest
DEFAULT_TOKENS = 16  # as OpenAI has it


def ask(service: Service, body: CompletionRequest) -> Asked:
    """Tokenize the prompts and say how they are to be continued. Raises BadRequest."""
    service.check(body.model)
    prompts, n = body.prompts(), body.n or 1
    if len(prompts) * n > MOST_CHOICES:
        raise BadRequest(f"{len(prompts)} prompts times n = {n} is more than {MOST_CHOICES} choices", "n")
    if body.best_of not in (None, n):
        raise BadRequest(f"best_of is {body.best_of}; only n itself ({n}) is possible", "best_of")
    score = bool(body.echo) and body.logprobs is not None
    most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    jobs, prefixes = [], []
    for prompt in prompts:
        ids = [service.tokenizer.bos, *_ids(service, prompt)]
        sampling = service.sampling(body, ids, max(1, most), body.logprobs or 0)
        jobs.append(Job(tuple(ids), sampling, n, body.stops(), tools=False, score=score, draws=most > 0))
        prefixes += [service.tokenizer.decode(ids[1:]) if body.echo else ""] * n
    options = body.stream_options
    return Asked(
        jobs=jobs,
        stream=bool(body.stream),
        usage=bool(options and options.include_usage),
        logprobs=body.logprobs is not None,
        prefixes=prefixes,
        id=new_id("cmpl"),
        created=now(),
    )


def _ids(service: Service, prompt: str | list[int]) -> list[int]:
    """A prompt as token ids; raises BadRequest for ids that do not exist or that only the server may place."""
    if isinstance(prompt, str):
        return service.tokenizer.encode(prompt)
    control = set(service.tokenizer.special.values())
    wrong = next((i for i in prompt if not 0 <= i < service.tokenizer.vocab_size or i in control), None)
    if wrong is not None:
        raise BadRequest(f"{wrong} is not the id of a token of text", "prompt")
    return prompt


def _envelope(service: Service, asked: Asked) -> dict[str, Any]:
    return {"id": asked.id, "object": "text_completion", "created": asked.created, "model": service.model}


def _choice(number: int, text: str, reason: str | None, logprobs: dict | None) -> dict[str, Any]:
    return {"index": number, "text": text, "finish_reason": reason, "logprobs": logprobs}


def whole(service: Service, asked: Asked) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    choices = []
    for number, (answer, prefix) in enumerate(zip(asked.answers, asked.prefixes, strict=True)):
        tokens, begin = [*answer.echoed, *answer.drawn], 0 if answer.echoed else len(prefix)
        logprobs = text_logprobs(service.tokenizer, tokens, begin) if asked.logprobs else None
        choices.append(_choice(number, prefix + answer.content, REASONS[answer.reason or "stop"], logprobs))
    return {
        **_envelope(service, asked),
        "choices": choices,
        "usage": usage(asked.prompt_tokens, asked.answer_tokens),
    }


class Chunks:
    """The bodies of a stream: the prompt where it is echoed, what follows, why it ended, and the usage if asked for."""

    def __init__(self, service: Service, asked: Asked) -> None:
        self.service, self.asked = service, asked
        self.said = [len(prefix) for prefix in asked.prefixes]  # characters, for the offsets of log-probabilities

    def first(self) -> Iterator[dict[str, Any]]:
        """The echo, unless it comes with log-probabilities: these must be read first."""
        for number, prefix in enumerate(self.asked.prefixes):
            if prefix and not self.asked.logprobs:
                yield self._chunk(_choice(number, prefix, None, None))

    def of(self, choice: int, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of one event."""
        self.asked.answers[choice].take(event)
        if isinstance(event, Done):
            if event.reason == "error":
                yield {"error": {"message": "the engine failed", "type": "server_error", "param": None, "code": None}}
            yield self._chunk(_choice(choice, "", REASONS[event.reason], None))
            return
        if event.echo:
            prefix = self.asked.prefixes[choice]
            yield self._chunk(_choice(choice, prefix, None, text_logprobs(self.service.tokenizer, event.drawn, 0)))
            return
        text, logprobs = prose(event.pieces), None
        if self.asked.logprobs:
            logprobs = text_logprobs(self.service.tokenizer, event.drawn, self.said[choice])
        self.said[choice] += len(text)
        if text or logprobs:
            yield self._chunk(_choice(choice, text, None, logprobs))

    def last(self) -> Iterator[dict[str, Any]]:
        """The usage."""
        if self.asked.usage:
            counted = usage(self.asked.prompt_tokens, self.asked.answer_tokens)
            yield {**_envelope(self.service, self.asked), "choices": [], "usage": counted}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**_envelope(self.service, self.asked), "choices": [choice]}
