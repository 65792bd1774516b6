"""Pairs of answers, and answers that were judged, in the forms that people have them in.

pair      a prompt as `forms.read_prompt` takes it, "chosen" and "rejected"; each is a text, a message or messages
          without a prompt: "chosen" and "rejected" are whole conversations, also as "\\n\\nHuman: ..." texts
          OpenAI's {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
judged    a conversation in any form of forms.py with a column of `LABELS`; a pair is two of them
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fledgling.config import UserError
from fledgling.files.columns import list_names
from fledgling.text.cell_values import parse_list, parse_messages, read_scalar
from fledgling.text.form_columns import (
    CHOSEN,
    LABELS,
    MESSAGES,
    QUESTIONS,
    REJECTED,
    Row,
    find_column,
    rename_columns,
)
from fledgling.text.forms import (
    Message,
    normalize_trained_turns,
    parse_conversation,
    read_answer,
    read_prompt,
    read_tools,
)

EXPECTED_PAIR = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
EXPECTED_JUDGED = '{"prompt": "...", "completion": "...", "label": true}'
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
MAP_PAIR = "name yours after the path: PATH?prompt=COLUMN&chosen=COLUMN&rejected=COLUMN"
MAP_LABEL = "name yours after the path: PATH?label=COLUMN"
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # of a dialogue in one text

Pair = tuple[dict[str, Any], dict[str, Any]]


def parse_pair(row: Row, place: str, columns: Mapping[str, str] | None = None) -> Pair:
    """Returns two conversations, the chosen one first, that differ in their last message, the assistant's.

    Raises UserError that begins with `place`, the file and line.
    """
    try:
        row = rename_columns(row, columns)
        if not isinstance(row, Mapping):
            raise UserError("a list, not an object")
        prompt, tools, answers = _read_pair(row)
        conversations = []
        for answer in answers:
            messages, _ = normalize_trained_turns([*prompt, *answer], tools)
            if messages[-1]["role"] != "assistant":
                raise UserError("an answer is not the assistant's, or has no text")
            conversations.append({"messages": messages})
        if conversations[0]["messages"][:-1] != conversations[1]["messages"][:-1]:
            raise UserError("the conversations differ before their last message")
        if len(conversations[0]["messages"]) < 2:
            raise UserError("no prompt precedes the answers")
    except UserError as error:
        raise UserError(f"{place}: {error}; expected {EXPECTED_PAIR}") from None
    except RecursionError:
        raise UserError(f"{place}: nested too deeply; expected {EXPECTED_PAIR}") from None
    return conversations[0], conversations[1]


def parse_judged(row: Row, place: str, columns: Mapping[str, str] | None = None) -> list[tuple[dict[str, Any], bool]]:
    """Returns a row's conversations, each with whether its last answer is desirable; a pair is two of them.

    Raises UserError that begins with `place`, the file and line.
    """
    row = rename_columns(row, columns)
    if isinstance(row, Mapping) and find_column(row, CHOSEN):
        chosen, rejected = parse_pair(row, place)
        return [(chosen, True), (rejected, False)]
    label = find_column(row, LABELS) if isinstance(row, Mapping) else None
    value = row[label] if label and isinstance(row, Mapping) else None
    truth = TRUTHS.get(str(value).strip().lower())
    if truth is None:
        columns_there = f" in the columns {list_names(row)}; {MAP_LABEL}" if label is None else ""
        raise UserError(f"{place}: no label that is true or false{columns_there}; expected {EXPECTED_JUDGED}")
    return [(parse_conversation(row, place), truth)]


def _read_pair(row: Mapping[str, Any]) -> tuple[list[Message], Any, tuple[list[Message], list[Message]]]:
    """Returns prompt, tools and the two answers, as messages."""
    columns = find_column(row, CHOSEN), find_column(row, REJECTED)
    for names, column in zip((CHOSEN, REJECTED), columns, strict=True):
        if column is None:
            raise UserError(f'no "{names[0]}" in the columns {list_names(row)}; {MAP_PAIR}')
    values = [parse_messages(read_scalar(row[column])) for column in columns if column]
    given = parse_list(row.get("input"))
    source = given if isinstance(given, Mapping) and find_column(given, MESSAGES) else row
    tools = read_tools(source).get("tools")
    dialogues = [_split_dialogue(value) if isinstance(value, str) else read_answer(value) for value in values]
    if all(len(messages) > 1 and messages[0]["role"] != "assistant" for messages in dialogues):
        return [], tools, (dialogues[0], dialogues[1])
    prompt: list[Message] = next((messages[:-1] for messages in dialogues if len(messages) > 1), [])
    if not prompt and (find_column(source, MESSAGES) or find_column(source, QUESTIONS)):
        prompt = read_prompt(source)
    return prompt, tools, (dialogues[0][-1:], dialogues[1][-1:])


def _split_dialogue(text: str) -> list[Message]:
    """Returns the messages of a text "\\n\\nHuman: ...\\n\\nAssistant: ...", or the text as the assistant's."""
    pieces = TURN.split(text)
    if pieces[0].strip() or len(pieces) < 5 or pieces[1] != "Human":
        return read_answer(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": content.strip()}
        for name, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
