"""Shards: documents are read back, a shard is complete or absent, and every corruption is named."""

import errno
import json
import os

import numpy as np
import pytest

from fledgling.config import UserError
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard, tokenize_documents

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6, 7, 8]]


def write_shard(directory, documents=DOCUMENTS, vocab_size=1024, **options) -> TokenShard:
    with ShardWriter(directory, vocab_size, **options) as writer:
        for document in documents:
            writer.add_document(document)
    return TokenShard.open(directory)


class LetterTokenizer:
    """A tokenizer with one id a letter."""

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


@pytest.mark.parametrize("vocab_size, dtype", [(1024, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_documents_are_read_back(tmp_path, vocab_size, dtype):
    top = vocab_size - 1
    shard = write_shard(tmp_path / "a", [*DOCUMENTS, [top]], vocab_size, tokenizer="abc", metadata={"kind": "prose"})
    assert shard.tokens.dtype == dtype and isinstance(shard.tokens, np.memmap)
    assert [shard.read_tokens(i, 0, n)[0].tolist() for i, n in enumerate(shard.lengths)] == [*DOCUMENTS, [top]]
    assert len(shard) == 5 and shard.offsets.dtype == np.int64 and shard.mask is None
    assert shard.metadata == {"kind": "prose"} and shard.manifest["tokenizer"] == "abc"
    assert shard.read_tokens(3, 1, 2)[0].tolist() == [6, 7]
    shard.verify_hashes()


def test_masks_are_stored_with_the_tokens(tmp_path):
    with ShardWriter(tmp_path / "a", 64, with_mask=True) as writer:
        writer.add_document([1, 2, 3], [False, True, True])
        writer.add_document(np.array([4, 5], dtype=np.int32), np.array([True, False]))
    shard = TokenShard.open(tmp_path / "a")
    assert shard.mask.tolist() == [0, 1, 1, 1, 0]
    assert shard.read_tokens(1, 0, 2)[1].tolist() == [1, 0]


def test_the_directory_appears_only_when_it_is_complete(tmp_path):
    writer = ShardWriter(tmp_path / "a", 64)
    writer.add_document([1, 2])
    assert not (tmp_path / "a").exists()
    writer.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert TokenShard.open(tmp_path / "a").tokens.tolist() == [1, 2]


def test_a_failed_block_keeps_the_old_shard(tmp_path):
    write_shard(tmp_path / "a")
    with pytest.raises(KeyError), ShardWriter(tmp_path / "a", 64) as writer:
        writer.add_document([9])
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert len(TokenShard.open(tmp_path / "a")) == len(DOCUMENTS)
    assert write_shard(tmp_path / "a", [[9]]).tokens.tolist() == [9]  # and a finished one replaces it


def test_remains_of_a_killed_process_are_removed(tmp_path):
    ShardWriter(tmp_path / "a", 64).add_document([1])  # never closed
    assert write_shard(tmp_path / "a", [[2]]).tokens.tolist() == [2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_directory_of_other_files_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not delete")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        ShardWriter(tmp_path, 64)
    with pytest.raises(UserError, match="is a file"):
        ShardWriter(tmp_path / "thesis.tex", 64)
    assert (tmp_path / "thesis.tex").read_text() == "do not delete"


@pytest.mark.parametrize("tokens", [[64], [-1], [3, 70_000]])
def test_ids_outside_the_vocabulary_are_rejected(tmp_path, tokens):
    with pytest.raises(AssertionError, match="vocabulary 64"), ShardWriter(tmp_path / "a", 64) as writer:
        writer.add_document(tokens)
    assert not list(tmp_path.iterdir())


# ---- corruption ----------------------------------------------------------------------------------


def test_a_missing_or_unfinished_directory_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist.*prepare the data first"):
        TokenShard.open(tmp_path / "nowhere")
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match=r"half has no manifest\.json.*prepare the data again"):
        TokenShard.open(tmp_path / "half")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "other", "files": {}}',
        '{"format": "fledgling-tokens-1", "files": {}}',
        "null",
        "\xff",
    ],
)
def test_an_invalid_manifest_is_rejected(tmp_path, text):
    write_shard(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=MANIFEST):
        TokenShard.open(tmp_path / "a")


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy"])
def test_truncated_or_missing_files_are_detected_on_opening(tmp_path, name):
    write_shard(tmp_path / "a")
    path = tmp_path / "a" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name} has .* bytes, its manifest says"):
        TokenShard.open(tmp_path / "a")
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        TokenShard.open(tmp_path / "a")


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "mask.bin"])
def test_every_flipped_bit_is_found_by_verify_hashes(tmp_path, name):
    with ShardWriter(tmp_path / "a", 64, with_mask=True) as writer:
        writer.add_document([1, 2, 3], [True, True, False])
    path = tmp_path / "a" / name
    good = path.read_bytes()
    shard = TokenShard.open(tmp_path / "a")
    shard.verify_hashes()
    for bit in range(0, 8 * len(good), max(1, len(good) // 8)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bad)
        with pytest.raises(UserError, match=rf"{name} was changed"):
            shard.verify_hashes()


def test_ids_of_another_tokenizer_are_rejected(tmp_path):
    write_shard(tmp_path / "a", tokenizer="one")
    TokenShard.open(tmp_path / "a", tokenizer="one")
    with pytest.raises(UserError, match="another tokenizer"):
        TokenShard.open(tmp_path / "a", tokenizer="two")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("documents", [1, 200_000])  # full when the file is closed, and while adding
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, documents):
    writer = ShardWriter(tmp_path / "a", 64)
    writer._files["tokens.bin"].file = open("/dev/full", "wb", buffering=1 << 16)  # noqa: SIM115
    with pytest.raises(UserError, match=r"a: the disk is full after .* of tokens, .* free now") as caught:
        for _ in range(documents):
            writer.add_document([1, 2, 3])
        writer.close()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_nothing(tmp_path, monkeypatch, at):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ShardWriter(tmp_path / "a", 64)
    writer.add_document([1])
    monkeypatch.setattr(os, at, fail)
    with pytest.raises(UserError, match="disk is full"):
        writer.close()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ShardWriter(tmp_path / "file" / "a", 64)


# ---- tokenizing ----------------------------------------------------------------------------------


def test_documents_are_encoded_in_order_without_bos(tmp_path):
    seen = []
    with ShardWriter(tmp_path / "a", 256) as writer:
        count = tokenize_documents(
            (text for text in ["ab", "", "c", "def"]),
            LetterTokenizer(),
            writer,
            batch=2,
            progress=lambda *a: seen.append(a),
        )
    shard = TokenShard.open(tmp_path / "a")
    assert count == 3 and bytes(shard.tokens.astype(np.uint8)) == b"abcdef"
    assert shard.lengths.tolist() == [2, 1, 3]
    assert seen == [(1, 2), (3, 6)]


def test_an_empty_shard_opens(tmp_path):
    shard = write_shard(tmp_path / "a", [])
    assert len(shard) == 0 and shard.tokens.size == 0
    shard.verify_hashes()


def test_the_manifest_describes_the_shard(tmp_path):
    write_shard(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert (manifest["documents"], manifest["tokens"], manifest["vocab_size"]) == (4, 8, 1024)
    assert manifest["files"]["tokens.bin"]["bytes"] == 16
