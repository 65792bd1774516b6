"""Renders conversations to tokens, with a mask of the tokens that the assistant learns.

A conversation first becomes a list of segments, each either one special token or one stretch of text, supervised or
not. Tokens and mask are both computed from that list, so they cannot disagree. Text becomes ids only by
`Tokenizer.encode`, so no text of a user, a system message or a tool ever becomes a special token.

    bos user_start QUESTION user_end assistant_start ANSWER assistant_end user_start ...
                                                     ~~~~~~~~~~~~~~~~~~~~ supervised
    in an answer:  TEXT python_start EXPRESSION python_end output_start RESULT output_end TEXT
                   ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~                               ~~~~ supervised

There is one layout, which `fledgling.export` writes as a chat template, and that of an open model's own template
(template_turns.py), where a conversation can be several rows of training. Messages that a layout cannot take are first
joined or dropped by the rule of turns.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from fledgling.config import UserError
from fledgling.text.template_layout import encode_pieces, join_pieces, render_pieces
from fledgling.text.template_turns import BEGUN_THOUGHT, TemplateRow, render_rows, render_turn
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.turns import PART_TYPES, is_learned, normalize_turns

ROLES = ("system", "user", "assistant")
THOUGHT_TOKENS = 16  # that "<think>" and the white space after it have at most


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as tokens."""

    tokens: np.ndarray  #    (T,) int32
    mask: np.ndarray  #      (T,) bool, True where the token is the assistant's own, and a target of the loss
    turn_ends: list[int]  #  tokens up to the end of each assistant turn, inclusive
    dropped_thoughts: int = 0  # answers whose thought the model's template leaves out


class _Segment(NamedTuple):  # made by millions, so no dataclass
    """A special token by name, or text; and whether its tokens are targets."""

    text: str
    special: bool
    supervised: bool


def check_conversation(conversation: Mapping[str, Any]) -> None:
    """Raises UserError, naming the message, unless `conversation` can be rendered.

    Expected is {"messages": [{"role", "content"}, ...]}: at most one system message, which comes first, then user and
    assistant in turn, user first. Content is text, or a list of parts {"type": "text"|"python"|"output", "text"}; the
    parts of user and system are text; outputs follow the python parts that they answer. No content is empty. The last
    message may be the user's or the assistant's.
    """
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError('a conversation has no messages; expected {"messages": [{"role": ..., "content": ...}, ...]}')
    expected, has_turns = "user", False
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
            if not has_turns:
                raise UserError(f"message {number} is the {role}'s; a conversation begins with the user's")
            raise UserError(
                f"messages {number - 1} and {number} are both the {role}'s; join the two, or insert one of the "
                f"{expected}'s"
            )
        has_turns = True
        expected = "assistant" if role == "user" else "user"
    if len(messages) == 1 and messages[0]["role"] == "system":
        raise UserError("a conversation has only a system message; add a message of the user")


def render_conversation(tokenizer: Tokenizer, conversation: Mapping[str, Any]) -> RenderedConversation:
    """Returns tokens, mask and turn ends of a conversation, which may have `tools` besides its messages.

    By a model's own template these are the tokens with which its last answer is asked for, and the answer, which alone
    is learned; `render_conversations` gives all rows of training.

    Raises:
        UserError: what neither the rule of turns.py nor the layout can take.
    """
    if tokenizer.chat_layout:
        messages, _ = _take_texts(conversation)
        last = len(messages) - 1
        rows = render_rows(tokenizer, messages, [last] if messages[last]["role"] == "assistant" else [])
        return _to_rendered(rows[0])
    segments = _list_segments(conversation)
    return _render_segments(tokenizer, segments, (tokenizer.encode(s.text) for s in segments if not s.special))


def render_conversations(
    tokenizer: Tokenizer, conversations: Iterable[Mapping[str, Any]]
) -> list[list[RenderedConversation]]:
    """Returns the rows of training of each conversation; the text of all is encoded in one batch on all cores.

    A conversation is one row, except by the template of a model that rewrites the history (template_turns.py).
    """
    if tokenizer.chat_layout:
        taken = map(_take_texts, conversations)
        return [[_to_rendered(row) for row in render_rows(tokenizer, *each)] for each in taken]
    segments = [_list_segments(conversation) for conversation in conversations]
    encoded = iter(tokenizer.encode_batch([s.text for s in chain.from_iterable(segments) if not s.special]))
    return [[_render_segments(tokenizer, each, encoded)] for each in segments]


