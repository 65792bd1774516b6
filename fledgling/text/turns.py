"""The one rule by which messages become turns that the layout of conversation.py can take.

Clients, data sets and agents write histories with empty answers, two messages of a role in a row, instructions in the
middle and calls of tools with their results. The layout has one user's and one assistant's turn in alternation, the
user's first, each with text. `normalize_turns` joins or drops what does not fit, in this order:

1. `developer` is `system`, `function` is `tool`. What an assistant thought (`THOUGHTS`) begins its text, as <think>.
   An assistant's `tool_calls` become parts of its message; the results in the `tool` messages that follow become parts
   after them, in the order of the calls. A result without its call is dropped; a call without a result has an empty one
   where a later call has one.
2. Messages without text (blank text counts as none) and without a call are dropped.
3. System messages before all others are joined to one, with the descriptions of `tools` at its end. A later one is a
   message of the user. If no message of the user is left, the first one is too.
4. The assistant's messages before the user's first are dropped.
5. Messages of one role in a row are joined: text to text by an empty line.

A conversation may end with either role: an answer to one that ends with the assistant continues that message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fledgling.config import UserError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
LAYOUT_ROLES = ("user", "assistant")  # in turn
PART_TYPES = ("text", "python", "output")  # of an assistant's message; the others have text alone
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of an assistant's message
SEPARATOR = "\n\n"  # between what is joined
TOOLS_INTRODUCTION = 'Tools, one on each line. A call is {"name": NAME, "arguments": {...}}.'

Part = dict[str, Any]


def normalize_turns(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns messages that the layout takes, and the changes that were made.

    Args:
        messages: {"role", "content"}, one of `THOUGHTS` and, in OpenAI's form, `tool_calls` and `tool_call_id`. Content
            is text, a list of parts {"type", "text"}, or None. An assistant's message or part of `weight` 0 is read and
            not learned.
        tools: descriptions of tools, in OpenAI's form or as {"name", "description", "parameters"}.

    Returns:
        At most one system message, then user and assistant in turn, user first; content is text or a list of parts. And
        one of "empty", "joined", "system", "assistant first", "result" for each message that was dropped or joined.

    Raises:
        UserError: a message that cannot be read, or no message that could be the user's.
    """
    if not tools and _needs_no_change(messages):
        return [dict(message) for message in messages], []
    changes: list[str] = []
    turns = _drop_empty(_merge_tool_results(messages, changes), changes)
    system = [text for role, parts in _leading_system(turns) if (text := join_text(parts))]
    turns = turns[len(system) :]
    changes += ["joined"] * (len(system) - 1)
    for index, (role, parts) in enumerate(turns):
        if role == "system":
            turns[index] = ("user", parts)
            changes.append("system")
    if system and not any(role == "user" for role, _ in turns):
        turns.insert(0, ("user", [{"type": "text", "text": SEPARATOR.join(system)}]))
        system = []
        changes.append("system")
    while turns and turns[0][0] == "assistant":
        turns.pop(0)
        changes.append("assistant first")
    if not turns:
        raise UserError("no message of the user has text; add one")
    joined: list[tuple[str, list[Part]]] = []
    for role, parts in turns:
        if joined and joined[-1][0] == role:
            _append_parts(joined[-1][1], parts)
            changes.append("joined")
        else:
            joined.append((role, list(parts)))
    if tools:
        system.append(describe_tools(tools))
    result = [{"role": "system", "content": SEPARATOR.join(system)}] if system else []
    return [*result, *({"role": role, "content": _simplify_content(parts)} for role, parts in joined)], changes


def _needs_no_change(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether messages are turns already, as almost all of a data set are: user and assistant, text alone."""
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or len(message) != 2 or message.get("role") != LAYOUT_ROLES[number % 2]:
            return False
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            return False
    return bool(messages)


def is_learned(part: Mapping[str, Any]) -> bool:
    """Returns whether a part of an assistant's message is learned: not a call's output, and no part of weight 0."""
    return part["type"] != "output" and part.get("weight", 1) != 0


def join_text(parts: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of parts, without calls and outputs."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text that tells the model which tools it can call: a line of JSON for each."""
    lines = []
    for tool in tools:
        function = tool.get("function", tool)
        shown = {key: function[key] for key in ("name", "description", "parameters") if function.get(key)}
        lines.append(json.dumps(shown, ensure_ascii=False))
    return "\n".join([TOOLS_INTRODUCTION, *lines])


def write_call(name: str, arguments: str | Mapping[str, Any]) -> str:
    """Returns the text of a call, as the model writes it between `python_start` and `python_end`.

    `arguments` that are JSON already are kept letter by letter, so that a history repeats what was generated.
    """
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    else:
        try:
            json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments.strip()}}}'


