"""What a request demands of the form of its answer: JSON, a schema, a pattern, a grammar, calls of tools.

A request's fields become one grammar (infer/grammar.py), which every token of the answer obeys. What the fields demand
holds in every answer that ends by itself; one that is cut has the finish reason "length". A field that demands what
cannot be computed is an error that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fledgling.infer.grammar import Grammar, GrammarCompiler, GrammarError, write_json_rule
from fledgling.infer.json_schema import close_objects
from fledgling.serve.extra_fields import MISSPELLED
from fledgling.serve.json_body import shorten_text
from fledgling.serve.schemas import MAX_GRAMMAR_CHARS, BadRequest, ChatRequest, CommonRequest

MAX_CALLS = 8  # of the request's tools in one answer
TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
NAMING = (  # keywords by which a schema says which properties an object has, or how many
    *("properties", "required", "patternProperties", "propertyNames", "minProperties", "unevaluatedProperties"),
    *("allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "dependentRequired", "enum", "const"),
)
JSON_OBJECT: dict[str, Any] = {"type": "object"}
NOTHING: tuple[Any, ...] = (None, "", [])  # values of a constraint that demand nothing; {} is the schema of any JSON
CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True)
class ToolDefinition:
    """One of a request's tools: what is described to the model, and the schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool

    def describe(self) -> dict[str, Any]:
        """Returns the tool in the form of `fledgling.text.turns`."""
        return {"name": self.name, "description": self.description, "parameters": self.parameters}


@dataclass(frozen=True)
class AnswerForm:
    """The tools that an answer may call and the grammar that it obeys; None: any text.

    is_whole: the grammar says where the answer ends, and a stop string would break what it promises.
    """

    tools: tuple[ToolDefinition, ...] = ()
    grammar: Grammar | None = None
    is_whole: bool = False


def read_answer_form(body: ChatRequest, compiler: GrammarCompiler, has_tool_tokens: bool) -> AnswerForm:
    """Returns the form that a chat request demands of its answers. Raises BadRequest that names the field."""
    tools, choice = _read_tools(body.tools or []), "auto"
    if body.tool_choice is not None:
        tools, choice = _choose_tools(tools, body.tool_choice)
    if choice == "none" or not tools:
        grammar = compile_constraint(body, compiler)
        return AnswerForm((), grammar, grammar is not None)
    if not has_tool_tokens:
        raise BadRequest("tools: the model's vocabulary has no tokens for calls", "tools")
    field, _, kind, value = _find_constraint(body)
    if kind not in (None, "json", "json_object"):
        raise BadRequest(f"{field}: a pattern or grammar cannot be combined with tools", field)
    count = 1 if body.parallel_tool_calls is False or choice == "named" else MAX_CALLS
    rules = [f"call: <|python_start|> ({' | '.join(f'tool{i}' for i in range(len(tools)))}) <|python_end|>"]
    for number, tool in enumerate(tools):
        head = json.dumps(f'{{"name": "{tool.name}", "arguments": ')
        rules.append(f'tool{number}: {head} arguments{number} "}}"')
        parameters = close_arguments(tool.parameters)
        if not tool.strict and not _can_compile(parameters, compiler):
            parameters = JSON_OBJECT
        rules.append(write_json_rule(f"arguments{number}", parameters, lenient=not tool.strict))
    calls = f"call{{1,{count}}}"
    if choice in ("required", "named"):
        rules.insert(0, f"start: {calls}")
    elif kind is not None:
        rules.insert(0, f"start: {calls} | json")
        rules.append(write_json_rule("json", value if kind == "json" else JSON_OBJECT))
    else:
        own = " | own" if body.calculator else ""
        rules.insert(0, f"start: (TEXT{own})* ({calls})?")
        rules.append(r"TEXT: /(.|\n)+/")
        if body.calculator:
            rules.append(r"own: <|python_start|> /[^{](.|\n)*/ <|python_end|>")
    grammar = _compile("tools", lambda: compiler.compile_lark("\n".join(rules), "answer" if kind else "calls"))
    return AnswerForm(tuple(tools), grammar, choice in ("required", "named") or kind is not None)


def close_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a tool's arguments: an object with the parameters that are named, and no others.

    Without a type it would accept text and numbers too. A tool that names no parameters has none.
    """
    schema = {**parameters, **JSON_OBJECT}
    has_none = not any(schema.get(name) for name in NAMING) and "additionalProperties" not in schema
    return {**schema, "properties": {}, "additionalProperties": False} if has_none else close_objects(schema)


def compile_constraint(body: CommonRequest, compiler: GrammarCompiler) -> Grammar | None:
    """Returns the grammar of `response_format` and of vLLM's fields; None where they demand nothing."""
    field, _, kind, value = _find_constraint(body)
    if kind is None:
        return None
    if kind == "json_object":
        return _compile(field, lambda: compiler.compile_schema(JSON_OBJECT))
    if kind == "json":
        return _compile(field, lambda: compiler.compile_schema(value))
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise BadRequest(f"{field}: expected a list of texts", field)
        value = "|".join(re.escape(text) for text in value)
    if not isinstance(value, str) or len(value) > MAX_GRAMMAR_CHARS:
        raise BadRequest(f"{field}: expected text of at most {MAX_GRAMMAR_CHARS:,} characters", field)
    if kind != "grammar":
        return _compile(field, lambda: compiler.compile_regex(value))
    return _compile(field, lambda: compiler.compile_gbnf(value) if "::=" in value else compiler.compile_lark(value))


def _can_compile(schema: Mapping[str, Any], compiler: GrammarCompiler) -> bool:
    try:
        compiler.compile_schema(schema, lenient=True)
    except GrammarError:
        return False
    return True


