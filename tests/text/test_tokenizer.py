"""The tokenizer: texts are restored, none becomes a special token, and other programs give the same ids."""

import concurrent.futures
import json

import numpy as np
import pytest
from hypothesis import given

from fledgling.config import UserError
from fledgling.config.recipe import NUM_CONTROL_TOKENS
from fledgling.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.text.hostile_texts import hostile_text, many_examples


@given(text=hostile_text)
@many_examples
def test_any_text_is_restored_and_never_has_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_tokens.values())


def test_the_file_gives_the_same_ids_in_tokenizers_and_transformers(tokenizer, texts, tmp_path):
    from tokenizers import Tokenizer as Library
    from transformers import PreTrainedTokenizerFast

    file = tokenizer.save(tmp_path)
    library = Library.from_file(str(file))
    fast = PreTrainedTokenizerFast(tokenizer_file=str(file))
    assert library.get_vocab_size() == len(fast) == tokenizer.vocab_size
    for text in texts[:20]:
        assert library.encode(text).ids == tokenizer.encode(text) == fast.encode(text)
        assert fast.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    for name in SPECIAL_TOKENS:
        assert library.token_to_id(name) == tokenizer.special_tokens[name]
        assert library.encode(name).ids == [tokenizer.special_tokens[name]]  # there, a name in text becomes the token


def test_saving_and_loading_changes_nothing(tokenizer, texts, tmp_path):
    file = tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    for place in (file, file.parent):
        again = Tokenizer.load(place)
        assert again.fingerprint() == tokenizer.fingerprint()
        assert again.encode_batch(texts[:5]) == tokenizer.encode_batch(texts[:5])
    assert [entry.name for entry in file.parent.iterdir()] == ["tokenizer.json"]


def test_bytes_are_their_own_ids_and_lengths_are_of_raw_bytes(tokenizer):
    assert tokenizer.token_bytes[:256] == [bytes([value]) for value in range(256)]
    lengths = tokenizer.byte_lengths()
    assert lengths.dtype == np.int32
    assert lengths.shape == (tokenizer.vocab_size,)
    assert not lengths[list(tokenizer.special_tokens.values())].any()
    text = "Zürich 서울 🐦 12345\n"
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_special_tokens_are_the_last_ids_and_decode_to_their_names(tokenizer):
    assert list(tokenizer.special_tokens) == list(SPECIAL_TOKENS)
    assert list(tokenizer.special_tokens.values()) == list(range(tokenizer.vocab_size - 9, tokenizer.vocab_size))
    assert tokenizer.decode([tokenizer.bos, 65, tokenizer.output_end]) == "<|bos|>A<|output_end|>"
    assert tokenizer.bos == tokenizer.special_tokens["<|bos|>"]
    assert tokenizer.assistant_end == tokenizer.special_tokens["<|assistant_end|>"]
    assert tokenizer.token_bytes[tokenizer.bos] == b""


def test_lone_surrogates_and_partial_characters_are_replaced(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a�b"
    assert tokenizer.encode_batch(["a\ud800b"]) == [tokenizer.encode("a\ud800b")]
    assert tokenizer.decode_bytes([0xC3]) == b"\xc3"
    assert tokenizer.decode([0xC3]) == "�"
    with pytest.raises(IndexError):
        tokenizer.decode([-1])
    with pytest.raises(IndexError):
        tokenizer.decode([tokenizer.vocab_size])


def test_threads_can_share_a_tokenizer(tokenizer, texts):
    expected = tokenizer.encode_batch(texts[:40])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: tokenizer.encode_batch(texts[:40]), range(16)))
    assert all(result == expected for result in results)


def test_a_vocabulary_larger_than_the_text_supports_is_rejected_with_the_size_reached(texts):
    for trainer in ("tokenizers", "auto"):
        with pytest.raises(UserError, match=r"vocab_size is 50000, but .* support only (\d+): choose at most"):
            Tokenizer.train(texts, 50_000, trainer=trainer)
    with pytest.raises(UserError, match="support only 317"):
        Tokenizer.train([], 500)


def test_the_size_reached_can_be_trained(texts):
    with pytest.raises(UserError) as caught:
        Tokenizer.train(texts[:5], 50_000)
    reached = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert Tokenizer.train(texts[:5], reached).vocab_size == reached


def test_invalid_settings_are_rejected_in_one_line(texts, tmp_path):
    with pytest.raises(UserError, match="digits is 4"):
        Tokenizer.train(texts, 512, max_digits=4)
    with pytest.raises(UserError, match="take 317: choose at least that"):
        Tokenizer.train(texts, 300)
    assert len(SPECIAL_TOKENS) == NUM_CONTROL_TOKENS
    with pytest.raises(UserError, match='unknown trainer "fast"'):
        Tokenizer.train(texts, 512, trainer="fast")
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match="not a readable"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    with pytest.raises(UserError, match="Unigram; expected byte-level BPE"):
        Tokenizer.load(tmp_path)


def test_reading_stops_at_the_number_of_characters(texts):
    seen = []
    trained = Tokenizer.train(iter(texts), 512, max_characters=100_000, progress=seen.append)
    assert trained.training_info["characters"] == seen[-1] == 100_000
    assert trained.fingerprint() == Tokenizer.train([*texts], 512, max_characters=100_000).fingerprint()


def test_a_tokenizer_without_chat_tokens_is_rejected(tokenizer):
    document = json.loads(json.dumps(tokenizer.tokenizer_json))
    document["added_tokens"] = []
    bare = Tokenizer(document)
    with pytest.raises(UserError, match=r"no special token <\|user_start\|>"):
        _ = bare.user_start


def test_merges_in_the_form_of_older_files_are_all_read():
    """A list of "left right", among which `tokenizers` takes those that begin with #version for a header."""
    trained = Tokenizer.train(["#version\n#versions\n#v\n" * 50], 256 + 9 + 8, letter_tokens=False)
    model = trained.tokenizer_json["model"]
    assert any(left == "#version" for left, _ in model["merges"])
    older = {**model, "merges": [" ".join(merge) for merge in model["merges"]]}
    loaded = Tokenizer({**trained.tokenizer_json, "model": older})
    for text in ("#version", "#versions #v"):
        assert loaded.encode(text) == trained.encode(text) == loaded.encode_batch([text])[0]


@pytest.mark.parametrize("mark", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_a_tokenizer_that_marks_its_pieces_is_rejected(tokenizer, mark):
    model = {**tokenizer.tokenizer_json["model"], mark: "##"}
    with pytest.raises(UserError, match=mark):
        Tokenizer({**tokenizer.tokenizer_json, "model": model})


def test_merges_of_unknown_tokens_are_one_line(tokenizer):
    model = {**tokenizer.tokenizer_json["model"], "merges": [["a", "☃"]]}
    broken = Tokenizer({**tokenizer.tokenizer_json, "model": model})
    for use in (lambda: broken.encode("a"), lambda: broken.encode_batch(["a"])):
        with pytest.raises(UserError, match="cannot be used") as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"model": ' * 100_000, b"\xff\xfe\x00", b"[]", b'{"model": 5}'])
def test_a_file_that_is_no_tokenizer_is_one_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_byte_order_mark_is_passed_over_and_a_huge_file_is_not_read(tokenizer, tmp_path, monkeypatch):
    file = tokenizer.save(tmp_path / "tokenizer.json")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Tokenizer.load(file).fingerprint() == tokenizer.fingerprint()
    monkeypatch.setattr("fledgling.text.tokenizer.MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(UserError, match="larger than 100 bytes"):
        Tokenizer.load(file)
