"""Schemas of pydantic and zod: what demands nothing is dropped, what cannot be demanded is an error that names it."""

import contextlib
import json
import math

import pytest

from fledgling.infer.grammar import GrammarCompiler, GrammarError, write_json_rule
from fledgling.infer.json_schema import (
    ANNOTATIONS,
    COUNTS,
    FORMATS,
    KNOWN_PATTERNS,
    LIST_KEYWORDS,
    LOWER,
    MAP_KEYWORDS,
    NOTHING,
    SCHEMA_KEYWORDS,
    UPPER,
    adapt_schema,
    close_objects,
)
from tests.infer.test_json_keys import accepts

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.bos)


@pytest.mark.parametrize(
    ("bounds", "valid", "invalid"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.9}, ("0.9", "0.05", "0.000001"), ("0", "0.0", "0.91", "1")),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ("0.5",), ("0",)),
        ({"exclusiveMinimum": 10, "maximum": 10.01}, ("10.005", "10.01"), ("10", "10.0", "10.02")),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, ("-0.5", "-0.2"), ("-0", "0", "-0.0")),
        ({"exclusiveMinimum": -1.5, "exclusiveMaximum": -1}, ("-1.2",), ("-1", "-1.5", "-1.0")),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, ("0.5",), ("0", "1", "1.0")),
        ({"exclusiveMinimum": 0, "maximum": 1}, ("1", "0.5"), ("0", "1.5")),
        ({"exclusiveMinimum": 0, "maximum": 10.5}, ("10.5", "7"), ("0", "11")),
    ],
)
def test_an_exclusive_bound_is_never_reached(compiler, bounds, valid, invalid):
    grammar = compiler.compile_schema({"type": "number", **bounds})
    assert [text for text in valid if not accepts(compiler, grammar, text)] == []
    assert [text for text in invalid if accepts(compiler, grammar, text)] == []


@pytest.mark.parametrize("bound", [-math.inf, math.inf, math.nan, 10**400, -(10**400), 1e300])
def test_a_bound_of_any_size_is_left_to_the_library(bound):
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        schema = {"type": "number", name: bound}
        assert adapt_schema(schema) == schema or bound != bound


def test_bounds_of_several_schemas_are_not_reached(compiler):
    joined = {"type": "number", "allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.9}]}
    behind = {"type": "number", "exclusiveMinimum": 0, "$ref": "#/$defs/m", "$defs": {"m": {"maximum": 0.9}}}
    for grammar in map(compiler.compile_schema, (joined, behind)):
        assert accepts(compiler, grammar, "0.5") and not accepts(compiler, grammar, "0")


@pytest.mark.parametrize(("keyword", "value"), [(name, value) for name, values in NOTHING.items() for value in values])
def test_a_keyword_that_demands_nothing_is_dropped_at_every_depth(compiler, keyword, value):
    inner = {keyword: value, "minimum": 0}
    for schema in (
        {"properties": {"x": inner}, "$defs": {"y": inner}},
        {"items": inner, "prefixItems": [inner]},
        {"anyOf": [{"additionalProperties": inner}]},
    ):
        assert keyword not in str(adapt_schema(schema)) and "minimum" in str(adapt_schema(schema))
        compiler.compile_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"uniqueItems": True},
        {"uniqueItems": 0},
        {"uniqueItems": True, "type": "array", "items": {"type": "string"}},
        {"uniqueItems": True, "type": "array", "items": {"enum": list("abcdefgh")}},
        {"uniqueItems": True, "items": {"enum": ["a"]}},
        {"propertyNames": {"type": "integer"}},
        {"propertyNames": {"enum": ["a", 3]}},
        {"propertyNames": {"enum": ["a"], "minLength": 1}},
        {"propertyNames": {"enum": ["a"]}, "patternProperties": {"b": True}},
        {"propertyNames": {"$ref": "#/$defs/nothing"}},
        {"oneOf": [{"type": "integer"}, {"minimum": 3}]},
        {"pattern": "a(?=b)"},
        {"pattern": "^(?!a)b"},
        {"pattern": "^(?=a)b|c"},
        {"pattern": "(a)\\1"},
        {"pattern": "\\bfox\\b"},
        {"propertyNames": {"type": "string", "maxLength": 3}},
        {"propertyNames": False},
        {"not": {}},
        {"unevaluatedProperties": False},
        {"dependentRequired": {"a": ["b"]}},
    ],
)
def test_a_keyword_that_demands_something_is_an_error_that_names_it(compiler, schema):
    with pytest.raises(GrammarError, match=next(iter(schema))):  # "pattern" is in its errors as a word
        compiler.compile_schema({"items": schema})