def _merge_tool_results(messages: Sequence[Mapping[str, Any]], changes: list[str]) -> list[tuple[str, list[Part]]]:
    """Returns (role, parts) of the messages, with calls and results as parts of the assistant's."""
    turns: list[tuple[str, list[Part]]] = []
    calls: list[str | None] = []  # ids of the calls that wait for results
    results: dict[int, str] = {}

    def add_results() -> None:
        if results:
            parts = [{"type": "output", "text": results.get(i, "")} for i in range(max(results) + 1)]
            turns.append(("assistant", parts))
        calls.clear()
        results.clear()

    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise UserError(f"message {number} has the role {role!r}; expected one of {', '.join(ROLES)}")
        if role in ("tool", "function"):
            parts = _read_content(number, "user", message.get("content"))
            waiting = [i for i in range(len(calls)) if i not in results]
            wanted = message.get("tool_call_id")
            place = next((i for i in waiting if wanted is None or calls[i] in (wanted, None)), None)
            if place is None:
                changes.append("result")
            else:
                results[place] = join_text(parts)
            continue
        add_results()
        role = "system" if role == "developer" else role
        parts = _read_content(number, role, message.get("content"))
        if role == "assistant" and (thought := _find_thought(message)) and not join_text(parts).startswith("<think>"):
            parts.insert(0, {"type": "text", "text": f"<think>\n{thought}\n</think>\n\n"})
        for call in (message.get("tool_calls") or ()) if role == "assistant" else ():
            name, arguments, call_id = _read_tool_call(number, call)
            parts.append({"type": "python", "text": write_call(name, arguments)})
            calls.append(call_id)
        weight = message.get("weight", 1)
        if weight not in (0, 1) or isinstance(weight, str):
            raise UserError(f"message {number} has the weight {weight!r}; expected 0, so that it is not learned, or 1")
        parts = [{**part, "weight": 0} for part in parts] if weight == 0 and role == "assistant" else parts
        turns.append((role, parts))
    add_results()
    return turns


def _find_thought(message: Mapping[str, Any]) -> str:
    """Returns what an assistant thought before a message, "" where it says nothing of it."""
    texts = (message.get(key) for key in THOUGHTS)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def _read_tool_call(number: int, call: Any) -> tuple[str, str | Mapping[str, Any], str | None]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f'message {number} has a tool call without a name; expected {{"function": {{"name": ...}}}}')
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, str | Mapping):
        raise UserError(f"message {number}: the arguments of {function['name'][:80]!r} are no JSON object")
    return function["name"], arguments, call.get("id")


def _read_content(number: int, role: str, content: Any) -> list[Part]:
    """Returns the parts of a message's content; none for None and empty text."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list | tuple):
        raise UserError(
            f"message {number} ({role}) has content of type {type(content).__name__}; expected text or a list of parts"
        )
    parts = []
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, Mapping) else None
        allowed = PART_TYPES if role == "assistant" else PART_TYPES[:1]
        if kind not in allowed:
            raise UserError(f"message {number} ({role}) has a part of type {kind!r}; expected {' or '.join(allowed)}")
        if not isinstance(part.get("text"), str):
            raise UserError(f"message {number} ({role}) has a {kind} part whose text is not a string")
        if part["text"] or kind != "text":
            kept = {"weight": 0} if part.get("weight", 1) == 0 else {}
            parts.append({"type": kind, "text": part["text"], **kept})
    return parts


def _drop_empty(turns: list[tuple[str, list[Part]]], changes: list[str]) -> list[tuple[str, list[Part]]]:
    kept = [
        (role, parts) for role, parts in turns if any(p["type"] != "text" for p in parts) or join_text(parts).strip()
    ]
    changes += ["empty"] * (len(turns) - len(kept))
    return kept


def _leading_system(turns: list[tuple[str, list[Part]]]) -> list[tuple[str, list[Part]]]:
    count = next((i for i, (role, _) in enumerate(turns) if role != "system"), len(turns))
    return turns[:count]


def _append_parts(parts: list[Part], more: Sequence[Part]) -> None:
    """Appends the parts of the next message of the same role."""
    if parts[-1]["type"] == more[0]["type"] == "text":
        if is_learned(parts[-1]) == is_learned(more[0]):
            parts[-1] = {**parts[-1], "text": parts[-1]["text"] + SEPARATOR + more[0]["text"]}
            more = more[1:]
        else:
            more = [{**more[0], "text": SEPARATOR + more[0]["text"]}, *more[1:]]
    parts.extend(more)


def _simplify_content(parts: list[Part]) -> str | list[Part]:
    """Returns the text where all parts are text that is learned, otherwise the parts."""
    return join_text(parts) if all(part["type"] == "text" and is_learned(part) for part in parts) else parts
