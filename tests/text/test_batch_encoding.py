"""Batch encoding: the ids are those of single texts, whichever library encodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.text.tokenizer import Tokenizer
from tests.text.hostile_texts import hostile_text, many_examples


@given(texts=st.lists(hostile_text, max_size=4))
@many_examples
def test_a_batch_has_the_ids_of_its_texts(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_ids_do_not_depend_on_the_batch_library(tokenizer, texts, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    plain = Tokenizer(tokenizer.tokenizer_json)
    assert plain.batch_library == "tokenizers"
    monkeypatch.undo()
    assert plain.encode_batch(texts) == Tokenizer(tokenizer.tokenizer_json).encode_batch(texts)


def test_gigatoken_is_used_if_installed(tokenizer):
    pytest.importorskip("gigatoken")
    assert tokenizer.batch_library == "gigatoken"


def test_the_cache_of_gigatoken_is_bounded(tokenizer, texts, monkeypatch):
    pytest.importorskip("gigatoken")
    monkeypatch.setattr("fledgling.text.batch_encoding.MAX_CACHED_CHARACTERS", 100)
    fast = Tokenizer(tokenizer.tokenizer_json)
    first = fast.encode_batch(texts[:3])
    before = fast._batch_encoder[1]._scanner._encoder
    assert fast.encode_batch(texts[:3]) == first
    assert fast._batch_encoder[1]._scanner._encoder is not before
