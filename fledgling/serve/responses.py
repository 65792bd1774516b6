"""Response bodies in OpenAI's format, complete or as chunks of a stream, from the worker's events.

`content` is the prose of an answer. Calls of the request's tools are in `tool_calls`; those of the model's own tool and
their outputs in `parts`, so a client that knows only OpenAI's fields shows a clean answer, and the page shows
everything. Log-probabilities are natural logarithms.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fledgling.infer.detokenizer import ContentPart, append_part
from fledgling.infer.engine import GeneratedToken
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished
from fledgling.text.tokenizer import Tokenizer

FINISH_REASONS = {"stop": "stop", "length": "length", "context": "length", "error": "stop", "constraint": "stop"}
FAILURES = {  # finish reason: message, kind and HTTP status
    "error": ("the engine failed on this batch", "server_error", 500),
    "constraint": ("the constraint of the answer exceeds the limits of a step", "invalid_request_error", 400),
}


@dataclass
class GeneratedChoice:
    """One choice of a response, as generated so far."""

    parts: list[ContentPart] = field(default_factory=list)
    tokens: list[GeneratedToken] = field(default_factory=list)
    prompt_tokens: list[GeneratedToken] = field(default_factory=list)  # where the prompt is scored
    finish_reason: str | None = None
    cached_tokens: int = 0  # of the prompt
    began_ns: int = 0  # time.monotonic_ns() of the first tokens; 0: there are none yet
    _tokens_before_prose: int = 0

    def update(self, event: ChoiceEvent) -> None:
        """Appends what an event reports."""
        self.began_ns = self.began_ns or time.monotonic_ns()
        if isinstance(event, ChoiceFinished):
            self.finish_reason, self.cached_tokens = event.finish_reason, event.cached_tokens
        elif event.echo:
            self.prompt_tokens += event.tokens
        else:
            self.tokens += event.tokens
            for part in event.parts:
                append_part(self.parts, part)
            if all(part.kind == "thinking" for part in self.parts):
                self._tokens_before_prose = len(self.tokens)

    @property
    def content(self) -> str:
        """The prose."""
        return join_part_text(self.parts)

    @property
    def thought(self) -> str:
        """What the model thought before its answer, which each protocol has in a field of its own."""
        return join_part_text(self.parts, "thinking")

    @property
    def thought_tokens(self) -> int:
        """The tokens of the thought with what encloses it: those before the event with which the answer begins."""
        return self._tokens_before_prose if self.thought else 0


def join_part_text(parts: Iterable[ContentPart], kind: str = "text") -> str:
    """Returns the prose of an answer, without tool calls, outputs and thoughts; or the text of another kind."""
    return "".join(part.text for part in parts if part.kind == kind)


def build_parts(parts: Iterable[ContentPart]) -> list[dict[str, Any]]:
    """Returns the parts of a message as JSON, without thoughts."""
    return [{"type": part.kind, "text": part.text} for part in parts if part.kind != "thinking"]


class PartStream:
    """The `parts` of one choice's deltas, from its first call of the model's own tool on.

    Each has an index, by which clients join those of one part, as they do with tool calls: one without cannot be
    accumulated (openai-python raises).
    """

    def __init__(self) -> None:
        self.index = -1
        self.kind = ""

    def push(self, parts: Iterable[ContentPart]) -> list[dict[str, Any]]:
        """Returns the parts of a delta as JSON; none before the first call."""
        parts = [part for part in parts if part.kind != "thinking"]
        if self.index < 0 and all(part.kind == "text" for part in parts):
            return []
        entries = []
        for part in parts:
            self.index += part.opens or part.kind != self.kind
            self.kind = part.kind
            entries.append({"index": self.index, "type": part.kind, "text": part.text})
        return entries


def build_usage(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, thought_tokens: int | None = None
) -> dict[str, Any]:
    """Returns the usage: tokens of the prompts, each counted once, and of all answers, including tool output.

    thought_tokens: of the answers' thoughts; None: there is no place for one.
    """
    details = {} if thought_tokens is None else {"completion_tokens_details": {"reasoning_tokens": thought_tokens}}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        **details,
    }


def _token_entry(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    raw = tokenizer.token_bytes[token]
    if not raw:  # a control token has no bytes; its name is shown
        names = (name for name, special_id in tokenizer.special_tokens.items() if special_id == token)
        raw = next(names, "").encode()
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}


def build_chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[GeneratedToken]) -> dict[str, Any]:
    """Returns log-probabilities as chat completions report them; a forced token has 0 and no alternatives."""
    content = []
    for token in tokens:
        top = () if token.forced else token.top_logprobs
        top_entries = [{**_token_entry(tokenizer, other), "logprob": value} for other, value in top]
        content.append({**_token_entry(tokenizer, token.id), "logprob": token.logprob, "top_logprobs": top_entries})
    return {"content": content, "refusal": None}


def build_text_logprobs(tokenizer: Tokenizer, tokens: Iterable[GeneratedToken], offset: int) -> dict[str, Any]:
    """Returns log-probabilities as text completions report them; the text begins at character `offset`.

    The alternatives include the token itself, as OpenAI's do: one more than was asked for, and one for `logprobs` 0.
    """
    texts, logprobs, top_logprobs, offsets = [], [], [], []
    for token in tokens:
        text = _token_entry(tokenizer, token.id)["token"]
        texts.append(text)
        logprobs.append(token.logprob)
        likely = {_token_entry(tokenizer, other)["token"]: value for other, value in token.top_logprobs}
        top_logprobs.append({text: token.logprob} | likely)
        offsets.append(offset)
        offset += len(text)
    return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": top_logprobs, "text_offset": offsets}


def make_id(prefix: str) -> str:
    """Returns a random, unguessable id of a response."""
    return f"{prefix}-{secrets.token_hex(12)}"


def unix_time() -> int:
    """Returns Unix time in whole seconds."""
    return int(time.time())
