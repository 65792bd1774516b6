"""Rows as people have them, read as conversations: {"messages": [...]} and, where there are some, {"tools": [...]}.

    messages          {"messages": [{"role", "content"}, ...]}, also OpenAI's form with tools, tool_calls and weight
    list of messages  [{"role", "content"}, ...]
    ShareGPT          {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}
    Alpaca            {"instruction", "input", "output"}, with "history" [[question, answer], ...]
    prompt, answer    a column of `QUESTIONS` and one of `ANSWERS`, each text or a list of messages

Any of them may have a column of `SYSTEMS`, and "tools". A list may be given as the text of its JSON, as a .csv has it.
Messages that the layout cannot take are joined or dropped by the rule of turns.py; what is not answered at the end is
cut. Start with `parse_conversation`; pairs of answers are in preferences.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fledgling.config import UserError
from fledgling.text.turns import THOUGHTS, is_learned, normalize_turns

MESSAGES = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input")
ANSWERS = ("output", "completion", "response", "answer", "solution")
CONTEXTS = ("input", "context")  # follow the question
SYSTEMS = ("system", "system_prompt")
GROUPS = (MESSAGES, QUESTIONS[:-1], ANSWERS, CONTEXTS, SYSTEMS)  # of columns of which a row needs one
ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "ipython": "tool",
}
CALL_ROLES = ("function_call", "tool_call")  # of a message that is a call, as ShareGPT's
EXPECTED = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'

Message = dict[str, Any]
Row = Mapping[str, Any] | Sequence[Any]


def parse_conversation(
    row: Row, place: str, columns: Mapping[str, str] | None = None, changes: Counter[str] | None = None
) -> dict[str, Any]:
    """Returns the conversation in a row, in the form that is rendered.

    Args:
        row: an object, or a list of messages.
        place: "FILE:LINE", which begins every error.
        columns: the name of a form's column -> that of the file, where they differ.
        changes: counts what was joined, dropped and cut.

    Raises:
        UserError: no form is recognized, or the assistant says nothing in it.
    """
    try:
        conversation = _read_conversation(rename_columns(row, columns))
        messages, made = normalize_turns(conversation["messages"], conversation.get("tools"))
    except UserError as error:
        raise UserError(f"{place}: {error}; expected {EXPECTED}") from None
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
        made.append("not answered")
    if messages and not any(_has_learned_part(message) for message in messages):
        raise UserError(f"{place}: every message of the assistant has the weight 0, so there is nothing to learn")
    if not messages:
        raise UserError(f"{place}: no message of the assistant follows one of the user; expected {EXPECTED}")
    if changes is not None:
        changes.update(made)
    return {"messages": messages}


def recognize_form(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """Returns the name of a row's form, such as "ShareGPT" or "prompt, completion"; "" for none."""
    row = rename_columns(row, columns)
    if not isinstance(row, Mapping):
        return "list of messages"
    if column := find_column(row, MESSAGES):
        listed = parse_list(row[column])
        first = listed[0] if isinstance(listed, Sequence) and listed else None
        return "ShareGPT" if isinstance(first, Mapping) and "from" in first else column
    if find_column(row, ANSWERS) and find_column(row, QUESTIONS):
        return ", ".join(name for name in (*QUESTIONS[:-1], *CONTEXTS, *ANSWERS) if row.get(name))
    return ""


def rename_columns(row: Row, columns: Mapping[str, str] | None) -> Row:
    """Returns a row with its columns under the names of a form; columns: name of a form -> that of the file."""
    if not columns or not isinstance(row, Mapping):
        return row
    renamed = {name: row[column] for name, column in columns.items() if column in row}
    replaced = {*columns.values(), *(other for group in GROUPS for name in renamed if name in group for other in group)}
    return {**{name: value for name, value in row.items() if name not in replaced}, **renamed}


