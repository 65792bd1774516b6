"""Pairs of answers, and answers that were judged, in the forms that people have them in.

pair      a prompt as `forms.read_prompt` takes it, with an answer of `CHOSEN` and one of `REJECTED`; each is a text, a
          message or messages
          without "chosen": a conversation in any form of forms.py ends with it, as in ms-swift's
          {"messages": [...], "rejected_response": "..."}, also with "rejected_messages", a whole conversation
          without a prompt: "chosen" and "rejected" are whole conversations, also as "\\n\\nHuman: ..." texts, or texts
          that begin with the same words, which are the prompt (TRL)
          "answers": [{"answer", "rank"}, ...]: the best is chosen, the next one rejected (Nectar)
          OpenAI's {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
judged    a conversation in any form of forms.py with a column of `LABELS`; a pair is two of them
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from fledgling.config import UserError
from fledgling.files.columns import list_names
from fledgling.text.cell_values import is_list, parse_list, parse_messages, read_scalar
from fledgling.text.form_columns import (
    ANSWERS,
    CHOSEN,
    LABELS,
    MESSAGES,
    QUESTIONS,
    RANKED,
    REJECTED,
    Row,
    find_column,
    find_messages,
    rename_columns,
)
from fledgling.text.forms import (
    Message,
    add_system,
    normalize_trained_turns,
    parse_conversation,
    read_answer,
    read_conversation,
    read_prompt,
    read_tools,
)

EXPECTED_PAIR = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
EXPECTED_JUDGED = '{"prompt": "...", "completion": "...", "label": true}'
SAME_ANSWERS = "the chosen and the rejected answer are the same"
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
MAP_PAIR = "name yours after the path: PATH?prompt=COLUMN&chosen=COLUMN&rejected=COLUMN"
MAP_LABEL = "name yours after the path: PATH?label=COLUMN"
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # of a dialogue in one text

Pair = tuple[dict[str, Any], dict[str, Any]]


class NothingToLearnError(UserError):
    """A prompt and what answers it do not fit in a row, or two answers are the same."""


def holds_pair(row: Row) -> bool:
    """Returns whether a row with the columns of a form is a pair, or lacks a part of one."""
    if not isinstance(row, Mapping):
        return False
    chosen, rejected = find_column(row, CHOSEN), find_column(row, REJECTED)
    if chosen is None or rejected is None:
        is_judged = find_column(row, LABELS) is not None
        return not is_judged and (bool(chosen or rejected) or bool(_list_ranked(row)))
    return True


def parse_pair(row: Row, place: str, columns: Mapping[str, str] | None = None) -> Pair:
    """Returns two conversations, the chosen one first, that differ in their last message, the assistant's.

    Raises:
        NothingToLearnError: the two answers are the same; as the next it begins with `place`, the file and line.
        UserError: the row is no pair.
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
        if conversations[0] == conversations[1]:
            raise NothingToLearnError(SAME_ANSWERS)
    except NothingToLearnError as error:
        raise NothingToLearnError(f"{place}: {error}") from None
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
    if holds_pair(row):
        chosen, rejected = parse_pair(row, place)
        return [(chosen, True), (rejected, False)]
    if isinstance(row, Mapping) and (prompt := find_column(row, CHOSEN)) and not find_column(row, QUESTIONS):
        row = {**row, "prompt": row[prompt]}  # axolotl's argilla_chat of a judged answer
    label = find_column(row, LABELS) if isinstance(row, Mapping) else None
    value = row[label] if label and isinstance(row, Mapping) else None
    truth = TRUTHS.get(str(value).strip().lower())
    if truth is None:
        columns_there = f" in the columns {list_names(row)}; {MAP_LABEL}" if label is None else ""
        raise UserError(f"{place}: no label that is true or false{columns_there}; expected {EXPECTED_JUDGED}")
    return [(parse_conversation(row, place), truth)]