def _compile(field: str, compile_grammar: Any) -> Grammar:
    try:
        return compile_grammar()
    except GrammarError as error:
        raise BadRequest(f"{field}: {error}", field.split(".")[0]) from None


def _find_constraint(body: CommonRequest) -> tuple[str, str, str | None, Any]:
    """Returns the field, its first step, the kind (of CONSTRAINTS, None for none) and the value of the constraint.

    Raises:
        BadRequest: several constraints, or a format that there is not.
    """
    found: list[tuple[str, str, str | None, Any]] = []
    response_format = getattr(body, "response_format", None)
    if response_format:
        found += _read_response_format(response_format)
    for kind in ("json", "regex", "choice", "grammar"):
        if (value := getattr(body, f"guided_{kind}")) not in NOTHING:
            found.append((f"guided_{kind}", f"guided_{kind}", kind, value))
    if body.grammar not in NOTHING:
        found.append(("grammar", "grammar", "grammar", body.grammar))
    for name, value in (body.structured_outputs or {}).items():
        if near := [] if name in CONSTRAINTS else get_close_matches(name, CONSTRAINTS, 1, MISSPELLED):
            shown = f"structured_outputs.{shorten_text(name)}"
            raise BadRequest(f"{shown}: no such field; {near[0]}?", "structured_outputs")
        if name in CONSTRAINTS and value not in (*NOTHING, False):
            found.append((f"structured_outputs.{name}", "structured_outputs", name, value))
    if len(found) > 1:
        raise BadRequest(f"{found[1][0]}: an answer has one constraint; {found[0][0]} is another", found[1][1])
    if not found:
        return "", "", None, None
    field, first, found_kind, value = found[0]
    if found_kind == "json" and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRequest(f"{field}: expected a JSON schema", first) from None
    if found_kind == "json" and not isinstance(value, dict | bool):
        raise BadRequest(f"{field}: expected a JSON schema", first)
    return field, first, found_kind, value


def _read_response_format(value: Mapping[str, Any]) -> list[tuple[str, str, str | None, Any]]:
    name = "response_format"
    kind = value.get("type")
    if kind == "text":
        return []
    if kind == "json_object":
        schema = value.get("schema")  # llama.cpp's form
        return [(name, name, "json", schema) if isinstance(schema, dict) else (name, name, "json_object", True)]
    if kind == "json_schema":
        described = value.get("json_schema", value)  # the Responses API has the schema here
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, dict):
            raise BadRequest("response_format.json_schema.schema: expected an object", name)
        return [("response_format.json_schema.schema", name, "json", schema)]
    if kind in ("regex", "grammar") and isinstance(value.get(kind), str):
        return [(f"{name}.{kind}", name, kind, value[kind])]
    shown = shorten_text(str(kind))
    raise BadRequest(f"response_format.type: expected text, json_object or json_schema, got {shown!r}", name)


def _read_tools(tools: Sequence[Mapping[str, Any]]) -> list[ToolDefinition]:
    found: dict[str, ToolDefinition] = {}
    for number, tool in enumerate(tools):
        place = f"tools.{number}"
        if tool.get("type", "function") != "function":
            raise BadRequest(f"{place}.type: expected function, got {shorten_text(str(tool['type']))!r}", "tools")
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
            raise BadRequest(f"{place}.function.name: expected 1 to 64 letters, digits, '_', '-', '.' or ':'", "tools")
        if name in found:
            raise BadRequest(f"{place}.function.name: {name!r} is another tool's name too", "tools")
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise BadRequest(f"{place}.function.parameters: expected a JSON schema", "tools")
        kind = parameters.get("type", "object")
        if "object" not in (kind if isinstance(kind, list) else [kind]):
            given = f"got type {shorten_text(json.dumps(kind))}"
            raise BadRequest(f"{place}.function.parameters: expected the schema of an object, {given}", "tools")
        description = function.get("description") or ""
        if not isinstance(description, str):
            raise BadRequest(f"{place}.function.description: expected text", "tools")
        found[name] = ToolDefinition(name, description, parameters, bool(function.get("strict")))
    return list(found.values())


def _choose_tools(tools: list[ToolDefinition], choice: str | Mapping[str, Any]) -> tuple[list[ToolDefinition], str]:
    """Returns the tools that may be called, and "none", "auto", "required" or "named": one call of one tool."""
    if isinstance(choice, Mapping) and set(choice) == {"type"} and isinstance(choice["type"], str):
        choice = choice["type"]
    if isinstance(choice, str):
        choice = {"any": "required"}.get(choice, choice)
        if named := [tool for tool in tools if tool.name == choice and choice not in ("none", "auto", "required")]:
            return named, "named"
        if choice not in ("none", "auto", "required"):
            expected = "none, auto, required or a tool"
            raise BadRequest(f"tool_choice: expected {expected}, got {shorten_text(choice)!r}", "tool_choice")
        if choice == "required" and not tools:
            raise BadRequest("tool_choice: required, and there are no tools", "tool_choice")
        return tools, choice
    try:
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            names = [entry.get("function", entry).get("name") for entry in allowed.get("tools") or ()]
            mode = "required" if allowed.get("mode") == "required" else "auto"
        else:
            names = [(choice.get("function") or choice).get("name")]
            mode = "named"
    except (AttributeError, TypeError):
        form = '{"type": "function", "function": {"name": "NAME"}} or {"type": "allowed_tools", "tools": [...]}'
        raise BadRequest(f"tool_choice: expected none, auto, required or {form}", "tool_choice") from None
    chosen = [tool for tool in tools if tool.name in names]
    if not chosen:
        shown = shorten_text(", ".join(map(str, names)))
        raise BadRequest(f"tool_choice: {shown!r} is none of the tools", "tool_choice")
    return chosen, mode
