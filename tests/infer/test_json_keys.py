"""Keys of JSON in answers: none twice in an object, none behind an escape; everything else is as the grammar has it."""

import json
import random

import numpy as np
import pytest

from fledgling.infer import json_keys
from fledgling.infer.grammar import GrammarCompiler
from fledgling.infer.json_keys import JsonPlace, KeyGuard, KeyVocabulary, advance

pytest.importorskip("llguidance")
FREE = {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2}
BOUND = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.bos)


def accepts(compiler, grammar, text: str) -> bool:
    """Writes the text a byte at a time; not by masks, which allow one division into tokens where a text is forced."""
    state = grammar.start()
    single = {piece: i for i, piece in enumerate(compiler.tokenizer.token_bytes) if len(piece) == 1}
    for byte in text.encode():
        token, allowed = single[bytes([byte])], np.ones(compiler.tokenizer.vocab_size, bool)
        state.guard.restrict_(allowed)
        if not allowed[token] or state.matcher.try_consume_tokens([token]) != 1:
            return False
        state.guard.accept(token)
    return state.matcher.is_accepting()


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": 1, "b": {"a": 1}, "a"',
        '[{"x": 1, "y": [], "x"',
        '{"a": "x\\", ", "a"',
        r'{"\u0061"',
        r'{"a\/b"',
        r'{"\u00e9"',
        r'{"\n": 1, "\u000a"',
        '{"": 1, "": 2}',
    ],
)
def test_a_key_that_occurs_twice_or_is_escaped_needlessly_is_found_in_any_pieces(text):
    assert advance(JsonPlace(), text.encode()) is None
    place = JsonPlace()
    for byte in text.encode():
        place = advance(place, bytes([byte])) if place is not None else None
    assert place is None


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": {"a": 1, "b": 2}, "c": [{"a": 1}, {"a": 2}]}',
        '["a", "a", "\\u0061", "a\\/"]',
        '{"a": "a", "b": "a", "c": "\\u0061 \\" , \\"a\\": 1"}',
        r'{"\u0001": 1, "\t": 2, "\"": 3, "\\": 4, "é": 5}',
        '"a"',
    ],
)
def test_other_json_passes(text):
    place = advance(JsonPlace(), text.encode())
    assert place == JsonPlace()


def test_what_a_schema_demands_holds_for_the_value_and_not_only_for_the_text(compiler):
    free, bound = compiler.compile_schema(FREE), compiler.compile_schema(BOUND)
    assert accepts(compiler, free, '{"a": 1, "b": 2}') and not accepts(compiler, free, '{"a": 1, "a": 2}')
    assert accepts(compiler, bound, '{"a": 1}') and not accepts(compiler, bound, r'{"\u0061": "x"}')
    assert accepts(compiler, bound, '{"b": {"a": "x"}, "c": "x"}')


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
BOUNDED = {"type": "object", "patternProperties": {"^x_[a-z]{1,2}$": DIGIT}, "additionalProperties": False}
EVERY = {"type": "object", "patternProperties": {"^[ab]$": DIGIT}, "additionalProperties": False, "maxProperties": 2}


@pytest.mark.parametrize(
    "schema", [FREE | {"maxProperties": 4}, BOUNDED | {"minProperties": 2}, EVERY | {"maxProperties": 3}]
)
def test_a_random_writer_of_few_letters_repeats_no_key(compiler, schema):
    """Each token is one of those that the mask allows, mostly among a few bytes, so that keys would often repeat."""
    grammar, size, choose = (
        compiler.compile_schema(schema),
        compiler.tokenizer.vocab_size,
        random.Random(1),
    )
    likely = [i for i, piece in enumerate(compiler.tokenizer.token_bytes) if piece and set(piece) <= set(b'{}": ,1ab')]
    finished = 0
    for _ in range(60):
        state, text = grammar.start(), b""
        for _ in range(120):
            allowed = np.flatnonzero(state.mask(size))
            few = [token for token in likely if token in allowed] or list(allowed)
            token = int(choose.choice(list(allowed) if compiler.eos_token in allowed else few))
            if token == compiler.eos_token:
                break
            text += compiler.tokenizer.token_bytes[token]
            state.accept(token)
        else:
            continue
        finished += 1
        pairs = json.loads(text, object_pairs_hook=list)
        assert len(dict(pairs)) == len(pairs) and schema.get("minProperties", 0) <= len(pairs) <= schema.get(
            "maxProperties", 99
        )
    assert finished > 20


def test_where_every_name_is_taken_the_object_ends(compiler):
    grammar = compiler.compile_schema(EVERY | {"maxProperties": 3})
    state, single = grammar.start(), {p: i for i, p in enumerate(compiler.tokenizer.token_bytes) if len(p) == 1}
    for byte in b'{"a": 1, "b": 2':
        assert state.mask(compiler.tokenizer.vocab_size)[single[bytes([byte])]]
        state.accept(single[bytes([byte])])
    allowed = np.flatnonzero(state.mask(compiler.tokenizer.vocab_size))
    assert {compiler.tokenizer.token_bytes[token] for token in allowed} == {b"}"}


def test_a_name_whose_continuations_are_taken_is_not_begun(compiler):
    pattern = {"^x_([ab]|c[de])$": DIGIT}
    grammar = compiler.compile_schema({"type": "object", "patternProperties": pattern, "additionalProperties": False})
    state, single = grammar.start(), {p: i for i, p in enumerate(compiler.tokenizer.token_bytes) if len(p) == 1}
    for byte in b'{"x_cd": 1, "x_ce": 2, "x_a": 3, "x_':
        state.accept(single[bytes([byte])])
    allowed = state.mask(compiler.tokenizer.vocab_size)
    assert allowed[single[b"b"]] and not allowed[single[b"c"]]


def test_of_a_large_vocabulary_only_beginnings_of_taken_names_are_looked_at(tokenizer, monkeypatch):
    """In a key that may be any text every token is allowed: each of 150,000 would take a second a step."""
    vocabulary = KeyVocabulary(tokenizer)
    guard = KeyGuard(vocabulary, from_start=True)
    single = {piece: i for i, piece in enumerate(tokenizer.token_bytes) if len(piece) == 1}
    for byte in b'{"abc": 1, "a':
        guard.accept(single[bytes([byte])])
    looked = []
    monkeypatch.setattr(json_keys, "advance", lambda place, data: looked.append(data) or advance(place, data))
    found = guard.list_doubtful(np.ones(tokenizer.vocab_size, bool))
    assert single[b"b"] in [token for token, _ in found] and set(looked) <= {b"b", b"bc"}


def test_calls_are_guarded_after_their_control_token_and_other_text_is_not(tokenizer):
    guard = KeyGuard(KeyVocabulary(tokenizer), from_start=False)
    single = {piece: i for i, piece in enumerate(tokenizer.token_bytes) if len(piece) == 1}
    start, end = (tokenizer.special_tokens[f"<|python_{name}|>"] for name in ("start", "end"))

    def write(text):
        for byte in text.encode():
            guard.accept(single[bytes([byte])])

    def may_close():
        allowed = np.zeros(tokenizer.vocab_size, bool)
        allowed[single[b'"']] = True
        guard.restrict_(allowed)
        return allowed.any()

    write('{"a": 1, "a')
    assert may_close()
    guard.accept(start)
    write('{"a": 1, "a')
    assert not may_close()
    guard.accept(end)
    write('"a": 1, "a')
    assert may_close()
    guard.accept(start)
    write('2+{"a": 1, "a')  # the model's own tool
    assert may_close()