def test_unknown_formats_are_annotations_and_known_ones_are_obeyed(compiler):
    for name in ("path", "binary", "password", "regex", "uri-reference", "", "made-up"):
        compiler.compile_schema({"type": "string", "format": name})
    for name in FORMATS:
        assert adapt_schema({"format": name})["format"] == name
        compiler.compile_schema({"type": "string", "format": name})
        with pytest.raises(GrammarError):  # no text has both
            compiler.compile_schema({"type": "string", "format": name, "pattern": "^_$"})


DATES = {
    "date": (["2024-02-29", "2000-02-29", "2023-04-30", "0001-01-31"], ["2023-02-29", "1900-02-29", "0000-01-01"]),
    "date-time": (
        ["2024-02-29T23:59:59Z", "2023-01-31T00:00:00.5+01:30"],
        ["2023-02-29T00:00:00Z", "2023-01-01T00:00:60Z"],
    ),
    "time": (["23:59:59Z"], ["23:59:60Z"]),
}
PASSWORD = r"^(?=.*[A-Z])(?=[^)]*[)\](])\S{3,9}$"


ENUMERATION = {"E": {"enum": ["a", "b", "c"], "type": "string", "title": "E"}}
SET = {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/E"}, "minItems": 1}


@pytest.mark.parametrize(
    ("schema", "accepted", "rejected"),
    [
        *(({"type": ["string", "null"], "format": name}, [*good, None], bad) for name, (good, bad) in DATES.items()),
        ({"type": "string", "pattern": PASSWORD}, ["aA)", "(Bcd"], ["aa)", "AAA", "A)", "A )a"]),
        ({"pattern": "^(?=a)(?=.b)[a-z]+$", "allOf": [{"maxLength": 3}]}, ["ab", "abc"], ["ac", "bb", "abcd"]),
        ({"type": "string", "pattern": next(iter(KNOWN_PATTERNS))}, ["1", "-0.5", ".5", "+1."], ["", ".", "-", "+."]),
        (
            {"type": "string", "pattern": list(KNOWN_PATTERNS)[1]},
            ["a@b.co", "a.b'c@d-e.fg.hi"],
            [".a@b.co", "a..b@c.co", "a.@b.co", "a'@b.co", "a@b", "a@b..co"],
        ),
        (
            {"$defs": ENUMERATION, "properties": {"x": SET}, "required": ["x"]},
            [{"x": ["a"]}, {"x": ["c", "a"]}, {"x": ["b", "a", "c"]}],
            [{"x": []}, {"x": ["a", "a"]}, {"x": ["d"]}, {"x": ["a", "b", "a"]}],
        ),
        (
            {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
            [{}, {"a": 1}, {"a": 1, "b": 2}],
            [{"c": 1}, {"a": "x"}],
        ),
        (
            {
                "$defs": {"E": {"enum": ["a", "b"], "type": "string", "title": "E"}},
                "properties": {
                    "x": {"propertyNames": {"$ref": "#/$defs/E"}, "properties": {"c": True, "a": {"type": "null"}}}
                },
                "required": ["x"],
            },
            [{"x": {"a": None, "b": 5}}, {"x": {}}],
            [{"x": {"c": 1}}, {"x": {"a": 1}}, {"x": {"d": 1}}],
        ),
    ],
)
def test_what_the_library_does_not_know_is_demanded_in_keywords_that_it_does(compiler, schema, accepted, rejected):
    jsonschema = pytest.importorskip("jsonschema")
    grammar = compiler.compile_schema(schema)
    for value in accepted:
        assert accepts(compiler, grammar, json.dumps(value)), value
        assert jsonschema.Draft202012Validator(schema).is_valid(value)
    for value in rejected:
        assert not accepts(compiler, grammar, json.dumps(value)), value


def test_what_is_not_supported_is_named_in_the_words_of_the_schema(compiler):
    for schema, words in (
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf: two of its schemas may accept one value"),
        ({"uniqueItems": True}, "uniqueItems: not supported in a schema"),
        ({"pattern": "(?!a)b"}, "a pattern with lookahead"),
        ({"pattern": "a\\b"}, "a pattern with lookahead, lookbehind or a boundary"),
    ):
        with pytest.raises(GrammarError, match=words) as error:
            compiler.compile_schema(schema)
        assert "\n" not in str(error.value)


def test_values_that_are_no_schemas_and_properties_of_these_names_remain():
    value = {"format": "made-up", "uniqueItems": False}
    schema = {"enum": [value], "const": value, "default": value, "properties": {"format": True, "uniqueItems": False}}
    del schema["default"]
    assert adapt_schema({**schema, "default": value, "examples": [value]}) == schema


def test_objects_with_named_properties_are_closed_where_that_excludes_no_part_of_the_schema():
    inner = {"type": "object", "properties": {"a": True}, "required": ["a"]}
    closed = inner | {"additionalProperties": False}
    schema = {"$defs": {"x": inner}, "properties": {"y": {"anyOf": [inner, {"type": "null"}]}, "z": {"items": inner}}}
    assert close_objects(schema) == {
        "$defs": {"x": closed},
        "properties": {"y": {"anyOf": [closed, {"type": "null"}]}, "z": {"items": closed}},
        "additionalProperties": False,
    }
    names = {"properties": {"if": True, "not": inner}}
    assert close_objects(names) == {"properties": {"if": True, "not": closed}, "additionalProperties": False}
    for same in (
        {"type": "object"},
        {"properties": {}},
        inner | {"additionalProperties": {"type": "integer"}},
        inner | {"required": ["a", "b"]},
        {"allOf": [inner, {"properties": {"b": True}}]},
        {"properties": {"b": True}, "anyOf": [inner]},
        {"properties": {"b": True}, "$ref": "#/$defs/x", "$defs": {"x": inner}},
        {"const": inner},
        True,
        "text",
    ):
        assert close_objects(same) == same


OTHER_KEYWORDS = ("$ref", "type", "enum", "const", "format", "pattern", "required", "multipleOf", "x-guidance")
KEYWORDS = sorted(
    {*NOTHING, *ANNOTATIONS, *COUNTS, *SCHEMA_KEYWORDS, *LIST_KEYWORDS, *MAP_KEYWORDS, *LOWER, *UPPER, *OTHER_KEYWORDS}
)
VALUES = (
    None,
    True,
    5,
    1.5,
    "a",
    "#/$defs/a",
    [],
    [5],
    ["a"],
    [[]],
    {},
    {"a": 5},
    {"a": []},
    {"type": []},
    {"enum": 5},
)
REFERENCE = {"$ref": "#/$defs/a"}
OTHER_KEYWORDS = (  # schemas in which the keyword is
    {},
    {"type": "array", "items": REFERENCE, "uniqueItems": True},
    {"type": "object", "propertyNames": REFERENCE, "properties": {"a": {}}},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    {"format": "date", "allOf": []},
)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_of_any_type_is_a_schema_or_an_error_that_says_so(keyword):
    for others in OTHER_KEYWORDS:
        for value in VALUES:
            schema = {**others, keyword: value}
            for whole in (schema, {"properties": {"x": schema}}):
                for lenient in (False, True):
                    with contextlib.suppress(GrammarError):
                        write_json_rule("start", close_objects(whole), lenient)


def test_definitions_that_are_no_object_are_an_error_of_the_schema(compiler):
    schema = {"type": "array", "items": REFERENCE, "uniqueItems": True}
    for definitions in (5, True, ["a"], "a"):
        with pytest.raises(GrammarError, match=r"\$defs|uniqueItems|unresolvable|#/|object"):
            compiler.compile_schema({**schema, "$defs": definitions})
