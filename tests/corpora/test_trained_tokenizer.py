"""The files of a trained tokenizer."""

import pytest

from fledgling.corpora.trained_tokenizer import read_training_facts, save_trained_tokenizer
from fledgling.text.tokenizer import Tokenizer


def test_the_facts_lie_next_to_the_tokenizer_and_name_it(tmp_path):
    tokenizer = Tokenizer.train(["the sea and the river"] * 20, 320)
    file, facts = save_trained_tokenizer(tokenizer, tmp_path, {"vocab_size": 320})
    assert facts["fingerprint"] == Tokenizer.load(file).fingerprint() and facts["vocab_size"] == 320
    assert read_training_facts(file) == facts


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_facts_that_cannot_be_read_are_none(tmp_path, content):
    if content is not None:
        (tmp_path / "training.json").write_text(content)
    assert read_training_facts(tmp_path / "tokenizer.json") == {}
