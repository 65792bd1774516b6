"""Tokens to text, incrementally, and an answer's text by kind: prose, tool call, tool output.

A byte-level token may end inside a multi-byte character, so its bytes are held back until the character is complete.
All parts joined equal the text decoded at once. Control tokens have no bytes: they only switch the kind of text.

The opposite direction, conversations to tokens, is text/conversation.py.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fledgling.text.template_layout import split_thought

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

THOUGHT_START, THOUGHT_END = "<think>", "</think>"


class IncrementalDetokenizer:
    """Decodes a sequence of tokens to text; `token_bytes` are the bytes of each token id (`Tokenizer.token_bytes`)."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.token_bytes = token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Returns the characters that this token completes; invalid UTF-8 becomes U+FFFD."""
        return self.decoder.decode(self.token_bytes[token])

    def finish(self) -> str:
        """Returns U+FFFD for an incomplete character at the end, and resets the decoder."""
        text = self.decoder.decode(b"", final=True)
        self.decoder.reset()
        return text


class StopStringMatcher:
    """Searches a growing text for stop strings and returns the text before the first of them.

    Text that may be the beginning of a stop string is held back until it is decided. The stop string is not returned.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self.stop_strings = list(dict.fromkeys(stop for stop in stop_strings if stop))
        self.prefixes = _list_prefixes(self.stop_strings)
        self.longest = max(map(len, self.prefixes), default=0)
        self.held_back = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Appends `text` and returns the text that is safe to show; sets `stopped` at a complete stop string."""
        text = self.held_back + text
        matches = [start for stop in self.stop_strings if (start := text.find(stop)) >= 0]
        if matches:
            self.stopped, self.held_back = True, ""
            return text[: min(matches)]
        end = len(text) - _overlap_length(text, self.prefixes, self.longest)
        self.held_back = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Returns the text still held back: it did not become a stop string."""
        text, self.held_back = self.held_back, ""
        return text


def _list_prefixes(texts: Iterable[str]) -> frozenset[str]:
    """Returns the proper prefixes of texts."""
    return frozenset(text[:size] for text in texts for size in range(1, len(text)))


def _overlap_length(text: str, prefixes: Set[str], longest: int) -> int:
    """Returns the length of the longest suffix of `text` that is one of the prefixes, of at most `longest` characters.

    The cost does not depend on their number.
    """
    return next((size for size in range(min(len(text), longest), 0, -1) if text[-size:] in prefixes), 0)


THOUGHT_END_PREFIXES = _list_prefixes([THOUGHT_END])


@dataclass(frozen=True)
class ContentPart:
    """A part of an answer's text; the kinds are those of a conversation's parts."""

    kind: str  # "text", "python" (a tool call), "output" (the tool's result) or "thinking" (of ThoughtSplitter)
    text: str
    opens: bool = field(default=False, compare=False)  # follows a control token: not joined to the part before


class ThoughtSplitter:
    """Separates a thought at the start of an answer, `<think>...</think>`, from the prose after it.

    No control token marks thoughts: models that were trained to think write these words as text. White space before the
    thought and after it belongs to neither.
    """

    def __init__(self, is_begun: bool = False) -> None:
        """is_begun: the prompt ends with the start of a thought, as some models' chat templates ask."""
        # "start", then "open" (its new lines), "thought", "gap" (white space after it), "prose"
        self.state = "open" if is_begun else "start"
        self.held_back = ""

    def push(self, text: str) -> tuple[str, str]:
        """Returns the (thought, prose) that a further text decides."""
        text, self.held_back = self.held_back + text, ""
        thought = ""
        if self.state == "start":
            start = text.lstrip()
            if not start.startswith(THOUGHT_START):
                if THOUGHT_START.startswith(start):
                    self.held_back = text
                    return "", ""
                self.state = "prose"
                return "", text
            self.state, text = "open", start[len(THOUGHT_START) :]
        if self.state == "open":
            text = text.lstrip("\n")
            self.state = "thought" if text else "open"
        if self.state == "thought":
            end = text.find(THOUGHT_END)
            if end < 0:
                safe = len(text) - _overlap_length(text, THOUGHT_END_PREFIXES, len(THOUGHT_END))
                self.held_back = text[safe:]
                return text[:safe], ""
            thought, text, self.state = text[:end], text[end + len(THOUGHT_END) :], "gap"
        if self.state == "gap":
            text = text.lstrip()
            self.state = "prose" if text else "gap"
        return thought, text

    def finish(self) -> tuple[str, str]:
        """Returns what was held back: it became no tag."""
        text, self.held_back = self.held_back, ""
        return (text, "") if self.state == "thought" else ("", text)

    def split_parts(self, parts: Iterable[ContentPart], last: bool) -> list[ContentPart]:
        """Returns an answer's parts with its thought as a part of its own; last: none follow."""
        split: list[ContentPart] = []
        for part in parts:
            split += _make_pair(*(self.push(part.text) if part.kind == "text" else self.finish()))
            split += [part] if part.kind != "text" else []
        return split + (_make_pair(*self.finish()) if last else [])


def _make_pair(thought: str, prose: str) -> list[ContentPart]:
    return [ContentPart(kind, text) for kind, text in (("thinking", thought), ("text", prose)) if text]


class AnswerDetokenizer:
    """Decodes an answer's tokens to content parts: `push` each token, `finish` at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.detokenizer = IncrementalDetokenizer(tokenizer.token_bytes)
        self.kind = "text"
        self.opens = False
        kinds = {"python_start": "python", "python_end": "text", "output_start": "output", "output_end": "text"}
        controls = tokenizer.special_tokens
        self.kind_after = {controls[f"<|{name}|>"]: kind for name, kind in kinds.items() if f"<|{name}|>" in controls}

    def push(self, token: int) -> list[ContentPart]:
        """Returns the text that this token completes, if any; a control token ends the part before it."""
        kind = self.kind_after.get(token)
        if kind is None:
            return self._make_parts(self.detokenizer.push(token))
        parts = self.finish()
        self.kind, self.opens = kind, kind != "text"
        return parts

    def finish(self) -> list[ContentPart]:
        """Returns what remains of an incomplete character."""
        return self._make_parts(self.detokenizer.finish())

    def _make_parts(self, text: str) -> list[ContentPart]:
        if not text:
            return []
        part, self.opens = ContentPart(self.kind, text, self.opens), False
        return [part]


def append_part(parts: list[ContentPart], part: ContentPart) -> None:
    """Appends a part, joined with the last one where both are of the same kind and it opens none."""
    if parts and parts[-1].kind == part.kind and not part.opens:
        parts[-1] = replace(parts[-1], text=parts[-1].text + part.text)
    else:
        parts.append(part)


def decode_parts(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[dict[str, str]]:
    """Decodes an answer's tokens to the parts of an assistant message: [{"type": kind, "text": text}, ...]."""
    detokenizer = AnswerDetokenizer(tokenizer)
    parts: list[ContentPart] = []
    for part in [*(part for token in tokens for part in detokenizer.push(token)), *detokenizer.finish()]:
        append_part(parts, part)
    return [{"type": part.kind, "text": part.text} for part in parts]


def decode_final_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """Returns an answer's prose after its thought and after the last tool output; all of its prose without these.

    An answer that ends within its thought has none.
    """
    text = ""
    for part in decode_parts(tokenizer, tokens):
        if part["type"] == "text":
            text += part["text"]
        elif part["type"] == "output":
            text = ""
    if THOUGHT_END in text:
        return split_thought(text)[1]
    return "" if text.lstrip().startswith(THOUGHT_START) else text
