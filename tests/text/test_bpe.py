"""BPE training: both libraries learn the same merges, and letters and digits are tokens as configured."""

from string import ascii_letters

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.text.bpe import learn_merges, read_merge_lines
from fledgling.text.tokenizer import Tokenizer
from tests.text.hostile_texts import hostile_text, many_examples


@pytest.mark.parametrize("digits", (1, 2, 3))
def test_both_trainers_give_the_same_tokenizer(texts, digits):
    pytest.importorskip("ffbpe")
    trained = [Tokenizer.train(texts, 700, max_digits=digits, trainer=trainer) for trainer in ("ffbpe", "tokenizers")]
    assert trained[0].fingerprint() == trained[1].fingerprint()
    assert [tokenizer.training_info["trainer"] for tokenizer in trained] == ["ffbpe", "tokenizers"]


@given(texts=st.lists(hostile_text, min_size=1, max_size=4), digits=st.sampled_from((1, 2, 3)))
@many_examples
def test_both_trainers_stop_at_the_same_merge(texts, digits):
    pytest.importorskip("ffbpe")
    learned = [learn_merges(texts * 2, 400, digits, trainer) for trainer in ("ffbpe", "tokenizers")]
    assert learned[0] == learned[1]


def test_every_letter_is_one_token_even_if_the_text_has_none():
    trained = Tokenizer.train(["да нет " * 50], 256 + 52 + 9 + 2)
    assert trained.vocab_size == 319
    for letter in ascii_letters:
        assert len(trained.encode(letter)) == 1
        assert len(trained.encode(" " + letter)) == 1
    free = Tokenizer.train(["ab ab ac " * 50], 256 + 9 + 2, letter_tokens=False)
    assert len(free.encode(" q")) == 2


@pytest.mark.parametrize(
    ("digits", "merges", "expected"),
    ((1, 0, list("123456")), (2, 3, ["12", "34", "56"]), (3, 4, ["123", "456"])),
)
def test_digits_are_grouped(digits, merges, expected):
    trained = Tokenizer.train(["123456 " * 50], 256 + 9 + merges, max_digits=digits, letter_tokens=False)
    assert [trained.decode([index]) for index in trained.encode("123456")] == expected
    assert [trained.decode([index]) for index in trained.encode_batch(["123456"])[0]] == expected


SIGNS = ["#version\n#versions\n#value\n#v\n#vv\n" * 30]


@pytest.mark.parametrize("digits", (1, 2, 3))
def test_a_merge_with_a_number_sign_and_v_is_a_merge(digits):
    pytest.importorskip("ffbpe")
    learned = [learn_merges(SIGNS, 275, digits, trainer) for trainer in ("ffbpe", "tokenizers")]
    assert learned[0] == learned[1]
    assert {"#v", "#version", "#versions", "#value"} <= {left + right for left, right in learned[0]}


@pytest.mark.parametrize("header", ("#version: 0.2\n", "#version: 0.2 - Trained by `huggingface/tokenizers`\r\n", ""))
def test_only_the_first_line_of_a_merges_file_is_a_header(header, tmp_path):
    lines = ["# v", "#v e", "#version s", "a #version"]
    file = tmp_path / "merges.txt"
    file.write_text(header + "\n".join(lines) + "\n\n", encoding="utf-8", newline="")
    assert read_merge_lines(file) == lines