def _read_pair(row: Mapping[str, Any]) -> tuple[list[Message], Any, tuple[list[Message], list[Message]]]:
    """Returns prompt, tools and the two answers, as messages."""
    chosen, rejected = _find_answers(row)
    given = parse_list(row.get("input"))
    source = given if isinstance(given, Mapping) and find_column(given, MESSAGES) else row
    tools = read_tools(source).get("tools")
    if chosen is None:
        dialogues = [read_conversation(source)["messages"], _read_dialogue(rejected)]
    else:
        dialogues = [_read_dialogue(chosen), _read_dialogue(rejected)]
    wholes = [messages for messages in dialogues if len(messages) > 1 and messages[0]["role"] != "assistant"]
    if len(wholes) == 2:
        return [], tools, (add_system(source, dialogues[0]), add_system(source, dialogues[1]))
    if wholes:
        prompt = add_system(source, wholes[0][:-1])
    elif find_column(source, MESSAGES) or find_column(source, QUESTIONS):
        prompt = _split_last(read_prompt(source))
    else:
        prompt, dialogues = _split_same_beginning(dialogues)
        prompt = add_system(source, prompt)
    answers = [messages[-1:] if messages in wholes else messages for messages in dialogues]
    return prompt, tools, (answers[0], answers[1])


def _find_answers(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the two answers of a row as they are given; the chosen one is None where it ends a conversation."""
    chosen, rejected = find_column(row, CHOSEN), find_column(row, REJECTED)
    if chosen is None and rejected is None and (ranked := _list_ranked(row)):
        return ranked
    ends_with_answer = find_messages(row) or find_column(row, ANSWERS)
    if chosen is None and not (rejected and ends_with_answer):
        raise UserError(f'no "{CHOSEN[0]}" in the columns {list_names(row)}; {MAP_PAIR}')
    if rejected is None:
        raise UserError(f'no "{REJECTED[0]}" in the columns {list_names(row)}; {MAP_PAIR}')
    return row[chosen] if chosen else None, row[rejected]


def _list_ranked(row: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Returns the best answer and the next one of a row whose answers have ranks, 1 the best; None for another row."""
    column = find_column(row, RANKED)
    answers: Any = parse_list(row[column]) if column else ()
    if not is_list(answers) or not all(isinstance(answer, Mapping) for answer in answers):
        return None
    ranked = [answer for answer in answers if isinstance(answer.get("rank"), int | float) and "answer" in answer]
    ranked.sort(key=lambda answer: answer["rank"])
    worse = [answer for answer in ranked if answer["rank"] > ranked[0]["rank"]]
    return (ranked[0]["answer"], worse[0]["answer"]) if worse else None


def _read_dialogue(value: Any) -> list[Message]:
    """Returns an answer as messages, or the whole conversation that is in its place."""
    value = parse_messages(read_scalar(value))
    return _split_dialogue(value) if isinstance(value, str) else read_answer(value)


def _split_same_beginning(dialogues: list[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """Returns the words with which two texts begin as the user's, and what follows them as the answers.

    Source: TRL's standard preference form with an implicit prompt; its prompt may end within a word, this one does not.
    """
    texts = [messages[0]["content"] for messages in dialogues]
    if not all(len(messages) == 1 and isinstance(text, str) for messages, text in zip(dialogues, texts, strict=True)):
        return [], dialogues
    if texts[0] == texts[1]:
        raise NothingToLearnError(SAME_ANSWERS)
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    beginning = "".join(letter for letter, _ in pairs)
    end = max((place for place, letter in enumerate(beginning) if letter.isspace()), default=0)
    end = len(beginning[:end].rstrip())
    if not end:
        raise UserError(f"no prompt, and the two texts begin with different words; {MAP_PAIR}")
    prompt: list[Message] = [{"role": "user", "content": beginning[:end]}]
    return prompt, [[{"role": "assistant", "content": text[end:]}] for text in texts]


def _split_last(prompt: list[Message]) -> list[Message]:
    """Returns a prompt whose last message may be a dialogue in one text, which ends with "Assistant:"."""
    content = prompt[-1]["content"] if prompt else None
    dialogue = _split_dialogue(content) if isinstance(content, str) else []
    if len(dialogue) < 2 or dialogue[-1] != {"role": "assistant", "content": ""}:
        return prompt
    return [*prompt[:-1], *dialogue[:-1]]


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
