"""Recipes in TOML's notation, which the standard library reads but does not write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any


def dump_toml(recipe: Any, comments: Mapping[str, Sequence[str]] | None = None) -> str:
    """Returns a recipe as TOML that `load_recipe` reads back to an equal value; fields that are None are left out.

    comments: lines that are added at the end of a table, by its name.
    """
    top, tables = [], []
    for entry in fields(recipe):
        if entry.metadata.get("internal"):
            continue
        value = getattr(recipe, entry.name)
        if hasattr(value, "__dataclass_fields__"):
            pairs = ((inner.name, getattr(value, inner.name)) for inner in fields(value))
            lines = [f"{key} = {format_toml_value(inner)}" for key, inner in pairs if inner is not None]
            lines += [f"# {line}" for line in (comments or {}).get(entry.name, ())]
            tables.append("\n".join([f"[{entry.name}]", *lines]))
        else:
            top.append(f"{entry.name} = {format_toml_value(value)}")
    return "\n\n".join(["\n".join(top), *tables]) + "\n"


def format_toml_value(value: Any) -> str:
    """Returns one value in TOML's notation."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # a JSON string is a TOML string, once DEL is escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(format_toml_value(inner) for inner in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{format_toml_key(key)} = {format_toml_value(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    return repr(value)


def format_toml_key(key: str) -> str:
    """Returns a key bare where TOML allows it, quoted otherwise."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else format_toml_value(key)
