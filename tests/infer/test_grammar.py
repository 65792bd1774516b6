"""Constraints: what a grammar promises holds in every answer, in batches and with drafts, at a bounded cost."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
import torch

from fledgling.config.model import ModelConfig
from fledgling.infer import grammar as grammar_module
from fledgling.infer.engine import Engine
from fledgling.infer.grammar import ALLOWED_SECONDS, LIMITS, SECONDS_PER_MASK, GrammarError, WorkMeter, write_json_rule
from fledgling.infer.sampling import SamplingParams
from fledgling.model.transformer import Transformer

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "size": {"enum": ["small", "large"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "n": {"type": "integer", "minimum": 3, "maximum": 40},
    },
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture
def allowed_seconds(monkeypatch):
    """Grammars have the limit of users, and not the minute of other tests (conftest.py)."""
    monkeypatch.setattr(grammar_module, "ALLOWED_SECONDS", ALLOWED_SECONDS)


@pytest.fixture(scope="module")
def engine(tokenizer) -> Engine:
    """A model of random weights: it would write anything."""
    model = Transformer(ModelConfig(tokenizer.vocab_size, 1, 32, 2, 2, 160))
    model.initialize(0)
    torch.manual_seed(3)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.3
    return Engine(model, tokenizer)


def answer(engine, grammars, drafted=0, max_new_tokens=150, rows=8, **sampling):
    """Returns the requests, each with its own seed, decoded in one batch."""
    scheduler = engine.make_scheduler(rows, num_speculative_tokens=drafted)
    prompt = [engine.tokenizer.bos, *engine.tokenizer.encode("the quick fox the quick fox")]
    requests = []
    for seed, grammar in enumerate(grammars):
        params = SamplingParams(max_new_tokens=max_new_tokens, seed=seed, **sampling)
        requests.append(scheduler.add_request(engine.make_request(prompt, params, grammar=grammar)))
    while scheduler.has_unfinished:
        scheduler.step()
    return requests


def text_of(engine, request):
    return engine.tokenizer.decode(request.tokens).removesuffix("<|assistant_end|>")


def test_every_finished_answer_of_a_random_model_satisfies_its_schema(engine):
    jsonschema = pytest.importorskip("jsonschema")
    grammar = engine.grammars.compile_schema(SCHEMA)
    requests = answer(engine, [grammar] * 24, temperature=1.5)
    finished = [request for request in requests if request.finish_reason == "stop"]
    assert len(finished) > 12
    for request in finished:
        jsonschema.validate(json.loads(text_of(engine, request)), SCHEMA)
    assert {request.finish_reason for request in requests} <= {"stop", "length", "context"}


def test_a_constraint_is_the_same_alone_in_a_batch_and_with_drafts(engine):
    compiler = engine.grammars
    grammars = [compiler.compile_schema(SCHEMA), compiler.compile_regex("(the fox ){2,9}"), None] * 2
    together = [request.tokens for request in answer(engine, grammars)]
    assert together == [request.tokens for request in answer(engine, grammars, drafted=4)]
    assert together == [request.tokens for request in answer(engine, grammars, rows=1)]
    assert "the fox the fox " in text_of(engine, answer(engine, grammars)[1])


def test_a_constraint_holds_where_other_requests_decode_on_the_device(engine):
    """Tokens of a constrained answer are read in each step; those of the other row one step late."""
    late = Engine(engine.source, engine.tokenizer, device_decode=True)
    grammars = [engine.grammars.compile_schema(SCHEMA), None]
    first, second = (answer(each, grammars) for each in (engine, late))
    assert [request.tokens for request in first] == [request.tokens for request in second]


def test_a_constraint_decides_before_penalties_and_bias_are_outweighed(engine, tokenizer):
    grammar = engine.grammars.compile_regex("a{9}")
    params = {"presence_penalty": 100.0, "frequency_penalty": 100.0, "logit_bias": ((98, 1e9),)}
    assert text_of(engine, answer(engine, [grammar], **params)[0]) == "a" * 9


@pytest.mark.parametrize(
    ("notation", "grammar"),
    [
        ("regex", r"(red|green)-[0-9]{2}"),
        ("lark", 'start: ("red" | "green") "-" NUMBER\nNUMBER: /[0-9]{2}/'),
        ("gbnf", 'root ::= ("red" | "green") "-" [0-9] [0-9]'),
    ],
)
def test_each_notation_is_obeyed(engine, notation, grammar):
    compiled = getattr(engine.grammars, f"compile_{notation}")(grammar)
    for request in answer(engine, [compiled] * 4):
        color, number = text_of(engine, request).split("-")
        assert color in ("red", "green") and number.isdigit() and len(number) == 2


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"type": "nothing"}, "nothing"),
        ({"type": "object", "dependentSchemas": {"a": {}}}, "dependentSchemas"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"type": "integer", "minimum": 10**30}, r"beyond 2\*\*53"),
        ({"type": "number", "maximum": float("inf")}, r"beyond 2\*\*53"),
        ({"const": {"default": 10**30}}, r"beyond 2\*\*53"),
        ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf 1000003 .*: expected a sum of at most 10,000"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 99.1}]}, "multipleOf 991, 997 .* least common multiple"),
        ({"multipleOf": 997, "anyOf": [{"multipleOf": 991}, {"multipleOf": 983}]}, "multipleOf 983, 991, 997"),
        ({"properties": {f"k{n}": {"multipleOf": 9000 + n} for n in range(40)}}, "multipleOf 9000, 9001, 9002"),
        ({"$ref": "#"}, "no text satisfies it"),
        (False, "."),
    ],
)
def test_what_cannot_be_promised_is_an_error(engine, schema, complaint):
    with pytest.raises(GrammarError, match=complaint) as error:
        engine.grammars.compile_schema(schema)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


HOSTILE = {
    "deep": json.loads('{"items":' * 60 + "{}" + "}" * 60),
    "many": {"anyOf": [{"properties": {f"k{i}{j}": {"pattern": f".*x.{{{i}}}"} for j in range(5)}} for i in range(60)]},
    "repeated": {"type": "string", "pattern": "((a{0,900}){0,900}){0,900}b"},
    "ambiguous": {"type": "string", "pattern": "(a|aa)*(.*b.{20}){9}c"},
    "long": {"type": "array", "minItems": 10**9},
    "wide": {"enum": ["x" * 300 + str(number) for number in range(300)]},
}


@pytest.mark.usefixtures("allowed_seconds")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_rejected_or_bounded(engine, tokenizer, name):
    start = time.process_time()
    try:
        state = engine.grammars.compile_schema(HOSTILE[name]).start()
        choose = random.Random(1)
        for _ in range(100):
            token = int(choose.choice(np.flatnonzero(state.mask(tokenizer.vocab_size))))
            if token == engine.grammars.eos_token:
                break
            state.accept(token)
    except GrammarError:
        pass
    assert time.process_time() - start < 30  # a bound, not a measurement: unbounded ones take minutes


@pytest.mark.usefixtures("allowed_seconds")
def test_an_ambiguous_grammar_ends_before_it_takes_much_time(engine, tokenizer):
    grammar = engine.grammars.compile_lark("start: s\ns: s s s | s s | /[a-z ]/ | \n")
    letters = [tokenizer.encode(letter)[0] for letter in "abc"]
    start = time.thread_time()
    with pytest.raises(GrammarError, match=r"takes .* ms a token, expected at most 1 ms: make it simpler"):
        for n in range(16):  # the answers of one request share its limit
            state = grammar.start()
            for step in range(100):
                assert state.mask(tokenizer.vocab_size).any()
                state.accept(letters[(n + step) % 3])
    assert time.thread_time() - start < 15  # a bound, not a measurement: unlimited it takes half a minute


@pytest.mark.usefixtures("allowed_seconds")
def test_a_grammar_may_take_its_time_at_once_and_a_little_for_each_token():
    meter = WorkMeter()
    meter.add(ALLOWED_SECONDS, 1)
    for _ in range(1000):
        meter.add(0.9 * SECONDS_PER_MASK, 1)
    with pytest.raises(GrammarError, match="ms a token"):
        meter.add(ALLOWED_SECONDS + 1, 1)


def test_a_step_beyond_its_limits_ends_that_answer_alone(engine, monkeypatch):
    monkeypatch.setitem(LIMITS, "max_lexer_states", 60)
    grammar = engine.grammars.compile_regex("(a|b)*a(a|b){12}c")
    failed, free = answer(engine, [grammar, None], logit_bias=((97, 50.0), (98, 50.0)))
    assert failed.finish_reason == "constraint" and free.finish_reason in ("length", "context")
    assert len(failed.tokens) == len(failed.logprobs) == len(failed.forced) > 0


def test_large_numbers_in_examples_and_divisors_that_are_not_joined_are_no_error(engine):
    within = {"minimum": 0, "maximum": 9999}
    of_thousands = {"type": "integer", "multipleOf": 1000, "default": 1e300, "examples": [10**30]} | within
    others = {"type": "integer", "multipleOf": 7} | within
    names = {"default": of_thousands, "b": others}
    schema = {"type": "object", "properties": names, "required": ["b"], "additionalProperties": False}
    for request in answer(engine, [engine.grammars.compile_schema(schema)] * 4):
        found = json.loads(text_of(engine, request))
        assert found["b"] % 7 == 0 and found.get("default", 0) % 1000 == 0
    wrong = {"properties": {"default": {"maximum": 10**30}}}
    with pytest.raises(GrammarError, match="beyond"):
        engine.grammars.compile_schema(wrong)
    engine.grammars.compile_schema({"type": "string", "minLength": 1.0, "maxLength": 3.0})
    engine.grammars.compile_schema({"enum": [{"multipleOf": 10**6}], "default": {"multipleOf": 10**6}})
    with pytest.raises(GrammarError, match="multipleOf 1000003"):
        engine.grammars.compile_schema({"properties": {"enum": {"type": "integer", "multipleOf": 1_000_003}}})


def test_a_schema_that_is_nested_too_deeply_is_named():
    schema = {"type": "integer"}
    for _ in range(5_000):
        schema = {"not": schema}
    with pytest.raises(GrammarError, match="nested too deeply"):
        write_json_rule("start", schema)
