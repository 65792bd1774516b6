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


class IncrementalDetokenizer:
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


class StopStringMatcher:
    """Watches a text as it grows for strings that end it: `push` gives what may be shown already.

    What could be the beginning of a stop string waits until it is one or is not; the stop string itself is never shown.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self.stop_strings = [stop for stop in stop_strings if stop]
        self.held_back = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is safe to show after `text` came; sets `stopped` when a stop string is complete."""
        self.held_back += text
        found = [place for stop in self.stop_strings if (place := self.held_back.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self.held_back = self.held_back[: min(found)], ""
            return shown
        keep = max((_overlap_length(self.held_back, stop) for stop in self.stop_strings), default=0)
        shown, self.held_back = (
            self.held_back[: len(self.held_back) - keep],
            self.held_back[len(self.held_back) - keep :],
        )
        return shown

    def finish(self) -> str:
        """What was still waiting: it ended without becoming a stop string."""
        shown, self.held_back = self.held_back, ""
        return shown


def _overlap_length(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(frozen=True)
class ContentPart:
    """A stretch of an answer's text; the kinds are those of a conversation's parts."""

    kind: str  # "text", "python" (a call of the tool) or "output" (what the tool said)
    text: str


class AnswerDetokenizer:
    """Incremental pieces of an answer: `push` each token, `finish` at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.detokenizer = IncrementalDetokenizer(tokenizer.token_bytes)
        self.kind = "text"
        self.kind_after = {
            tokenizer.python_start: "python",
            tokenizer.python_end: "text",
            tokenizer.output_start: "output",
            tokenizer.output_end: "text",
        }

    def push(self, token: int) -> list[ContentPart]:
        """The text that this token completes, if any; a control token closes the piece before it."""
        kind = self.kind_after.get(token)
        if kind is None:
            text = self.detokenizer.push(token)
            return [ContentPart(self.kind, text)] if text else []
        pieces = self.finish()
        self.kind = kind
        return pieces

    def finish(self) -> list[ContentPart]:
        """What is left of a character that never became whole."""
        text = self.detokenizer.finish()
        return [ContentPart(self.kind, text)] if text else []


def decode_parts(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[dict[str, str]]:
    """An answer's tokens as the parts of an assistant message: [{"type": kind, "text": text}, ...]."""
    stream = AnswerDetokenizer(tokenizer)
    pieces = [piece for token in tokens for piece in stream.push(token)] + stream.finish()
    parts: list[dict[str, str]] = []
    for piece in pieces:
        if parts and parts[-1]["type"] == piece.kind:
            parts[-1]["text"] += piece.text
        else:
            parts.append({"type": piece.kind, "text": piece.text})
    return parts


def decode_final_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """What an answer finally says: its prose after the last output of a tool, all of it without one."""
    text = ""
    for part in decode_parts(tokenizer, tokens):
        if part["type"] == "text":
            text += part["text"]
        elif part["type"] == "output":
            text = ""
    return text
