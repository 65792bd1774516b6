"""POST /v1/completions: continues texts or token ids, complete or as a stream of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fledgling.infer.engine import GeneratedToken
from fledgling.serve.constraints import compile_constraint
from fledgling.serve.errors import build_error
from fledgling.serve.responses import (
    FAILURES,
    FINISH_REASONS,
    build_text_logprobs,
    build_usage,
    join_part_text,
    make_id,
    unix_time,
)
from fledgling.serve.schemas import MAX_CHOICES, BadRequest, CompletionRequest
from fledgling.serve.service import Endpoint, ParsedRequest, Service
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, GenerationJob

DEFAULT_MAX_TOKENS = 16  # OpenAI's default


def parse_request(service: Service, body: CompletionRequest) -> ParsedRequest:
    """Tokenizes the prompts and makes a job of each. Raises BadRequest."""
    service.check_model_name(body.model)
    prompts, n = body.prompt_list(), body.n or 1
    if len(prompts) * n > MAX_CHOICES:
        raise BadRequest(f"{len(prompts)} prompts times n = {n} is more than {MAX_CHOICES} choices", "n")
    service.check_num_choices(len(prompts) * n)
    if body.best_of not in (None, n):
        raise BadRequest(f"best_of is {body.best_of}; only n itself ({n}) is possible", "best_of")
    score_prompt = bool(body.echo) and body.logprobs is not None
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    grammar = compile_constraint(body, service.worker.engine.grammars)
    stop_strings = service.choose_stop_strings(body, grammar is not None)
    jobs, echo_prefixes = [], []
    for prompt in prompts:
        ids = [service.tokenizer.bos, *service.tokenize_text(prompt, "prompt")]
        job = GenerationJob(
            prompt=tuple(ids),
            sampling=service.make_sampling_params(body, ids, max(1, max_tokens), body.logprobs or 0),
            n=n,
            stop_strings=stop_strings,
            tools=False,
            has_thoughts=False,
            score_prompt=score_prompt,
            generate=max_tokens > 0,
            grammar=grammar,
        )
        jobs.append(job)
        echo_prefixes += [service.tokenizer.decode(ids[1:]) if body.echo else ""] * n
    options = body.stream_options
    return ParsedRequest(
        jobs=jobs,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        include_logprobs=body.logprobs is not None,
        echo_prefixes=echo_prefixes,
        id=make_id("cmpl"),
        created=unix_time(),
    )


def _make_envelope(service: Service, parsed: ParsedRequest) -> dict[str, Any]:
    return {"id": parsed.id, "object": "text_completion", "created": parsed.created, "model": service.model_name}


def _make_choice(index: int, text: str, finish_reason: str | None, logprobs: dict | None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": logprobs}


def build_response(service: Service, parsed: ParsedRequest) -> dict[str, Any]:
    """Returns the body of a complete response."""
    choices = []
    for index, (choice, prefix) in enumerate(zip(parsed.choices, parsed.echo_prefixes, strict=True)):
        tokens, offset = [*choice.prompt_tokens, *choice.tokens], 0 if choice.prompt_tokens else len(prefix)
        logprobs = build_text_logprobs(service.tokenizer, tokens, offset) if parsed.include_logprobs else None
        reason = FINISH_REASONS[choice.finish_reason or "stop"]
        choices.append(_make_choice(index, prefix + choice.content, reason, logprobs))
    usage = build_usage(parsed.prompt_tokens, parsed.completion_tokens, parsed.cached_tokens)
    return {**_make_envelope(service, parsed), "choices": choices, "usage": usage}


class CompletionChunks:
    """The chunks of a stream: the echoed prompt where requested, the continuation, its finish reason, the usage."""

    def __init__(self, service: Service, parsed: ParsedRequest) -> None:
        self.service, self.parsed = service, parsed
        # Offsets of the next token's text. Text that may begin a stop string is sent later than its log-probabilities.
        self.offsets = [0 if parsed.jobs[0].score_prompt else len(prefix) for prefix in parsed.echo_prefixes]

    def start(self) -> Iterator[dict[str, Any]]:
        """Yields the echoed prompt; with log-probabilities it follows once the prompt is scored."""
        for index, prefix in enumerate(self.parsed.echo_prefixes):
            if prefix and not self.parsed.include_logprobs:
                yield self._make_chunk(_make_choice(index, prefix, None, None))

    def chunks_of_event(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """Adds an event to `parsed.choices[choice]` and yields the chunks that report it."""
        self.parsed.choices[choice].update(event)
        if isinstance(event, ChoiceFinished):
            if event.finish_reason in FAILURES:
                yield build_error(*FAILURES[event.finish_reason][:2])
            yield self._make_chunk(_make_choice(choice, "", FINISH_REASONS[event.finish_reason], None))
            return
        text = self.parsed.echo_prefixes[choice] if event.echo else join_part_text(event.parts)
        logprobs = self._build_logprobs(choice, event.tokens) if self.parsed.include_logprobs else None
        if text or logprobs:
            yield self._make_chunk(_make_choice(choice, text, None, logprobs))

    def _build_logprobs(self, choice: int, tokens: Sequence[GeneratedToken]) -> dict[str, Any]:
        """Returns the log-probabilities of the next tokens of a choice."""
        logprobs = build_text_logprobs(self.service.tokenizer, tokens, self.offsets[choice])
        self.offsets[choice] += sum(map(len, logprobs["tokens"]))
        return logprobs

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields the usage where it was requested."""
        if self.parsed.include_usage:
            usage = build_usage(self.parsed.prompt_tokens, self.parsed.completion_tokens, self.parsed.cached_tokens)
            yield {**_make_envelope(self.service, self.parsed), "choices": [], "usage": usage}

    def _make_chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**_make_envelope(self.service, self.parsed), "choices": [choice]}


ENDPOINT = Endpoint(CompletionRequest, parse_request, build_response, CompletionChunks)
