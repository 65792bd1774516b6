"""Rows as people have them, read as conversations: {"messages": [...]} and, where there are some, {"tools": [...]}.

    messages          {"messages": [{"role", "content"}, ...]}, also OpenAI's form with tools, tool_calls and weight
    list of messages  [{"role", "content"}, ...]
    ShareGPT          {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}
                      also {"conversation": [{"human": "...", "assistant": "..."}, ...]}, as ms-swift has it
    Alpaca            {"instruction", "input", "output"}, with "history" [[question, answer], ...]
    prompt, answer    a column of `QUESTIONS` and one of `ANSWERS`, each text or a list of messages

Any of them may have a column of `SYSTEMS`, and "tools"; the names are in form_columns.py. A list may be given as text,
as a .csv has it, and a text as a number (cell_values.py).
Messages that the layout cannot take are joined or dropped by the rule of turns.py; what is not answered at the end is
cut. Start with `parse_conversation`; pairs of answers are in preferences.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fledgling.config import UserError
from fledgling.files.columns import list_names
from fledgling.text.cell_values import describe_kind, is_list, is_message, parse_list, parse_messages, read_scalar
from fledgling.text.form_columns import (
    ANSWERS,
    CONTEXTS,
    MESSAGES,
    QUESTIONS,
    SYSTEMS,
    TOOLS,
    Row,
    explain_no_form,
    find_column,
    find_messages,
    is_blank,
    rename_columns,
)
from fledgling.text.turns import THOUGHTS, is_learned, normalize_turns

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
EXCHANGE = ("system", "user", "tool", "assistant")  # of an object that has a message by the name of each role
UNLEARNED = ("train", "training", "loss")  # keys of a message that are false where its answer is not to be learned
CALL_TEXT = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)  # calls as the Hermes models write them
RESULT_TEXT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
CALL_ROLES = ("function_call", "tool_call")  # of a message that is a call, as ShareGPT's
MAP = "name yours after the path: PATH?prompt=COLUMN&answer=COLUMN"
EXPECTED = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'

Message = dict[str, Any]


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
        conversation = read_conversation(rename_columns(row, columns))
        messages, made = normalize_trained_turns(conversation["messages"], conversation.get("tools"))
    except UserError as error:
        raise UserError(f"{place}: {error}; expected {EXPECTED}") from None
    except RecursionError:
        raise UserError(f"{place}: nested too deeply; expected {EXPECTED}") from None
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


def normalize_trained_turns(messages: list[Message], tools: Any = None) -> tuple[list[Message], list[str]]:
    """Returns what `normalize_turns` does. Raises UserError where that drops a tool's result, which answers need."""
    messages, made = normalize_turns(messages, tools)
    if "result" in made:
        raise UserError("a tool's result follows no call, and the answer needs it: give the call as tool_calls")
    return messages, made


