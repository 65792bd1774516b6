"""The tokenizer of a GGUF file: byte-level BPE by its merges, SentencePiece's by its scores, one line for others."""

import pytest

from fledgling.config import UserError
from fledgling.export.gguf_tokenizer import read_gguf_tokenizer
from fledgling.text.bpe import byte_alphabet

BYTES = byte_alphabet()
PREFIX = "tokenizer.ggml."


def byte_level(**changes):
    tokens = [*BYTES, "ab", "abc", "<|end|>"]
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b", "ab c"]}
    values |= {"token_type": [1] * (len(tokens) - 1) + [3], "eos_token_id": len(tokens) - 1}
    return {PREFIX + name: value for name, value in (values | changes).items() if value is not None}


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_byte_level_pieces_merge_in_the_order_of_the_list(pre):
    tokenizer = read_gguf_tokenizer(byte_level(pre=pre))
    ids = tokenizer.encode("abcab")
    assert ids == [len(BYTES) + 1, len(BYTES)] and tokenizer.decode(ids) == "abcab"
    assert tokenizer.special_tokens == {"<|end|>": len(BYTES) + 2}


def test_sentence_piece_merges_the_best_score_first():
    tokens = ["<unk>", "a", "b", "c", "ab", "bc", "▁"]
    values = {"model": "llama", "tokens": tokens, "token_type": [2, 1, 1, 1, 1, 1, 1], "add_space_prefix": False}
    for scores, expected in (([0, 0, 0, 0, -1, -2, 0], ["ab", "c"]), ([0, 0, 0, 0, -2, -1, 0], ["a", "bc"])):
        tokenizer = read_gguf_tokenizer({PREFIX + name: value for name, value in (values | {"scores": scores}).items()})
        assert [tokens[index] for index in tokenizer.encode("abc")] == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": []}, "no tokens"),
        ({"tokens": [1, 2]}, "no tokens"),
        ({"model": "rwkv"}, "'rwkv'; expected gpt2 or llama"),
        ({"pre": "tekken"}, "'tekken'; expected one of gpt-2"),
        ({"merges": None}, "no merges"),
        ({"model": "llama"}, "no scores"),
    ],
)
def test_what_cannot_be_read_is_one_line(changes, problem):
    with pytest.raises(UserError, match=problem):
        read_gguf_tokenizer(byte_level(**changes))
