"""GPT-2's tokenizer is read from its two files, and corrupt files are rejected."""

import json
import os
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.text.bpe import byte_alphabet
from fledgling.text.gpt2 import load_gpt2_tokenizer
from fledgling.text.tokenizer import Tokenizer

ENTRIES = {token: index for index, token in enumerate([*byte_alphabet(), "ab", "<|endoftext|>"])}


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_it_is_read_from_its_two_files(names, tmp_path):
    assert load_gpt2_tokenizer(tmp_path) is None
    (tmp_path / names[0]).write_text(json.dumps(ENTRIES))
    (tmp_path / names[1]).write_text("#version: 0.2\na b\n")
    tokenizer = load_gpt2_tokenizer(tmp_path)
    assert tokenizer.encode("abba") == [256, ord("b"), ord("a")]
    assert 257 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.bos_or_none == tokenizer.bos == 257
    saved = Tokenizer.load(tokenizer.save(tmp_path / "tokenizer.json"))
    assert saved.fingerprint() == tokenizer.fingerprint() and saved.encode("abba") == tokenizer.encode("abba")


@pytest.mark.parametrize(
    ("entries", "merges"),
    [
        ("[]", "a b\n"),
        ("not json", "a b\n"),
        (json.dumps(ENTRIES), "a c\n"),
        (json.dumps(ENTRIES), "a b c\n"),
        (json.dumps(ENTRIES | {"x y": 999}), "a b\n"),
        (json.dumps(ENTRIES | {"x y": [1]}), "a b\n"),
    ],
)
def test_files_that_do_not_fit_are_rejected(entries, merges, tmp_path):
    (tmp_path / "encoder.json").write_text(entries)
    (tmp_path / "vocab.bpe").write_text(merges)
    with pytest.raises(UserError) as error:
        load_gpt2_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_the_published_files_give_the_published_ids():
    root = os.environ.get("FLEDGLING_DATA")
    directory = Path(root or ".") / "tokenizers" / "gpt2"
    if not (directory / "encoder.json").is_file():
        pytest.skip("FLEDGLING_DATA has no tokenizers/gpt2")
    tokenizer = load_gpt2_tokenizer(directory)
    assert tokenizer.vocab_size == 50257 and tokenizer.bos == 50256
    assert tokenizer.encode("Hello world") == [15496, 995]
    tiktoken = pytest.importorskip("tiktoken")
    try:
        reference = tiktoken.get_encoding("gpt2")
    except Exception:  # it downloads its own copy
        return
    text = "Don't stop 12345 naïve   \n\n x"
    assert tokenizer.encode(text) == reference.encode(text)


def test_a_merge_that_begins_with_the_word_of_the_header_is_kept(tmp_path):
    pieces = ["#v", "er", "#ver", "si", "on", "sion", "#version", "#versions"]
    merges = ["# v", "e r", "#v er", "s i", "o n", "si on", "#ver sion", "#version s"]
    entries = {token: index for index, token in enumerate([*byte_alphabet(), *pieces])}
    (tmp_path / "vocab.json").write_text(json.dumps(entries))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = load_gpt2_tokenizer(tmp_path)
    saved = Tokenizer.load(tokenizer.save(tmp_path / "tokenizer.json"))
    for one in (tokenizer, saved):
        assert [" ".join(merge) for merge in one.tokenizer_json["model"]["merges"]] == merges
