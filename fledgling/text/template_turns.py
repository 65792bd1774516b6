"""Answers by a model's own chat template: each is learned after the very text with which it is asked for.

    prompt   the history before an answer, rendered with the beginning of an answer (add_generation_prompt)
    answer   what the template writes after that text for the answer, to its end of turn

Some templates rewrite the history: Qwen 3's drops what earlier answers thought, and writes an empty thought before the
last one. A row of training holds as many answers as have prompts that continue it token by token; any other answer
begins a row of its own. Some templates ask with a thought that is begun (DeepSeek R1, QwQ) and write answers without:
the answer is then the thought, its end, and the rest; without a thought, one that is empty.

Source: the templates of Qwen 3, QwQ, DeepSeek R1 and V3.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fledgling.config import UserError
from fledgling.text.template_layout import (
    LayoutTokenizer,
    Piece,
    cut_pieces,
    encode_pieces,
    find_content_end,
    join_pieces,
    render_pieces,
    split_thought,
)

BEGUN_THOUGHT = re.compile(r"<think>\s*\Z")  # at the end of a prompt
END_OF_THOUGHT = "\n</think>\n\n"


@dataclass(frozen=True)
class TemplateTurn:
    """An answer and what it is asked with."""

    prompt: list[Piece]
    answer: list[Piece]
    answer_so_far: list[Piece]  # the answer without what the template writes after it
    drops_thought: bool  # the template leaves out what the answer thought


@dataclass
class TemplateRow:
    """Tokens of a row of training."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)  # True where a token is learned
    turn_ends: list[int] = field(default_factory=list)
    dropped_thoughts: int = 0
    has_contents: bool = False  # contents were tokenized by themselves
    is_whole: bool = True  # the tokens are those of the whole text

    def can_continue(self, tokenizer: LayoutTokenizer, has_contents: bool) -> bool:
        """Returns whether the tokens of a text that continues this row's text begin with this row's tokens.

        A control token at the end splits them, where both texts are tokenized in the same way.
        """
        is_same = self.is_whole and has_contents == self.has_contents
        return is_same and self.tokens[-1] == tokenizer.assistant_end

    def append(self, tokenizer: LayoutTokenizer, pieces: Sequence[Piece], is_learned: bool) -> None:
        """Appends the tokens of pieces."""
        tokens, is_whole = encode_pieces(tokenizer, pieces, self.text)
        self.is_whole &= is_whole
        self.tokens += tokens
        self.mask += [is_learned] * len(tokens)
        self.text += join_pieces(pieces)


def find_end_of_turn(tokenizer: LayoutTokenizer, ends: Sequence[str]) -> str:
    """Returns which of these control tokens the template writes after an answer; the first if it writes none."""
    messages = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b!"}]
    after = join_pieces(render_pieces(tokenizer, messages, asks=False)).rpartition("b!")[2]
    found = {name: after.find(name) for name in ends if name in after}
    return min(found, key=found.__getitem__) if found else ends[0]


def render_turn(tokenizer: LayoutTokenizer, messages: Sequence[Mapping[str, Any]]) -> TemplateTurn:
    """Returns the last message, the assistant's, and what it is asked with.

    An answer after which the template writes no end has the token that generation stops at.

    Raises UserError if the template writes the answer after another text than it asks with.
    """
    layout = tokenizer.chat_layout
    assert layout is not None
    thought, content = split_thought(messages[-1]["content"])
    prompt = render_pieces(tokenizer, messages[:-1], asks=True)
    whole = render_pieces(tokenizer, messages, asks=False)
    prompt_text, text = join_pieces(prompt), join_pieces(whole)
    begun, start, before = BEGUN_THOUGHT.search(prompt_text), len(prompt_text), []
    if not text.startswith(prompt_text):
        if begun is None or not text.startswith(prompt_text[: begun.start()]):
            raise UserError(
                f"the chat template asks for an answer with {prompt_text[-60:]!r} and writes one after another text: "
                "what is trained would not be what is asked"
            )
        start = begun.start()
        if written := re.match(r"<think>\s*", text[start:]):  # with other white space
            start += written.end()
        else:
            start += len(text[start:]) - len(text[start:].lstrip())
            is_hostile = any(name in thought for name in tokenizer.special_tokens)
            before = [Piece(thought, is_hostile), Piece(END_OF_THOUGHT, False)]
    place = find_content_end(tokenizer, messages, text, start) if content else start
    name = layout["end_of_turn"]
    found = text.find(name, place)
    end = found + len(name) if found >= 0 else place
    answer = [*before, *cut_pieces(whole, start, end), *([] if found >= 0 else [Piece(name, False)])]
    so_far = [*before, *cut_pieces(whole, start, place)]
    return TemplateTurn(prompt, answer, so_far, bool(thought) and thought not in join_pieces(answer))


def render_rows(
    tokenizer: LayoutTokenizer, messages: Sequence[Mapping[str, Any]], learned: Sequence[int]
) -> list[TemplateRow]:
    """Returns the rows of training of a conversation.

    Args:
        messages: of {"role", "content"}; content is text.
        learned: indices of the assistant's messages that are learned; none: one row without targets.
    """
    if not learned:
        row = TemplateRow()
        row.append(tokenizer, render_pieces(tokenizer, messages, asks=False), is_learned=False)
        return [row]
    rows: list[TemplateRow] = []
    for index in learned:
        turn = render_turn(tokenizer, messages[: index + 1])
        prompt_text = join_pieces(turn.prompt)
        has_contents = any(piece.is_content for piece in turn.prompt)
        if not (rows and prompt_text.startswith(rows[-1].text) and rows[-1].can_continue(tokenizer, has_contents)):
            rows.append(TemplateRow(has_contents=has_contents))
        row = rows[-1]
        row.append(tokenizer, cut_pieces(turn.prompt, len(row.text), len(prompt_text)), is_learned=False)
        row.append(tokenizer, turn.answer, is_learned=True)
        row.turn_ends += [len(row.tokens)] if row.tokens[-1] == tokenizer.assistant_end else []
        row.dropped_thoughts += turn.drops_thought
    return rows