def find_column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Returns the first of `names` that the row has a value for."""
    return next((name for name in names if row.get(name) is not None), None)


def parse_list(value: Any) -> Any:
    """Returns the list whose JSON `value` is, or `value` itself where it is no such text."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def read_messages(value: Any) -> list[Message]:
    """Returns a list of messages with OpenAI's roles and keys, from any of its forms. Raises UserError."""
    value = parse_list(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise UserError(f"expected a list of messages, got {_describe_kind(value)}")
    return [_read_message(number, message) for number, message in enumerate(value, 1)]


def read_prompt(row: Mapping[str, Any]) -> list[Message]:
    """Returns the messages before an answer: system, history and question of a row. Raises UserError."""
    messages: list[Message] = []
    if (system := find_column(row, SYSTEMS)) and row[system]:
        messages.append({"role": "system", "content": row[system]})
    if column := find_column(row, MESSAGES):
        return [*messages, *read_messages(row[column])]
    question = find_column(row, QUESTIONS)
    if question is None:
        names = ", ".join(map(str, row)) or "none"
        raise UserError(f"no form of a conversation has the columns {names}; name yours in [columns]")
    for pair in row.get("history") or ():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"history is {_describe_kind(pair)}; expected pairs of a question and its answer")
        messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    content = parse_list(row[question])
    if not isinstance(content, str):
        return [*messages, *read_messages(content)]
    context = find_column(row, [name for name in CONTEXTS if name != question])
    added = row[context] if context else ""
    if not isinstance(added, str):
        raise UserError(f'"{context}" is {_describe_kind(added)}; expected text')
    return [*messages, {"role": "user", "content": f"{content}\n{added}" if added.strip() else content}]


def read_answer(value: Any) -> list[Message]:
    """Returns an answer as messages: it is a text, a message, or a list of messages. Raises UserError."""
    value = parse_list(value)
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if not isinstance(value, Mapping | Sequence):
        raise UserError(f"an answer is {_describe_kind(value)}; expected text or messages")
    return read_messages([value] if isinstance(value, Mapping) else value)


def read_tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"tools": [...]} of a row that has some, else {}. Raises UserError."""
    tools = parse_list(row.get("tools") or row.get("functions") or ())
    if isinstance(tools, str) and not tools.strip():
        return {}
    if isinstance(tools, str) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"tools are {_describe_kind(tools)}; expected a list of objects")
    return {"tools": list(tools)} if tools else {}


def _read_conversation(row: Row) -> dict[str, Any]:
    """Returns messages and tools of a row."""
    if not isinstance(row, Mapping):
        return {"messages": read_messages(row)}
    prompt = read_prompt(row)
    if find_column(row, MESSAGES) is None:
        answer = find_column(row, ANSWERS)
        if answer is None:
            raise UserError(f"no answer in the columns {', '.join(map(str, row))}; name yours in [columns]")
        prompt += read_answer(row[answer])
    return {"messages": prompt, **read_tools(row)}


def _has_learned_part(message: Message) -> bool:
    """Returns whether any part of a message is learned."""
    content = message["content"]
    return message["role"] == "assistant" and (isinstance(content, str) or any(map(is_learned, content)))


def _read_message(number: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"message {number} is {_describe_kind(message)}; expected an object")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str):
        raise UserError(f'message {number} has no "role"')
    role = ROLES.get(role.lower(), role.lower())
    if role in CALL_ROLES:
        return {"role": "assistant", "content": None, "tool_calls": _read_calls(number, content)}
    kept = ("tool_calls", "tool_call_id", "weight", *THOUGHTS)
    read = {name: message[name] for name in kept if message.get(name) is not None}
    if role == "assistant" and isinstance(call := message.get("function_call"), Mapping):  # before tool_calls
        read["tool_calls"] = [{"function": call}]
    return {"role": role, "content": content, **read}


def _read_calls(number: int, content: Any) -> list[dict[str, Any]]:
    """Returns the calls in the text of a message that is a call."""
    try:
        value = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        value = None
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, Mapping) for call in calls):
        raise UserError(f'message {number} is a call, but no JSON {{"name": ..., "arguments": ...}}')
    return [{"function": call} for call in calls]


def _describe_kind(value: Any) -> str:
    """Returns a value's kind, and its beginning."""
    return f"{type(value).__name__} {str(value)[:40]!r}"
