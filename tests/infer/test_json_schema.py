"""Schemas of pydantic and zod: what demands nothing is dropped, what cannot be demanded is an error that names it."""

import pytest

from fledgling.infer.grammar import GrammarCompiler, GrammarError
from fledgling.infer.json_schema import FORMATS, NOTHING, drop_empty_demands

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.bos)


@pytest.mark.parametrize(("keyword", "value"), [(name, value) for name, values in NOTHING.items() for value in values])
def test_a_keyword_that_demands_nothing_is_dropped_at_every_depth(compiler, keyword, value):
    inner = {keyword: value, "minimum": 0}
    for schema in (
        {"properties": {"x": inner}, "$defs": {"y": inner}},
        {"items": inner, "prefixItems": [inner]},
        {"anyOf": [{"additionalProperties": inner}]},
    ):
        assert keyword not in str(drop_empty_demands(schema)) and "minimum" in str(drop_empty_demands(schema))
        compiler.compile_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"uniqueItems": True},
        {"uniqueItems": 0},
        {"propertyNames": {"type": "integer"}},
        {"propertyNames": {"type": "string", "maxLength": 3}},
        {"propertyNames": False},
        {"not": {}},
        {"unevaluatedProperties": False},
        {"dependentRequired": {"a": ["b"]}},
    ],
)
def test_a_keyword_that_demands_something_is_an_error_that_names_it(compiler, schema):
    with pytest.raises(GrammarError, match=next(iter(schema))):
        compiler.compile_schema({"items": schema})


def test_unknown_formats_are_annotations_and_known_ones_are_obeyed(compiler):
    for name in ("path", "binary", "password", "regex", "uri-reference", "", "made-up"):
        compiler.compile_schema({"type": "string", "format": name})
    for name in FORMATS:
        assert drop_empty_demands({"format": name}) == {"format": name}
        compiler.compile_schema({"type": "string", "format": name})
        with pytest.raises(GrammarError):  # no text has both
            compiler.compile_schema({"type": "string", "format": name, "pattern": "^_$"})


def test_values_that_are_no_schemas_and_properties_of_these_names_remain():
    value = {"format": "made-up", "uniqueItems": False}
    schema = {"enum": [value], "const": value, "default": value, "properties": {"format": True, "uniqueItems": False}}
    assert drop_empty_demands(schema) == schema
