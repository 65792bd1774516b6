"""The benchmark of constrained answers counts what ended, what was cut and what was valid."""

import json

import pytest

from benchmarks import constrained
from fledgling.text.tokenizer import Tokenizer
from tests.chain_model import make_chain

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


def test_every_answer_is_counted_once(monkeypatch, tokenizer):
    monkeypatch.setattr(constrained, "_make_engine", lambda: make_chain(tokenizer, {}, 64))
    result = constrained.measure_constrained(answers=20, batch=10, tokens=3, rounds=1)
    assert result["ended"] + result["cut"] == result["answers"] == 20
    assert sum(sum(counts.values()) for counts in result["by_schema"].values()) == 20
    assert result["valid"] == result["ended"] > 0
    assert f"{result['valid']:,} of them valid" in constrained.format_constrained(result)


def test_a_wrong_answer_is_counted_as_invalid(monkeypatch, tokenizer):
    monkeypatch.setattr(constrained, "_make_engine", lambda: make_chain(tokenizer, {}, 64))
    monkeypatch.setattr(constrained, "SCHEMAS", {"digit": {"type": "integer", "minimum": 0, "maximum": 9}})
    compiled = constrained._make_engine().grammars.compile_regex('"word"')
    monkeypatch.setattr("fledgling.infer.grammar.GrammarCompiler.compile_schema", lambda self, schema: compiled)
    result = constrained.measure_constrained(answers=2, batch=2, tokens=3, rounds=1)
    assert result["by_schema"]["digit"] == {"invalid": 2}


def test_cases_of_a_suite_are_counted(monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr(constrained, "_make_engine", lambda: make_chain(tokenizer, {}, 64))
    tests = [{"data": value, "valid": isinstance(value, int)} for value in (1, 2, "a")]
    groups = [{"schema": {"type": "integer"}, "tests": tests}, {"schema": {"not": {}}, "tests": tests}]
    (tmp_path / "a.json").write_text(json.dumps(groups))
    expected = {"schemas compiled": 1, "schemas rejected": 1, "valid accepted": 2, "invalid rejected": 1}
    assert constrained.measure_suite(tmp_path) == expected