def render_prompt(tokenizer: Tokenizer, conversation: Mapping[str, Any]) -> list[int]:
    """Returns the ids after which an answer is sampled: the conversation, then assistant_start.

    A conversation that ends with the assistant's message is rendered without that message's end: the answer continues
    it, after a tool's result or in the middle of a text. Raises UserError as `render_conversation` does.
    """
    if tokenizer.chat_layout:
        messages, _ = _take_texts(conversation)
        if messages[-1]["role"] != "assistant":
            return encode_pieces(tokenizer, render_pieces(tokenizer, messages, asks=True))[0]
        turn = render_turn(tokenizer, messages)
        answer, _ = encode_pieces(tokenizer, turn.answer_so_far, join_pieces(turn.prompt))
        return encode_pieces(tokenizer, turn.prompt)[0] + answer
    segments = _list_segments(conversation)
    continued = segments[-1].special and segments[-1].text == "<|assistant_end|>"
    if continued:
        segments.pop()
    encoded = (tokenizer.encode(s.text) for s in segments if not s.special)
    ids = _render_segments(tokenizer, segments, encoded).tokens.tolist()
    return ids if continued else [*ids, tokenizer.assistant_start]


def begins_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Returns whether a prompt that `render_prompt` made ends with the start of a thought, <think>."""
    return bool(tokenizer.chat_layout) and bool(BEGUN_THOUGHT.search(tokenizer.decode(prompt[-THOUGHT_TOKENS:])))


def _take_texts(conversation: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[int]]:
    """Returns the messages of a conversation as texts, for a template, and which of them are learned.

    An answer that was joined from messages of which one has the weight 0 is not learned. Raises UserError for a call
    of a tool.
    """
    if not isinstance(conversation, Mapping) or not conversation.get("messages"):
        check_conversation(conversation)
    messages, _ = normalize_turns(conversation["messages"], conversation.get("tools"))
    check_conversation({"messages": messages})
    learned = []
    for number, message in enumerate(messages, start=1):
        content = message["content"]
        if not isinstance(content, str) and any(part["type"] != "text" for part in content):
            raise UserError(
                f"message {number} calls a tool, for which this model's chat template has no place: leave out the "
                "source of the conversation (in a mixture, its weight = 0)"
            )
        if message["role"] == "assistant" and (isinstance(content, str) or all(map(is_learned, content))):
            learned.append(number - 1)
    return [{"role": one["role"], "content": _join_text_parts(one["content"])} for one in messages], learned


def _to_rendered(row: TemplateRow) -> RenderedConversation:
    """Returns a row in the layout that the model brought."""
    tokens, mask = np.array(row.tokens, dtype=np.int32), np.array(row.mask, dtype=bool)
    return RenderedConversation(tokens, mask, row.turn_ends, row.dropped_thoughts)


def _check_content(number: int, role: str, content: Any) -> None:
    where = f"message {number} ({role})"
    if isinstance(content, str):
        if not content:
            raise UserError(f"{where} is empty; omit it, or give it some text")
        return
    if not isinstance(content, list):
        raise UserError(f"{where} has content of type {type(content).__name__}; expected text or a list of parts")
    if not content:
        raise UserError(f"{where} is empty; omit it, or give it some text")
    allowed = PART_TYPES if role == "assistant" else PART_TYPES[:1]
    open_calls = 0
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in allowed:
            raise UserError(f"{where} has a part of type {kind!r}; expected {' or '.join(allowed)}")
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where} has a {kind} part whose text is not a string")
        if kind == "output" and not open_calls:
            raise UserError(f"{where} has an output that follows no python part; insert the expression before it")
        open_calls = {"python": open_calls + 1, "output": open_calls - 1, "text": 0}[str(kind)]


def _list_segments(conversation: Mapping[str, Any]) -> list[_Segment]:
    """Returns the segments of a conversation, after the rule of turns.py and a check."""
    if not isinstance(conversation, Mapping) or not conversation.get("messages"):
        check_conversation(conversation)
    messages, _ = normalize_turns(conversation["messages"], conversation.get("tools"))
    check_conversation({"messages": messages})
    segments = [_Segment("<|bos|>", True, False)]
    system = ""
    for message in messages:
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
            last = message["content"][-1] if isinstance(message["content"], list) else {}
            segments.append(_Segment("<|assistant_end|>", True, last.get("weight", 1) != 0))
    return segments


def _assistant_segments(content: str | list[Mapping[str, str]]) -> Iterator[_Segment]:
    """Yields the segments of an assistant's message: tool outputs, and parts of weight 0, are not supervised."""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind, supervised = part["type"], is_learned(part)
        if kind != "text":
            yield _Segment(f"<|{kind}_start|>", True, supervised)
        yield _Segment(part["text"], False, supervised)
        if kind != "text":
            yield _Segment(f"<|{kind}_end|>", True, supervised)


def _join_text_parts(content: str | list[Mapping[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _render_segments(
    tokenizer: Tokenizer, segments: list[_Segment], encoded: Iterator[list[int]]
) -> RenderedConversation:
    """Returns the concatenated segments; `encoded` yields the ids of each text segment."""
    if not tokenizer.can_chat:
        raise UserError(
            "this model's tokenizer has no chat template and no control tokens of conversations, so none can be "
            "rendered; put a chat_template.jinja in the directory that it was imported from, and import it again"
        )
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
