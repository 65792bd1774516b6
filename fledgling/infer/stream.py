"""Tokens to text, piece by piece, without ever cutting a character in two.

The one idea: a byte-level token may end inside a multi-byte character, so bytes wait in an incremental
UTF-8 decoder until their character is whole. All pieces joined equal the text decoded at once.
Control tokens stand for no bytes: they only say what kind of text follows (prose, a call, its output).

It is not a renderer of conversations: that direction is text/conversation.py.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer


class TextStream:
    """Incremental text of a sequence of tokens, given the bytes of each: `Tokenizer.token_bytes`."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.token_bytes = token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; bytes that cannot be UTF-8 become U+FFFD."""
        return self.decoder.decode(self.token_bytes[token])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole. Then all starts afresh."""
        text = self.decoder.decode(b"", final=True)
        self.decoder.reset()
        return text


class StopText:
    """Watches a text as it grows for strings that end it: `push` gives what may be shown already.

    What could be the beginning of a stop string waits until it is one or is not; the stop string itself is never shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self.waiting = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is safe to show after `text` came; sets `stopped` when a stop string is complete."""
        self.waiting += text
        found = [place for stop in self.stops if (place := self.waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self.waiting = self.waiting[: min(found)], ""
            return shown
        keep = max((_overlap(self.waiting, stop) for stop in self.stops), default=0)
        shown, self.waiting = self.waiting[: len(self.waiting) - keep], self.waiting[len(self.waiting) - keep :]
        return shown

    def finish(self) -> str:
        """What was still waiting: it ended without becoming a stop string."""
        shown, self.waiting = self.waiting, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer's text; the kinds are those of a conversation's parts."""

    kind: str  # "text", "python" (a call of the tool) or "output" (what the tool said)
    text: str


class AnswerStream:
    """Incremental pieces of an answer: `push` each token, `finish` at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.text = TextStream(tokenizer.token_bytes)
        self.kind = "text"
        self.opens = {
            tokenizer.python_start: "python",
            tokenizer.python_end: "text",
            tokenizer.output_start: "output",
            tokenizer.output_end: "text",
        }

    def push(self, token: int) -> list[Piece]:
        """The text that this token completes, if any; a control token closes the piece before it."""
        kind = self.opens.get(token)
        if kind is None:
            text = self.text.push(token)
            return [Piece(self.kind, text)] if text else []
        pieces = self.finish()
        self.kind = kind
        return pieces

    def finish(self) -> list[Piece]:
        """What is left of a character that never became whole."""
        text = self.text.finish()
        return [Piece(self.kind, text)] if text else []


def answer_parts(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[dict[str, str]]:
    """An answer's tokens as the parts of an assistant message: [{"type": kind, "text": text}, ...]."""
    stream = AnswerStream(tokenizer)
    pieces = [piece for token in tokens for piece in stream.push(token)] + stream.finish()
    parts: list[dict[str, str]] = []
    for piece in pieces:
        if parts and parts[-1]["type"] == piece.kind:
            parts[-1]["text"] += piece.text
        else:
            parts.append({"type": piece.kind, "text": piece.text})
    return parts


def final_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """What an answer finally says: its prose after the last output of a tool, all of it without one."""
    text = ""
    for part in answer_parts(tokenizer, tokens):
        if part["type"] == "text":
            text += part["text"]
        elif part["type"] == "output":
            text = ""
    return text