def recognize_form(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """Returns the name of a row's form, such as "ShareGPT" or "prompt, completion"; "" for none."""
    row = rename_columns(row, columns)
    if not isinstance(row, Mapping):
        return "list of messages"
    if column := find_messages(row):
        listed = parse_list(row[column])
        first = listed[0] if is_list(listed) and listed else None
        is_named = isinstance(first, Mapping) and ("from" in first or len(_split_exchange(first)) > 1)
        return "ShareGPT" if is_named else column
    if find_column(row, ANSWERS) and (find_column(row, QUESTIONS) or _read_whole_answer(row)):
        names = (*QUESTIONS[:-1], *CONTEXTS, *ANSWERS)
        return ", ".join(name for name in names if find_column(row, [name]) and not is_blank(row[name]))
    return ""


def read_messages(value: Any) -> list[Message]:
    """Returns a list of messages with OpenAI's roles and keys, from any of its forms. Raises UserError."""
    value = parse_list(value)
    if not is_list(value) or not value:
        raise UserError(f"expected a list of messages, got {describe_kind(value)}")
    messages = [message for given in value for message in _split_exchange(given)]
    return split_written_calls([_read_message(number, message) for number, message in enumerate(messages, 1)])


def read_prompt(row: Mapping[str, Any]) -> list[Message]:
    """Returns the messages before an answer: system, history and question of a row. Raises UserError."""
    messages = add_system(row, [])
    if column := find_messages(row):
        return [*messages, *read_messages(row[column])]
    question = find_column(row, QUESTIONS)
    if question is None:
        reason = explain_no_form(row) or f"no form of a conversation has the columns {list_names(row)}; {MAP}"
        raise UserError(reason)
    messages += _read_history(row)
    content = _read_text_or_messages(row[question], f'"{question}"')
    if not isinstance(content, str):
        return [*messages, *content]
    context = find_column(row, [name for name in CONTEXTS if name != question])
    added = read_scalar(row[context]) if context else ""
    if not isinstance(added, str):
        raise UserError(f'"{context}" is {describe_kind(added)}; expected text')
    return [*messages, {"role": "user", "content": f"{content}\n{added}" if added.strip() else content}]


def read_answer(value: Any) -> list[Message]:
    """Returns an answer as messages: it is a text, a message, or a list of messages. Raises UserError."""
    content = _read_text_or_messages(value, "an answer")
    return [{"role": "assistant", "content": content}] if isinstance(content, str) else content


def read_tools(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"tools": [...]} of a row that has some, else {}. Raises UserError."""
    column = find_column(row, TOOLS)
    tools = parse_list(row[column]) if column else ()
    if is_blank(tools):
        return {}
    if not is_list(tools) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"tools are {describe_kind(tools)}; expected a list of objects")
    return {"tools": list(tools)} if tools else {}


def read_conversation(row: Row) -> dict[str, Any]:
    """Returns messages and tools of a row, before the rule of turns. Raises UserError."""
    if not isinstance(row, Mapping):
        return {"messages": read_messages(row)}
    if whole := _read_whole_answer(row):
        return {"messages": add_system(row, whole), **read_tools(row)}
    prompt = read_prompt(row)
    if find_messages(row) is None:
        answer = find_column(row, ANSWERS)
        if answer is None:
            raise UserError(f"no answer in the columns {list_names(row)}; {MAP}")
        prompt += read_answer(row[answer])
    return {"messages": prompt, **read_tools(row)}


def add_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Returns messages after the system message in a row's column, if it has one and they have none."""
    column = find_column(row, SYSTEMS)
    if column is None or is_blank(row[column]) or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": read_scalar(row[column])}, *messages]


def _read_whole_answer(row: Mapping[str, Any]) -> list[Message]:
    """Returns the messages in the column of an answer without a question, from the user's on; [] for another row."""
    answer = find_column(row, ANSWERS)
    if answer is None or find_column(row, MESSAGES) or find_column(row, QUESTIONS):
        return []
    listed = parse_messages(row[answer])
    messages = read_messages(listed) if is_list(listed) and any(map(is_message, listed)) else []
    return messages if len(messages) > 1 and messages[0]["role"] != "assistant" else []


def _read_text_or_messages(value: Any, what: str) -> str | list[Message]:
    """Returns a text, or messages where `value` is one or a list of them. Raises UserError, which says of `what`."""
    value = parse_messages(read_scalar(value))
    if isinstance(value, str):
        return value
    messages = value if is_list(value) else [value]
    if not any(map(is_message, messages)):
        raise UserError(f"{what} is {describe_kind(value)}; expected text or messages")
    return read_messages(messages)


def _read_history(row: Mapping[str, Any]) -> list[Message]:
    """Returns the turns in Alpaca's "history", pairs of a question and its answer. Raises UserError."""
    pairs = parse_list(row["history"]) if find_column(row, ["history"]) else ()
    if is_blank(pairs):
        return []
    messages: list[Message] = []
    for pair in pairs if is_list(pairs) else [pairs]:
        if not is_list(pair) or len(pair) != 2:
            raise UserError(f"history is {describe_kind(pair)}; expected pairs of a question and its answer")
        messages += [
            {"role": role, "content": read_scalar(text)} for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return messages


def _has_learned_part(message: Message) -> bool:
    """Returns whether any part of a message is learned."""
    content = message["content"]
    return message["role"] == "assistant" and (isinstance(content, str) or any(map(is_learned, content)))


def _split_exchange(value: Any) -> list[Any]:
    """Returns the messages of {"human": "...", "assistant": "..."}, a turn of each in one object, or `value` alone."""
    if not isinstance(value, Mapping) or find_column(value, ("role", "from")):
        return [value]
    roles = {ROLES.get(name.lower(), name.lower()): text for name, text in value.items() if text is not None}
    if not {"user", "tool"} & roles.keys() or "assistant" not in roles:
        return [value]
    return [{"role": role, "content": roles[role]} for role in EXCHANGE if role in roles]


def _read_message(number: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"message {number} is {describe_kind(message)}; expected an object")
    role, content = (
        read_scalar(message[name]) if (name := find_column(message, names)) else None
        for names in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str):
        raise UserError(f'message {number} has no "role"')
    role = ROLES.get(role.lower(), role.lower())
    if role in CALL_ROLES:
        return {"role": "assistant", "content": None, "tool_calls": _read_calls(number, content)}
    kept = ("tool_calls", "tool_call_id", "weight", *THOUGHTS)
    read = {name: message[name] for name in kept if message.get(name) is not None}
    if any(message.get(name) is False for name in UNLEARNED):  # a number is another value, such as a measured loss
        read["weight"] = 0
    if role == "assistant" and isinstance(call := message.get("function_call"), Mapping):  # before tool_calls
        read["tool_calls"] = [{"function": call}]
    return {"role": role, "content": content, **read}


def split_written_calls(messages: list[Message]) -> list[Message]:
    """Returns messages whose calls and results, where they are written into the text, are calls and results.

    Only where a message is a tool's: elsewhere the same words are an answer about them.
    """
    if not any(message["role"] == "tool" for message in messages):
        return messages
    split: list[Message] = []
    for number, message in enumerate(messages, 1):
        content = message["content"]
        if message["role"] == "tool" and isinstance(content, str) and (results := RESULT_TEXT.findall(content)):
            split += [{**message, "content": result} for result in results]
        elif message["role"] == "assistant" and isinstance(content, str) and (texts := CALL_TEXT.findall(content)):
            calls = [call for text in texts for call in _read_calls(number, text)]
            split.append({**message, "content": CALL_TEXT.sub("", content).strip(), "tool_calls": calls})
        else:
            split.append(message)
    return split


def _read_calls(number: int, content: Any) -> list[dict[str, Any]]:
    """Returns the calls in the text of a message that is a call."""
    value = parse_list(content)
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, Mapping) for call in calls):
        raise UserError(f'message {number} is a call, but no JSON {{"name": ..., "arguments": ...}}')
    return [{"function": call} for call in calls]
