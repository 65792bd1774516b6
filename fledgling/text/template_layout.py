"""Conversations by a model's own chat template: its text, the contents in it, and its tokens.

The tokens are those of the whole text, as other programs tokenize it, unless a content has the name of a control token:
then the template is rendered once more with a mark in the place of every content, and each content is tokenized by
itself, so that it stays text. Which tokens an answer has is in template_turns.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fledgling.config import UserError
from fledgling.text.jinja_template import render_template

MARK = "\ue0f0{}\ue0f1"  # private characters, which are no text
_MARKS = re.compile("\ue0f0(\\d+)\ue0f1")
THOUGHT = re.compile(r"(\s*(?:<think>)?\s*)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)
NEAR = 4_096  # characters before the end of a context in which its last control token is looked for first


class LayoutTokenizer(Protocol):
    """What is needed of a tokenizer here (`Tokenizer` is one)."""

    special_tokens: dict[str, int]

    @property
    def chat_layout(self) -> dict[str, Any] | None:
        """The layout of messages that was read from a template; None: our own."""
        ...

    @property
    def assistant_end(self) -> int:
        """The token that ends an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text."""
        ...

    def encode_layout(self, text: str) -> list[int]:
        """Returns the tokens of a rendered text, in which names of control tokens are these tokens."""
        ...


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered text; is_content: it is of a message, and no control token may come of it."""

    text: str
    is_content: bool


def join_pieces(pieces: Sequence[Piece]) -> str:
    """Returns the text of pieces."""
    return "".join(piece.text for piece in pieces)


def cut_pieces(pieces: Sequence[Piece], start: int, end: int) -> list[Piece]:
    """Returns the pieces of the text [start:end] of pieces."""
    kept, place = [], 0
    for piece in pieces:
        text = piece.text[max(0, start - place) : max(0, end - place)]
        if text:
            kept.append(Piece(text, piece.is_content))
        place += len(piece.text)
    return kept


def split_thought(content: str) -> tuple[str, str]:
    """Returns what the assistant thinks at the beginning of an answer, to </think>, and the rest.

    The <think> before it may be missing: some templates have it in the prompt.
    """
    found = THOUGHT.fullmatch(content)
    return (found[2], found[4].strip()) if found else ("", content.strip())


def render_pieces(tokenizer: LayoutTokenizer, messages: Sequence[Mapping[str, Any]], asks: bool) -> list[Piece]:
    """Returns the rendered text: one piece, or where a content has the name of a control token, contents as pieces.

    Args:
        messages: of {"role", "content"}; content is text.
        asks: whether the beginning of an answer is added.

    Raises:
        UserError: the template fails, or leaves a content out; a thought of an earlier answer may be left out.
    """
    whole = _render(tokenizer, messages, asks)
    for number, message in enumerate(messages, start=1):
        content = message["content"]
        if (split_thought(content)[1] if message["role"] == "assistant" else content.strip()) not in whole:
            raise UserError(
                f"the chat template leaves out the content of message {number} ({message['role']}), or changes it"
            )
    if not any(name in message["content"] for message in messages for name in tokenizer.special_tokens):
        return [Piece(whole, False)]
    cores: list[str] = []
    marked = [{**message, "content": _mark_content(message, cores)} for message in messages]
    skeleton = _MARKS.split(_render(tokenizer, marked, asks))
    pieces = [Piece(cores[int(part)] if index % 2 else part, bool(index % 2)) for index, part in enumerate(skeleton)]
    if join_pieces(pieces) != whole:
        raise UserError("the chat template changes messages with names of control tokens, so they cannot stay text")
    return [piece for piece in pieces if piece.text]


def find_content_end(tokenizer: LayoutTokenizer, messages: Sequence[Mapping[str, Any]], whole: str, start: int) -> int:
    """Returns where the last message's content ends in the text `whole`, which begins with other messages to `start`.

    Where the text has it more than once, as the answer "n" before "<|im_end|>", a rendering with a mark in its place
    tells which it is.
    """
    content = split_thought(messages[-1]["content"])[1]
    last = whole.rfind(content, start)
    if last <= whole.find(content, start):
        return last + len(content)
    cores: list[str] = []
    marked = [*messages[:-1], {**messages[-1], "content": _mark_content(messages[-1], cores)}]
    after = _render(tokenizer, marked, False).rpartition(MARK.format(len(cores) - 1))[2]
    end = len(whole) - len(after)
    return end if whole[:end].endswith(content) and whole.endswith(after) else last + len(content)


def _render(tokenizer: LayoutTokenizer, messages: Sequence[Mapping[str, Any]], asks: bool) -> str:
    layout = tokenizer.chat_layout
    assert layout is not None
    names = {**layout.get("names", {}), **{key: layout[key] for key in ("bos_token", "eos_token") if layout.get(key)}}
    return render_template(layout["chat_template"], messages, names, asks)


def _mark_content(message: Mapping[str, Any], cores: list[str]) -> str:
    """Returns a content with marks in the place of its texts without white space around them, added to `cores`."""

    def mark(text: str) -> str:
        core = text.strip()
        cores.append(core)
        before, _, after = text.partition(core) if core else (text, "", "")
        return before + (MARK.format(len(cores) - 1) if core else "") + after

    found = THOUGHT.fullmatch(message["content"]) if message["role"] == "assistant" else None
    return found[1] + mark(found[2]) + found[3] + mark(found[4]) if found else mark(message["content"])


def encode_pieces(tokenizer: LayoutTokenizer, pieces: Sequence[Piece], context: str = "") -> tuple[list[int], bool]:
    """Returns the tokens of pieces that follow the text `context`, and whether they are those of the whole text."""
    if not any(piece.is_content for piece in pieces):
        return _encode_after(tokenizer, context, join_pieces(pieces))
    tokens: list[int] = []
    for piece in pieces:
        tokens += tokenizer.encode(piece.text) if piece.is_content else tokenizer.encode_layout(piece.text)
    return tokens, True


def _encode_after(tokenizer: LayoutTokenizer, context: str, text: str) -> tuple[list[int], bool]:
    """Returns the tokens of a rendered text as it continues `context`, whose own tokens stay as they are.

    They are those of the whole text (True) unless a token of the whole would be of both. Control tokens split a text
    before anything else, so what comes before the last one of `context` plays no part.
    """
    if not context:
        return tokenizer.encode_layout(text), True
    near = context[-NEAR:]
    places = [near.rfind(name) for name in tokenizer.special_tokens]
    tail = near[max(places) :] if max(places, default=-1) >= 0 else context
    before, both = tokenizer.encode_layout(tail), tokenizer.encode_layout(tail + text)
    if both[: len(before)] == before:
        return both[len(before) :], True
    return tokenizer.encode_layout(text), False
