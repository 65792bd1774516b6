"""Conversations by a model's own chat template: tokens, and which of them the assistant learns.

The template renders the whole conversation once with a mark in the place of every content, which shows what is the
template's own text and where contents begin and end; then with the contents, which must give the same text with the
contents in these places (without white space around them, where a template trims). The tokens are those of the whole
text, as other programs tokenize it, unless a content has the name of a control token: then each content is tokenized
by itself, so that it stays text.

An answer is learned from the token with its first character to the end of turn that the template writes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fledgling.config import UserError
from fledgling.text.jinja_template import render_template

MARK = "\ue0f0{}\ue0f1"  # private characters, which are no text


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

    def encode_layout(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the ids of a rendered conversation, and the position of each one's last character in the text."""
        ...


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered text; role: of the message whose content it is, "" for the template's own text."""

    text: str
    role: str


def render_pieces(tokenizer: LayoutTokenizer, messages: Sequence[Mapping[str, Any]], asks: bool) -> list[Piece]:
    """Returns the rendered text in pieces. Raises UserError if the template does not show where the contents are."""
    layout = tokenizer.chat_layout
    assert layout is not None
    template = layout["chat_template"]
    names = {key: layout[key] for key in ("bos_token", "eos_token") if layout.get(key)}
    marked = [{**message, "content": MARK.format(number)} for number, message in enumerate(messages)]
    skeleton = render_template(template, marked, names, asks)
    pieces: list[Piece] = []
    rest = skeleton
    for number, message in enumerate(messages):
        before, mark, rest = rest.partition(MARK.format(number))
        if not mark:
            raise UserError(f"the chat template leaves out the content of message {number + 1} ({message['role']})")
        pieces += [Piece(before, ""), Piece(message["content"], message["role"])]
    pieces.append(Piece(rest, ""))
    if MARK[0] in rest:
        raise UserError("the chat template repeats a message, so what is learned is not known")
    whole = render_template(template, messages, names, asks)
    for candidate in (pieces, [Piece(p.text.strip() if p.role else p.text, p.role) for p in pieces]):
        if "".join(piece.text for piece in candidate) == whole:
            return candidate
    raise UserError("the chat template changes the contents of messages, so what is learned is not known")


def find_end_of_turn(tokenizer: LayoutTokenizer, ends: Sequence[str]) -> str:
    """Returns which of these control tokens the template writes after an answer; the first if it writes none."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    after = render_pieces(tokenizer, messages, asks=False)[-1].text
    found = {name: after.find(name) for name in ends if name in after}
    return min(found, key=found.__getitem__) if found else ends[0]


def encode_pieces(tokenizer: LayoutTokenizer, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
    """Returns the tokens of a rendered text, and whether each is the assistant's own."""
    controls = tokenizer.special_tokens
    if any(name in piece.text for piece in pieces if piece.role for name in controls):
        encoded = [tokenizer.encode(one.text) if one.role else tokenizer.encode_layout(one.text)[0] for one in pieces]
        tokens = [token for ids in encoded for token in ids]
        owners = [piece.role for piece, ids in zip(pieces, encoded, strict=True) for _ in ids]
    else:
        tokens, places = tokenizer.encode_layout("".join(piece.text for piece in pieces))
        owners, bounds, end = [], iter(pieces), 0
        piece = pieces[0]
        for place in places:
            while place >= end and (following := next(bounds, None)) is not None:
                piece, end = following, end + len(following.text)
            owners.append(piece.role)
    mask = [owner == "assistant" for owner in owners]
    ends = {tokenizer.assistant_end}
    for index in range(1, len(tokens)):  # the end of turn belongs to the answer before it
        if tokens[index] in ends and mask[index - 1]:
            mask[index] = True
    return tokens, mask
