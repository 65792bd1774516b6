"""Strict JSON in, and long JSON out in parts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from fledgling.serve import json_body
from fledgling.serve.json_body import ITEMS_AT_ONCE, InvalidJSON, encode_json, parse_json

texts = st.text(st.characters(codec="utf-8"))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3 * ITEMS_AT_ONCE) | st.dictionaries(texts, inner),
    max_leaves=80,
)


@given(values)
@settings(max_examples=30, deadline=None)
def test_json_in_parts_is_json(value):
    assert encode_json(value) == JSONResponse(value).body
    assert parse_json(encode_json(value)) == value


def test_no_part_is_longer_than_its_share(monkeypatch):
    """16 answers of 500 tokens with 20 alternatives: no call of the encoder gets more than ITEMS_AT_ONCE of them."""
    token = {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}] * 20}
    body = {"choices": [{"index": index, "logprobs": {"content": [token] * 500}} for index in range(16)]}
    sizes, dump = [], json_body._dump

    def measured(value):
        sizes.append(len(value) if isinstance(value, list) else 1)
        return dump(value)

    monkeypatch.setattr(json_body, "_dump", measured)
    assert json.loads(encode_json(body)) == body
    assert max(sizes) == ITEMS_AT_ONCE


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a": 1, "a": 1}', "'a' occurs twice"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not"),
        (b'{"x": [1e999]}', "1e999 is beyond the largest number"),
        (b"-1.5E+400", "-1.5E.400 is beyond"),
        (b"1" * 400 + b".0", r"1{80}\.\.\. is beyond"),
        (b"\xff", "not UTF-8 at byte 0"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, r"an integer has more than 4,300 digits$"),
        (b'"\\uDC00"', "half of a surrogate pair"),
        (b"{'a': 1}", "not JSON"),
        (json.dumps({str(number): 0 for number in range(1025)}).encode(), "1,025 keys"),
        (b"[" + b"{}," * 8192 + b"{}]", "more than 8,192 objects"),
    ],
)
def test_what_two_readers_may_understand_differently_is_rejected(body, reason):
    with pytest.raises(InvalidJSON, match=reason):
        parse_json(body)
