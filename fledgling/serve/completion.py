"""POST /v1/completions: text or token ids in, their continuation out, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fledgling.serve.responses import FINISH_REASONS, build_text_logprobs, build_usage, join_text, make_id, unix_time
from fledgling.serve.schemas import MAX_CHOICES, BadRequest, CompletionRequest
from fledgling.serve.service import ParsedRequest, Service
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, GenerationJob

Request = CompletionRequest
DEFAULT_TOKENS = 16  # as OpenAI has it


def ask(service: Service, body: CompletionRequest) -> ParsedRequest:
    """Tokenize the prompts and say how they are to be continued. Raises BadRequest."""
    service.check_model_name(body.model)
    prompts, n = body.prompt_list(), body.n or 1
    if len(prompts) * n > MAX_CHOICES:
        raise BadRequest(f"{len(prompts)} prompts times n = {n} is more than {MAX_CHOICES} choices", "n")
    if body.best_of not in (None, n):
        raise BadRequest(f"best_of is {body.best_of}; only n itself ({n}) is possible", "best_of")
    score = bool(body.echo) and body.logprobs is not None
    most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    jobs, prefixes = [], []
    for prompt in prompts:
        ids = [service.tokenizer.bos, *_ids(service, prompt)]
        sampling = service.make_sampling_params(body, ids, max(1, most), body.logprobs or 0)
        jobs.append(
            GenerationJob(
                tuple(ids), sampling, n, body.stop_strings(), use_tools=False, score_prompt=score, generate=most > 0
            )
        )
        prefixes += [service.tokenizer.decode(ids[1:]) if body.echo else ""] * n
    options = body.stream_options
    return ParsedRequest(
        jobs=jobs,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        include_logprobs=body.logprobs is not None,
        echo_prefixes=prefixes,
        id=make_id("cmpl"),
        created=unix_time(),
    )


def _ids(service: Service, prompt: str | list[int]) -> list[int]:
    """A prompt as token ids; raises BadRequest for ids that do not exist or that only the server may place."""
    if isinstance(prompt, str):
        return service.tokenizer.encode(prompt)
    control = set(service.tokenizer.special_tokens.values())
    wrong = next((i for i in prompt if not 0 <= i < service.tokenizer.vocab_size or i in control), None)
    if wrong is not None:
        raise BadRequest(f"{wrong} is not the id of a token of text", "prompt")
    return prompt


def _envelope(service: Service, asked: ParsedRequest) -> dict[str, Any]:
    return {"id": asked.id, "object": "text_completion", "created": asked.created, "model": service.model_name}


def _choice(number: int, text: str, reason: str | None, logprobs: dict | None) -> dict[str, Any]:
    return {"index": number, "text": text, "finish_reason": reason, "logprobs": logprobs}


def whole(service: Service, asked: ParsedRequest) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    choices = []
    for number, (answer, prefix) in enumerate(zip(asked.choices, asked.echo_prefixes, strict=True)):
        tokens, begin = [*answer.prompt_tokens, *answer.tokens], 0 if answer.prompt_tokens else len(prefix)
        logprobs = build_text_logprobs(service.tokenizer, tokens, begin) if asked.include_logprobs else None
        choices.append(
            _choice(number, prefix + answer.content, FINISH_REASONS[answer.finish_reason or "stop"], logprobs)
        )
    return {
        **_envelope(service, asked),
        "choices": choices,
        "usage": build_usage(asked.prompt_tokens, asked.completion_tokens),
    }


class Chunks:
    """The bodies of a stream: the prompt where it is echoed, what follows, why it ended, and the usage if asked for."""

    def __init__(self, service: Service, asked: ParsedRequest) -> None:
        self.service, self.asked = service, asked
        self.said = [len(prefix) for prefix in asked.echo_prefixes]  # characters, for the offsets of log-probabilities

    def first(self) -> Iterator[dict[str, Any]]:
        """The echo, unless it comes with log-probabilities: these must be read first."""
        for number, prefix in enumerate(self.asked.echo_prefixes):
            if prefix and not self.asked.include_logprobs:
                yield self._chunk(_choice(number, prefix, None, None))

    def of(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """The chunks of one event."""
        self.asked.choices[choice].update(event)
        if isinstance(event, ChoiceFinished):
            if event.finish_reason == "error":
                yield {"error": {"message": "the engine failed", "type": "server_error", "param": None, "code": None}}
            yield self._chunk(_choice(choice, "", FINISH_REASONS[event.finish_reason], None))
            return
        if event.echo:
            prefix = self.asked.echo_prefixes[choice]
            yield self._chunk(
                _choice(choice, prefix, None, build_text_logprobs(self.service.tokenizer, event.tokens, 0))
            )
            return
        text, logprobs = join_text(event.parts), None
        if self.asked.include_logprobs:
            logprobs = build_text_logprobs(self.service.tokenizer, event.tokens, self.said[choice])
        self.said[choice] += len(text)
        if text or logprobs:
            yield self._chunk(_choice(choice, text, None, logprobs))

    def last(self) -> Iterator[dict[str, Any]]:
        """The usage."""
        if self.asked.include_usage:
            counted = build_usage(self.asked.prompt_tokens, self.asked.completion_tokens)
            yield {**_envelope(self.service, self.asked), "choices": [], "usage": counted}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**_envelope(self.service, self.asked), "choices": [choice]}
