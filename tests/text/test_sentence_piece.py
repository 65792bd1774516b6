"""SentencePiece's tokenizers give the ids and texts of the library that other programs use, and no control token."""

import json

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from fledgling.config import UserError
from fledgling.text.tokenizer import Tokenizer

TEXT = ["the quick brown fox jumps over the lazy dog 12 times, again and again\n\nand once more " * 9]
TEXTS = ["the fox", " two  spaces", "über\n\ndas 😀", "", "a", "the <s> fox </s>", "x\t<0x0A>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def build(kind: str) -> dict:
    """The contents of a tokenizer.json as Llama 2's, Gemma's or a Unigram one."""
    controls = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        library = Library(models.Unigram())
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        library.decoder = decoders.Metaspace(prepend_scheme="always")
        library.train_from_iterator(
            TEXT, trainers.UnigramTrainer(vocab_size=200, special_tokens=controls, unk_token="<unk>")
        )
        return json.loads(library.to_str())
    library = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    llama = kind == "llama2"
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if llama else spaces
    if not llama:
        library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if llama else []
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    library.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=420, special_tokens=[*controls, *BYTES]))
    document = json.loads(library.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in controls]
    return document


@pytest.mark.parametrize("kind", ["llama2", "gemma", "unigram"])
def test_ids_and_texts_are_those_of_the_library(kind):
    from transformers import PreTrainedTokenizerFast

    document = build(kind)
    tokenizer = Tokenizer(document)
    other = PreTrainedTokenizerFast(tokenizer_object=Library.from_str(json.dumps(document)), unk_token="<unk>")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert not set(ids) & {tokenizer.special_tokens["<s>"], tokenizer.special_tokens["</s>"]}, text
        if "<s>" not in text:
            assert ids == other.encode(text, add_special_tokens=False), text
            if tokenizer.special_tokens["<unk>"] not in ids:
                assert tokenizer.decode(ids) == other.decode(ids, clean_up_tokenization_spaces=False), text
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size and tokenizer.bos == tokenizer.special_tokens["<s>"]


def test_bytes_of_a_fallback_are_one_character_again():
    tokenizer = Tokenizer(build("llama2"))
    ids = tokenizer.encode("😀")
    assert len(ids) > 3 and tokenizer.decode(ids) == "😀"
    assert tokenizer.decode_bytes(ids[-4:]) == "😀".encode()


def test_a_kind_that_is_neither_is_rejected():
    document = build("unigram")
    document["model"] = {"type": "WordPiece", "vocab": {"a": 0}}
    with pytest.raises(UserError, match="this tokenizer is WordPiece; expected byte-level BPE"):
        Tokenizer(document)
