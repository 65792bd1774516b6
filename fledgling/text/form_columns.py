"""The columns that `forms.py` and `preferences.py` read, and how those of a row are found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fledgling.config import show_name
from fledgling.files.columns import fold_name
from fledgling.text.cell_values import is_list, is_message

MESSAGES = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input")
ANSWERS = ("output", "completion", "response", "answer", "solution")
CONTEXTS = ("input", "context")  # follow the question
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")
CHOSEN = ("chosen", "chosen_response", "preferred_output")
REJECTED = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
RANKED = ("answers",)  # answers with their ranks
LABELS = ("label", "kto_tag")
GROUPS = (MESSAGES, QUESTIONS[:-1], ANSWERS, CONTEXTS, SYSTEMS, CHOSEN, REJECTED)  # a row needs one of each
KNOWN = frozenset((*sum(GROUPS, ()), *TOOLS, *RANKED, *LABELS, "history"))
MESSAGE_ALONE = 'put the messages of a conversation into one list: {"messages": [...]}, or [...] on a line of .jsonl'

Row = Mapping[str, Any] | Sequence[Any]


def rename_columns(row: Row, columns: Mapping[str, str] | None) -> Row:
    """Returns a row with its columns under the names of a form, which may have capitals in a file.

    columns: the name of a form's column -> the file's, where they differ.
    """
    if not isinstance(row, Mapping):
        return row
    others = [name for name in row if name not in KNOWN and fold_name(name) in KNOWN]
    if others:
        row = {**{fold_name(name): row[name] for name in others}, **{n: row[n] for n in row if n not in others}}
    if not columns:
        return row
    folded = {fold_name(name): name for name in row}
    found = {name: column if column in row else folded.get(fold_name(column)) for name, column in columns.items()}
    renamed = {name: row[column] for name, column in found.items() if column is not None}
    replaced = {*found.values(), *(other for group in GROUPS for name in renamed if name in group for other in group)}
    return {**{name: value for name, value in row.items() if name not in replaced}, **renamed}


def find_column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Returns the first of `names` that the row has a value for; one that is not empty text comes first."""
    filled = [name for name in names if not _is_missing(row.get(name))]
    return next((name for name in filled if not is_blank(row[name])), filled[0] if filled else None)


def find_messages(row: Mapping[str, Any]) -> str | None:
    """Returns the column of a row's messages; None where it is empty and the row has a question."""
    column = find_column(row, MESSAGES)
    return None if column and is_blank(row[column]) and find_column(row, QUESTIONS) else column


def explain_no_form(row: Mapping[str, Any]) -> str:
    """Returns why a row, or a file of one object, is no conversation, where its form tells it; else ""."""
    if is_message(row):
        return f"a message alone, no conversation; {MESSAGE_ALONE}"
    lists = [name for name, value in row.items() if is_list(value) and value and isinstance(value[0], Mapping)]
    if len(lists) != 1 or fold_name(lists[0]) in KNOWN:
        return ""
    name = show_name(lists[0])
    if is_message(row[lists[0]][0]):
        return f'its messages are in "{name}"; give the name after the path: PATH?messages={name}'
    return f'its rows are in "{name}"; write that list as the whole file, or a row on each line of a .jsonl file'


def is_blank(value: Any) -> bool:
    """Returns whether a value is text of white space alone, or an empty list."""
    return not value.strip() if isinstance(value, str) else isinstance(value, list) and not value


def _is_missing(value: Any) -> bool:
    """Returns whether a cell is empty: None, or the NaN that tables of numbers have for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
