"""Values in TOML's notation, which the standard library reads but does not write. Floor 0: imports nothing of ours."""

from __future__ import annotations

import json
import re
from typing import Any


def toml_value(value: Any) -> str:
    """Return one value in TOML's notation."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # a JSON string is a TOML string, once DEL is escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(inner) for inner in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{toml_key(key)} = {toml_value(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    return repr(value)


def toml_key(key: str) -> str:
    """Return a key bare where TOML allows it, quoted otherwise."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
