"""A JSON schema in the keywords that the library of constraints compiles, demanding the same.

Pydantic, zod and other writers of schemas emit what demands nothing: `uniqueItems: false`, names of properties that are
text, formats. A format is an annotation (JSON Schema 2020-12, Validation, 7.2.1), so one that the library does not know
is dropped. Dates that no calendar has, lookahead at a pattern's start, enumerated names of properties and sets of
enumerated texts are demands that the library does not know, in keywords that it does.
"""

from __future__ import annotations

import itertools
import math
import re
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
EXAMPLES = ("default", "examples")  # values of any kind
ANNOTATIONS = ("title", "description", *EXAMPLES)
COUNTS = tuple(f"{end}{what}" for end in ("min", "max") for what in ("Length", "Items", "Properties", "Contains"))
MAX_ARRANGEMENTS = 400  # of an enumeration's texts in an array: five of them have 326
SCHEMA_KEYWORDS = {
    "items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
LIST_KEYWORDS = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
MAP_KEYWORDS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


# Further patterns of a format: the library allows 2023-02-29, the year 0 and a second 60.
DAY = (
    r"^(?:[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|[0-9]{4}-(?:0[13-9]|1[0-2])-(?:29|30)|"
    r"[0-9]{4}-(?:0[13578]|1[02])-31|"
    r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
MAX_BOUND = 1e9  # of a number next to which another BOUND_GAP away can be written exactly
BOUND_GAP = 1e-6  # between an exclusive bound and the next number that is written
YEAR, SECOND = r"^[0-9]*[1-9][0-9]*-", r"^[^:]*:[0-9]{2}:[0-5]"
FORMAT_PATTERNS = {"date": (DAY, YEAR), "date-time": (DAY, YEAR, SECOND), "time": (SECOND,)}
KNOWN_PATTERNS = {  # with negative lookahead: the same texts without it
    # pydantic's Decimal
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:\d+\.?\d*|\.\d+)$",
    # zod's email
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^(?:[A-Za-z0-9_'+-]+\.)*[A-Za-z0-9_'+-]*[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"
    ),
}


def adapt_schema(schema: Any, root: Any = None) -> Any:
    """Returns a schema that demands the same, at every depth, in keywords that the library knows where there are some.

    Values that are no schemas (`const`, `enum`) remain as they are; `default` and `examples` demand nothing and are
    dropped. A count that is written as 1.0 is 1, as the specification has it.

    Args:
        schema: any value; what is no object is returned.
        root: the schema to which its references belong; None: itself.
    """
    if not isinstance(schema, Mapping):
        return schema
    root = schema if root is None else root
    kept: dict[str, Any] = {}
    patterns: list[str] = []
    for name, value in _name_properties(_list_arrangements(schema, root), root).items():
        # `is` for booleans: 0 == False, and a wrong type is the library's to name.
        if any(
            value is nothing if isinstance(nothing, bool) else value == nothing for nothing in NOTHING.get(name, ())
        ):
            continue
        if name in EXAMPLES:
            continue
        if name in COUNTS and isinstance(value, float) and value.is_integer():
            value = int(value)
        if name == "format" and isinstance(value, str):
            patterns += FORMAT_PATTERNS.get(value, ())
            if value not in FORMATS:
                continue
        if name == "pattern" and isinstance(value, str):
            value, *others = split_conjunction(value)
            patterns += others
        if name in LIST_KEYWORDS and isinstance(value, list):
            value = [adapt_schema(child, root) for child in value]
        elif name in MAP_KEYWORDS and isinstance(value, Mapping):
            value = {key: adapt_schema(child, root) for key, child in value.items()}
        elif name in SCHEMA_KEYWORDS:
            value = adapt_schema(value, root)
        kept[name] = value
    if patterns:
        others = kept.get("allOf", [])
        kept["allOf"] = [*others, *({"pattern": text} for text in patterns)] if isinstance(others, list) else others
    return exclude_whole_bounds(kept)


def exclude_whole_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema whose exclusive bounds that are whole numbers are inclusive ones a little further within.

    The library reaches an exclusive bound where the other bound, which may be in another schema of `allOf` or behind a
    reference, has the same whole part: 0 of 0 < x <= 0.9.
    """
    bounds = {name: schema[name] for name in (*LOWER, *UPPER) if name in schema}
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in bounds.values()):
        return schema  # the library names what is wrong
    low = max((bounds[name] for name in LOWER if name in bounds), default=-math.inf)
    high = min((bounds[name] for name in UPPER if name in bounds), default=math.inf)
    is_whole_only = schema.get("type") == "integer" or "multipleOf" in schema
    if is_whole_only or not low < high or any(not abs(value) < MAX_BOUND for value in bounds.values()):
        return schema
    inner, gap = dict(schema), min(BOUND_GAP, (high - low) / 1000)
    for exclusive, inclusive, bound, sign in ((LOWER[1], LOWER[0], low, 1), (UPPER[1], UPPER[0], high, -1)):
        if bounds.get(exclusive) == bound and bound == int(bound) and bound + sign * gap != bound:
            inner[inclusive] = inner.pop(exclusive) + sign * gap
    return inner


def split_conjunction(pattern: str) -> list[str]:
    """Returns patterns of which all match the texts that `pattern` matches, without positive lookahead at its start.

    `^(?=a)(?=b)c` is `^(?:a)`, `^(?:b)` and `^c`. Other lookahead stays where it is, which is an error later on.
    """
    if pattern in KNOWN_PATTERNS:
        return [KNOWN_PATTERNS[pattern]]
    found, rest = [], pattern.removeprefix("^")
    while pattern.startswith("^") and rest.startswith("(?="):
        end = _find_at_depth(rest, ")", 1)
        if end < 0:
            return [pattern]
        found.append(f"^(?:{rest[3:end]})")
        rest = rest[end + 1 :]
    return [f"^{rest}", *found] if found and _find_at_depth(rest, "|", 0) < 0 else [pattern]


def close_objects(schema: Any) -> Any:
    """Returns a schema whose objects with named properties have no others, unless the schema says that they may.

    The specification allows any others, and a model that may add some seldom ends. What the new schema accepts the
    given one accepts too. Schemas that are put together of several for one object stay as they are: one part would
    exclude the properties of another.
    """
    if _joins_schemas(schema):
        return schema
    return _close(schema)


def _joins_schemas(value: Any) -> bool:
    if isinstance(value, Mapping):
        joined = {"allOf", "if", "not", "dependentSchemas", "patternProperties", "unevaluatedProperties"} & set(value)
        next_to = "properties" in value and {"$ref", "anyOf", "oneOf"} & set(value)
        if joined or next_to:
            return True
        maps = [child for name, child in value.items() if name in MAP_KEYWORDS and isinstance(child, Mapping)]
        others = [child for name, child in value.items() if name not in MAP_KEYWORDS]
        return any(
            map(_joins_schemas, itertools.chain(others, *(child.values() for child in maps)))
        )  # names are no keywords
    return isinstance(value, list) and any(map(_joins_schemas, value))


def _close(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for name, value in schema.items():
        if name in LIST_KEYWORDS and isinstance(value, list):
            value = [_close(child) for child in value]
        elif name in MAP_KEYWORDS and isinstance(value, Mapping):
            value = {key: _close(child) for key, child in value.items()}
        elif name in SCHEMA_KEYWORDS:
            value = _close(value)
        kept[name] = value
    names, required = schema.get("properties"), schema.get("required", [])
    if isinstance(names, Mapping) and names and isinstance(required, list) and set(map(str, required)) <= set(names):
        kept.setdefault("additionalProperties", False)
    return kept


def _find_at_depth(pattern: str, character: str, depth: int) -> int:
    """Returns the place of a character of a pattern at a depth of groups, -1 where there is none."""
    level, in_class, at = 0, False, 0
    while at < len(pattern):
        current = pattern[at]
        if current == "\\":
            at += 2
            continue
        if not in_class and current == character and level == depth:
            return at
        if in_class or current == "[":
            in_class = current != "]" if in_class else True
        else:
            level += (current == "(") - (current == ")")
        at += 1
    return -1


def _name_properties(schema: Mapping[str, Any], root: Any) -> Mapping[str, Any]:
    """Returns a schema whose `propertyNames` is an enumeration, as a dictionary by Literal or Enum has it, with these
    properties and no others."""
    values = _list_texts(schema.get("propertyNames"), root)
    if values is None or "patternProperties" in schema:
        return schema
    own = schema.get("properties", {})
    if not isinstance(own, Mapping):
        return schema
    others = schema.get("additionalProperties", True)
    properties = {name: value for name, value in own.items() if name in values}
    properties |= {name: others for name in values if name not in own}
    kept = {name: value for name, value in schema.items() if name != "propertyNames"}
    return {**kept, "properties": properties, "additionalProperties": False}


def _list_texts(schema: Any, root: Any) -> list[str] | None:
    """Returns the texts that a schema enumerates, itself or by a reference into $defs; None for any other schema."""
    reference = schema["$ref"] if isinstance(schema, Mapping) and set(schema) == {"$ref"} else None
    if isinstance(reference, str) and (match := re.fullmatch(r"#/\$defs/([^/~%]+)", reference)):
        definitions = root.get("$defs") if isinstance(root, Mapping) else None
        schema = definitions.get(match[1]) if isinstance(definitions, Mapping) else None
    if not isinstance(schema, Mapping) or schema.get("type", "string") != "string":
        return None
    if not set(schema) <= {"enum", "const", "type", *ANNOTATIONS}:
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else None


def _list_arrangements(schema: Mapping[str, Any], root: Any) -> Mapping[str, Any]:
    """Returns an array of different texts out of an enumeration, as a set of Literal or Enum has it, as all of them."""
    values = _list_texts(schema.get("items"), root) if schema.get("uniqueItems") is True else None
    if values is None or not set(schema) <= {"type", "items", "uniqueItems", "minItems", "maxItems", *ANNOTATIONS}:
        return schema
    texts = sorted(set(values), key=values.index)
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(texts))
    if schema.get("type") != "array" or not isinstance(least, int) or not isinstance(most, int):
        return schema
    counts = range(max(0, least), min(most, len(texts)) + 1)
    totals = itertools.accumulate(math.perm(len(texts), count) for count in counts)
    if any(total > MAX_ARRANGEMENTS for total in totals):  # ends at the first: 1,500 texts have numbers of 4,000 digits
        return schema
    return {"enum": [list(each) for count in counts for each in itertools.permutations(texts, count)]}
