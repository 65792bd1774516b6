"""What goes back: events of the worker as OpenAI's bodies, whole or as a stream of chunks.

The one idea: text and tokens are told apart. `content` is the prose of an answer; calls of the tool and what it said
travel beside it in `parts`, so that a client which knows only OpenAI's fields shows a clean answer, and the page shows
everything.

B choices; logprobs are natural logarithms.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fledgling.infer.detokenizer import ContentPart
from fledgling.serve.worker import ChoiceEvent, ChoiceFinished, GeneratedToken
from fledgling.text.tokenizer import Tokenizer

FINISH_REASONS = {"stop": "stop", "length": "length", "context": "length", "error": "stop"}


@dataclass
class GeneratedChoice:
    """One choice as it has been said so far."""

    parts: list[ContentPart] = field(default_factory=list)
    tokens: list[GeneratedToken] = field(default_factory=list)
    prompt_tokens: list[GeneratedToken] = field(default_factory=list)  # the prompt's tokens, where they are scored
    finish_reason: str | None = None

    def update(self, event: ChoiceEvent) -> None:
        """Append what is new, or note why it ended."""
        if isinstance(event, ChoiceFinished):
            self.finish_reason = event.finish_reason
            return
        if event.echo:
            self.prompt_tokens += event.tokens
            return
        self.tokens += event.tokens
        for piece in event.parts:
            if self.parts and self.parts[-1].kind == piece.kind:
                self.parts[-1] = ContentPart(piece.kind, self.parts[-1].text + piece.text)
            else:
                self.parts.append(piece)

    @property
    def content(self) -> str:
        """The prose."""
        return join_text(self.parts)


def join_text(pieces: Iterable[ContentPart]) -> str:
    """The text of an answer, without calls and their outputs."""
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def build_parts(pieces: Iterable[ContentPart]) -> list[dict[str, str]]:
    """Pieces as parts of a message."""
    return [{"type": piece.kind, "text": piece.text} for piece in pieces]


def build_usage(prompt: int, answers: int) -> dict[str, int]:
    """Tokens of the prompt (counted once for each) and of all answers, tool output included."""
    return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}


def _token_entry(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    raw = tokenizer.token_bytes[token]
    if not raw:  # a control token stands for no bytes; it is named
        raw = next((name for name, number in tokenizer.special_tokens.items() if number == token), "").encode()
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}


def build_chat_logprobs(tokenizer: Tokenizer, drawn: Iterable[GeneratedToken]) -> dict[str, Any]:
    """Log-probabilities in the shape of chat completions; a token that a tool forced has 0, and no alternatives."""
    content = []
    for token in drawn:
        others = (
            []
            if token.forced
            else [{**_token_entry(tokenizer, other), "logprob": value} for other, value in token.top_logprobs]
        )
        content.append({**_token_entry(tokenizer, token.id), "logprob": token.logprob, "top_logprobs": others})
    return {"content": content, "refusal": None}


def build_text_logprobs(tokenizer: Tokenizer, drawn: Iterable[GeneratedToken], offset: int) -> dict[str, Any]:
    """Log-probabilities in the shape of text completions; `offset` is where the text begins, in characters."""
    tokens, values, tops, offsets = [], [], [], []
    for token in drawn:
        text = _token_entry(tokenizer, token.id)["token"]
        tokens.append(text)
        values.append(token.logprob)
        tops.append({_token_entry(tokenizer, other)["token"]: value for other, value in token.top_logprobs})
        offsets.append(offset)
        offset += len(text)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def make_id(prefix: str) -> str:
    """A name for an answer that nobody can guess."""
    return f"{prefix}-{secrets.token_hex(12)}"


def unix_time() -> int:
    """Unix time in whole seconds."""
    return int(time.time())


def build_error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
