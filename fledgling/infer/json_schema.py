"""Keywords of a JSON schema that demand nothing, which the library of constraints would reject all the same.

Pydantic, zod and other writers of schemas emit them: `uniqueItems: false`, names of properties that are text, formats.
A format is an annotation (JSON Schema 2020-12, Validation, 7.2.1), so one that the library does not know is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Formats that the library obeys.
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
ANY: tuple[Any, ...] = (True, {})  # the schemas that accept everything
NOTHING: dict[str, tuple[Any, ...]] = {  # by keyword: the values that demand nothing
    "uniqueItems": (False,),
    "propertyNames": (*ANY, {"type": "string"}),
    "unevaluatedProperties": ANY,
    "unevaluatedItems": ANY,
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "not": (False,),
}
SCHEMA_KEYWORDS = {
    "items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
LIST_KEYWORDS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
MAP_KEYWORDS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


def drop_empty_demands(schema: Any) -> Any:
    """Returns a schema, at every depth, without keywords that demand nothing and without unknown formats.

    Values that are no schemas (`const`, `enum`, `default`, `examples`) remain as they are.
    """
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for name, value in schema.items():
        # `is` for booleans: 0 == False, and a wrong type is the library's to name.
        if any(
            value is nothing if isinstance(nothing, bool) else value == nothing for nothing in NOTHING.get(name, ())
        ):
            continue
        if name == "format" and isinstance(value, str) and value not in FORMATS:
            continue
        if name in LIST_KEYWORDS and isinstance(value, list):
            value = [drop_empty_demands(child) for child in value]
        elif name in MAP_KEYWORDS and isinstance(value, Mapping):
            value = {key: drop_empty_demands(child) for key, child in value.items()}
        elif name in SCHEMA_KEYWORDS:
            value = drop_empty_demands(value)
        kept[name] = value
    return kept
