"""Rows of the user's data that are looked at before training: which are shown, and how the model reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

from fledgling.text.conversation import RenderedConversation, render_conversations
from fledgling.text.tokenizer import Tokenizer

EXAMPLES = 10
MAX_SHOWN_CHARACTERS = 4_000  # of an example


@dataclass(frozen=True)
class Entry:
    """One row: its place, its form, and the conversations in it (of a document none), or its text."""

    place: str
    form: str
    conversations: tuple[dict[str, Any], ...] = ()
    text: str = ""

    def plain_text(self) -> str:
        """Returns all text of the row, without control tokens."""
        if not self.conversations:
            return self.text
        messages = [message for conversation in self.conversations for message in conversation["messages"]]
        contents = [message["content"] for message in messages]
        return "\n".join(c if isinstance(c, str) else "\n".join(part["text"] for part in c) for c in contents)


@dataclass
class Examples:
    """Rows at equal distances, of any number of rows: when there are too many, every other one is dropped."""

    kept: list[Entry] = field(default_factory=list)
    stride: int = 1

    def add(self, entry: Entry, number: int) -> None:
        """Keeps row `number`, counted from 0, if it is at such a distance."""
        if number % self.stride == 0:
            self.kept.append(entry)
        if len(self.kept) > 2 * EXAMPLES:
            self.kept, self.stride = self.kept[::2], 2 * self.stride

    def choose(self) -> list[Entry]:
        """Returns at most `EXAMPLES` of them."""
        count = min(EXAMPLES, len(self.kept))
        return [self.kept[index * len(self.kept) // count] for index in range(count)]


def render_example(entry: Entry, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a row as pieces of text, each with whether it is learned; long ones are cut.

    A name of a control token that is text has a backslash before it.
    """
    if not entry.conversations:
        pieces = [(compile_names(tokenizer).sub(r"\\\g<0>", entry.text[:MAX_SHOWN_CHARACTERS]), True)]
    else:
        pieces = []
        for rendered in chain.from_iterable(render_conversations(tokenizer, entry.conversations)):
            pieces += _split_by_mask(rendered, tokenizer)
    shown, left = [], MAX_SHOWN_CHARACTERS
    for text, is_learned in pieces:
        if left > 0:
            shown.append({"text": text if len(text) <= left else f"{text[:left]} …", "learned": is_learned})
        left -= len(text)
    return {"place": entry.place, "form": entry.form, "pieces": shown}


def _split_by_mask(rendered: RenderedConversation, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    pairs = zip(rendered.tokens.tolist(), rendered.mask.tolist(), strict=True)
    for is_learned, group in groupby(pairs, key=lambda pair: pair[1]):
        yield _decode_marked([token for token, _ in group], tokenizer), is_learned


def _decode_marked(tokens: list[int], tokenizer: Tokenizer) -> str:
    """Returns the text of tokens, with a backslash before each name of a control token that is no such token."""
    text, names = tokenizer.decode(tokens), compile_names(tokenizer)
    controls = set(tokenizer.special_tokens.values())
    if len(names.findall(text)) <= sum(token in controls for token in tokens):
        return text
    parts = []
    for is_control, group in groupby(tokens, key=controls.__contains__):
        part = tokenizer.decode(list(group))
        parts.append(part if is_control else names.sub(r"\\\g<0>", part))
    return "".join(parts)


def compile_names(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Returns the pattern of the names of control tokens."""
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")
