"""Conversations as tokens: where each turn begins and ends, and which tokens the assistant learns from.

The one idea: a conversation is first a list of segments, each either one control token or one stretch of
ordinary text, marked learned or not; tokens and mask are both read off that list, so they cannot disagree.
Text reaches its ids by `Tokenizer.encode` alone, so what a user, a system message or a tool writes is never
a control token.

    bos user_start QUESTION user_end assistant_start ANSWER assistant_end user_start ...
                                                     ~~~~~~~~~~~~~~~~~~~~ learned
    in an answer:  TEXT python_start EXPRESSION python_end output_start RESULT output_end TEXT
                   ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~                               ~~~~ learned

What it is not: a template language. There is one layout, and `export` writes it down for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from fledgling.config import UserError
from fledgling.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
PART_TYPES = ("text", "python", "output")


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation in tokens.

    tokens: (T,) int32. mask: (T,) bool, True where the token is the assistant's own and is to be learned.
    turn_ends: for every assistant turn the number of tokens up to and including its end: where to cut one
    too long.
    """

    tokens: np.ndarray
    mask: np.ndarray
    turn_ends: list[int]


# A control token by name, or ordinary text; and whether it is learned.
@dataclass(frozen=True)
class _Segment:
    text: str
    special: bool
    supervised: bool


def check_conversation(conversation: Mapping[str, Any]) -> None:
    """Raise UserError, naming the message, unless `conversation` is one that can be rendered.

    Expected: {"messages": [{"role", "content"}, ...]}, at most one system message and that first, then user
    and assistant by turns, user first. Content is text, or a list of parts {"type":
    "text"|"python"|"output", "text"}; a user's and a system's parts are text; an output follows the python
    it answers.
    """
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError('a conversation has no messages; expected {"messages": [{"role": ..., "content": ...}, ...]}')
    expected, begun = "user", False
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise UserError(f"message {number} has the role {role!r}; expected one of {', '.join(ROLES)}")
        _check_content(number, role, message.get("content"))
        if role == "system":
            if number > 1:
                raise UserError(f"message {number} is a system message; it can only come first")
            continue
        if role != expected:
            if not begun:
                raise UserError(f"message {number} is the {role}'s; a conversation begins with the user's")
            raise UserError(
                f"message {number} is the {role}'s and so is the one before it; join the two, or put the "
                f"{expected}'s between"
            )
        begun = True
        expected = "assistant" if role == "user" else "user"
    if len(messages) == 1 and messages[0]["role"] == "system":
        raise UserError("a conversation has only a system message; add what the user says")


def render_conversation(tokenizer: Tokenizer, conversation: Mapping[str, Any]) -> RenderedConversation:
    """Tokens, mask and turn ends of one conversation. Raises UserError as `check` does."""
    segments = _segments(conversation)
    return _render_segments(tokenizer, segments, (tokenizer.encode(s.text) for s in segments if not s.special))


def render_conversations(
    tokenizer: Tokenizer, conversations: Iterable[Mapping[str, Any]]
) -> list[RenderedConversation]:
    """`render` for many conversations, their text encoded in one batch on all cores."""
    segments = [_segments(conversation) for conversation in conversations]
    encoded = iter(tokenizer.encode_batch([s.text for s in chain.from_iterable(segments) if not s.special]))
    return [_render_segments(tokenizer, each, encoded) for each in segments]


def render_prompt(tokenizer: Tokenizer, conversation: Mapping[str, Any]) -> list[int]:
    """The ids to sample an answer after: the conversation, then assistant_start.

    Raises UserError as `check` does, and when the last turn is not the user's.
    """
    segments = _segments(conversation)
    if conversation["messages"][-1]["role"] != "user":
        raise UserError("the last message is the assistant's; a prompt ends with what the user says")
    encoded = (tokenizer.encode(s.text) for s in segments if not s.special)
    return [*_render_segments(tokenizer, segments, encoded).tokens.tolist(), tokenizer.assistant_start]


def _check_content(number: int, role: str, content: Any) -> None:
    where = f"message {number} ({role})"
    if isinstance(content, str):
        if not content:
            raise UserError(f"{where} is empty; leave it out or say something")
        return
    if not isinstance(content, list):
        raise UserError(f"{where} has content of type {type(content).__name__}; expected text or a list of parts")
    if not content:
        raise UserError(f"{where} is empty; leave it out or say something")
    allowed = PART_TYPES if role == "assistant" else PART_TYPES[:1]
    before = None
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in allowed:
            raise UserError(f"{where} has a part of type {kind!r}; expected {' or '.join(allowed)}")
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where} has a {kind} part whose text is not a string")
        if kind == "output" and before != "python":
            raise UserError(f"{where} has an output that follows no python part; put the expression before it")
        before = kind


def _segments(conversation: Mapping[str, Any]) -> list[_Segment]:
    """Check `conversation` and lay it out."""
    check_conversation(conversation)
    segments = [_Segment("<|bos|>", True, False)]
    system = ""
    for message in conversation["messages"]:
        if message["role"] == "system":
            system = _join_text_parts(message["content"]) + "\n\n"
        elif message["role"] == "user":
            segments.append(_Segment("<|user_start|>", True, False))
            segments.append(_Segment(system + _join_text_parts(message["content"]), False, False))
            segments.append(_Segment("<|user_end|>", True, False))
            system = ""
        else:
            segments.append(_Segment("<|assistant_start|>", True, False))
            segments.extend(_assistant_segments(message["content"]))
            segments.append(_Segment("<|assistant_end|>", True, True))
    return segments


def _assistant_segments(content: str | list[Mapping[str, str]]) -> Iterator[_Segment]:
    """The segments of what an assistant says: tool calls are learned, what the tool answered is not."""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind, learned = part["type"], part["type"] != "output"
        if kind != "text":
            yield _Segment(f"<|{kind}_start|>", True, learned)
        yield _Segment(part["text"], False, learned)
        if kind != "text":
            yield _Segment(f"<|{kind}_end|>", True, learned)


def _join_text_parts(content: str | list[Mapping[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _render_segments(
    tokenizer: Tokenizer, segments: list[_Segment], encoded: Iterator[list[int]]
) -> RenderedConversation:
    """Put the segments in a row; `encoded` gives the ids of each segment of text in turn."""
    tokens: list[int] = []
    mask: list[bool] = []
    turn_ends: list[int] = []
    for segment in segments:
        ids = [tokenizer.special_tokens[segment.text]] if segment.special else next(encoded)
        tokens += ids
        mask += [segment.supervised] * len(ids)
        if segment.special and segment.text == "<|assistant_end|>":
            turn_ends.append(len(tokens))
    return RenderedConversation(np.array(tokens, dtype=np.int32), np.array(mask, dtype=bool), turn_ends)
