"""The needle in a haystack: exact lengths, the answer of a model that looks, and chance."""

import pytest
import torch

from fledgling.cli import main
from fledgling.config import ModelConfig, UserError
from fledgling.evals import needle
from fledgling.evals.needle import DEPTHS, extend_context, make_needles, measure_needles
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer

CONFIG = ModelConfig(330, 2, 32, 2, context=128)
TEXTS = ["the quick brown fox jumps over the lazy dog again and again " * 9]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=330)


def test_texts_have_the_length_and_the_needle_at_its_depth(tokenizer):
    exam = make_needles(tokenizer, TEXTS, [100, 150], DEPTHS, 3)
    assert len(exam) == 2 * 5 * 3
    for each in exam:
        assert len(each.rows) == 10 and all(len(row.tokens) == each.length for row in each.rows)
        right = each.rows[each.answer]
        text = tokenizer.decode(right.tokens.tolist())
        assert text.count(f"The secret number is {each.answer}") == 2, "stated once and asked once"
        at = text.index("The secret") / (len(text) - 2 * len(needle.NEEDLE))
        assert abs(at - each.depth) < 0.25
    again = make_needles(tokenizer, TEXTS, [100], DEPTHS, 3)
    assert [each.answer for each in again] == [each.answer for each in exam[:15]]
    with pytest.raises(UserError, match="expected at least"):
        make_needles(tokenizer, TEXTS, [20], DEPTHS, 1)
    with pytest.raises(UserError, match="no text"):
        make_needles(tokenizer, [], [100], DEPTHS, 1)


def test_a_model_that_looks_finds_every_number_and_another_is_at_chance(tokenizer, monkeypatch):
    exam = make_needles(tokenizer, TEXTS, [100], DEPTHS, 20)
    model = Transformer(CONFIG).eval()
    model.initialize(0)
    random = measure_needles(model, tokenizer, exam)
    assert [m.name for m in random] == ["needle_100", *(f"needle_100_at_{d}" for d in (0, 25, 50, 75, 100))]
    assert 0.0 <= random[0].value < 0.3 and random[0].n == 100 and random[0].chance == 0.1

    class Looks:
        """Prefers the digit that was given."""

        def __init__(self, engine):
            pass

        def score(self, items):
            def logprob(row):
                pieces = tokenizer.decode(row.tokens.tolist()).split("The secret number is")
                return type("Score", (), {"logprob": float(pieces[1][:2] == pieces[2][:2])})

            return [[logprob(row) for row in item] for item in items]

    monkeypatch.setattr(needle, "Scorer", Looks)
    assert all(m.value == 1.0 for m in measure_needles(model, tokenizer, exam))


def test_a_lengthened_model_has_the_same_weights_and_reads_more(tokenizer):
    model = Transformer(CONFIG).eval()
    model.initialize(0)
    assert extend_context(model, None, "default") is model
    longer = extend_context(model, 4 * model.config.context, "yarn")
    assert longer.config.context == 4 * model.config.context and longer.config.rope_type == "yarn"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), longer.parameters(), strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--questions", "0"], "at least 1"),
        (["--rope", "yarm"], "expected one of default, linear, ntk, yarn"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, capsys):
    assert main(["eval", "needle", str(tmp_path), *words]) == 1
    assert message in capsys.readouterr().err
