"""Drops the oldest turns of a conversation that exceeds the model's context: the rule of terminal, server and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from fledgling.text.conversation import render_conversation
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.turns import normalize_turns

ANSWER_DIVISOR = 4  # an answer's part of the context, at most: longer answers do not drop more of the conversation


def max_prompt_tokens(context: int, max_new_tokens: int | None) -> int:
    """Returns the tokens that a prompt may have so that an answer fits after it; None: an answer of any length."""
    reserved = context // ANSWER_DIVISOR
    return context - (reserved if max_new_tokens is None else min(max_new_tokens, reserved))


def drop_oldest_turns(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], context: int, max_new_tokens: int | None
) -> tuple[list[dict[str, Any]], int]:
    """Returns the messages without the oldest turns, so that prompt and answer fit, and the number of dropped turns.

    Messages that the layout cannot take are joined or dropped before, by the rule of turns.py. A turn is a message of
    the user with the answer to it. The system message is kept, and so is the last turn, however long it is. Turns are
    encoded from the last one backwards, until one does not fit: what is dropped costs nothing.

    Args:
        tokenizer: of the model.
        messages: a conversation.
        context: the model's context, in tokens.
        max_new_tokens: of the answer; None: as many as fit.

    Raises:
        UserError: what the rule of turns.py cannot take.
    """
    normalized, _ = normalize_turns(messages)
    head = [message for message in normalized[:1] if message.get("role") == "system"]
    starts = [number for number, message in enumerate(normalized) if message.get("role") == "user"]
    turns = [normalized[start:end] for start, end in zip(starts, [*starts[1:], len(normalized)], strict=True)]
    if len(turns) < 2:
        return normalized, 0
    longest = max(map(len, tokenizer.token_bytes))
    limit = max_prompt_tokens(context, max_new_tokens)

    def count_tokens(turn: list[dict[str, Any]]) -> int:
        if _count_bytes(turn) > limit * longest:  # it cannot fit
            return limit + 1
        return len(render_conversation(tokenizer, {"messages": turn}).tokens)

    kept = len(turns) - 1
    used = count_tokens([*head, *turns[kept]]) + 1  # and the token after which the answer begins
    while kept and (used := used + count_tokens(turns[kept - 1]) - 1) <= limit:  # a conversation has one bos
        kept -= 1
    # The system message is encoded with the text after it, so the sum may be a few tokens below the whole.
    while kept < len(turns) - 1:
        whole = [*head, *(message for turn in turns[kept:] for message in turn)]
        if len(render_conversation(tokenizer, {"messages": whole}).tokens) < limit:
            break
        kept += 1
    return [*head, *(message for turn in turns[kept:] for message in turn)], kept


def _count_bytes(turn: list[dict[str, Any]]) -> int:
    contents = [message["content"] for message in turn]
    texts = [[each] if isinstance(each, str) else [part["text"] for part in each] for each in contents]
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in chain(*texts))
