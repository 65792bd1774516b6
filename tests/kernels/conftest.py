"""A tiny tokenizer for engines over random weights."""

import pytest

from fledgling.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)
