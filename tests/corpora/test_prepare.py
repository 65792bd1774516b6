"""Preparing documents: sources are found, tokenizer and shards are written once, and large sources go file by file."""

import json

import pytest

from fledgling.config import TokenizerConfig, UserError
from fledgling.corpora import prepare
from fledgling.corpora.document import summarize_split
from fledgling.corpora.prepare import DocumentPreparer, find_source, read_training_texts

TEXTS = [f"The document about {chr(97 + n % 26) * (n // 26 + 1)} is document {n}." for n in range(400)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data" / "notes.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_a_source_is_a_path_or_a_name_under_the_data_root(source, tmp_path):
    assert find_source(str(source)) == find_source("notes.jsonl", tmp_path / "data") == source
    with pytest.raises(UserError, match=r"nowhere: no such file or folder.*expected \"embedded\""):
        find_source("nowhere", tmp_path)
    with pytest.raises(UserError, match=r"\?prompt= names no column of a document"):
        find_source(f"{source}?prompt=x")
    with pytest.raises(UserError, match="`fledgling data fetch climbmix`"):
        find_source("climbmix", tmp_path)
    assert list(read_training_texts(["notes.jsonl"], tmp_path / "data", print)) == TEXTS


@pytest.mark.parametrize("large", [False, True])
def test_tokenizer_and_shards_are_written_once(source, tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 1000)
    config = TokenizerConfig(vocab_size=330, sources=(str(source),))
    messages: list[str] = []
    first = DocumentPreparer(tmp_path / "run", log=messages.append, workers=1)
    tokenizer = first.load_or_train_tokenizer(config)
    corpus = first.prepare_shards(str(source), tokenizer)
    assert first.is_large(str(source)) == large and sum(map(len, corpus.train)) > 350
    assert [text for text in messages if "tokenizing" in text]
    facts = json.loads((tmp_path / "run" / "tokenizer" / "training.json").read_text())
    assert facts["vocab_size"] == 330 and facts["bytes"][str(source)] > 0 and facts["fingerprint"]

    messages.clear()
    again = DocumentPreparer(tmp_path / "run", log=messages.append)
    assert again.load_or_train_tokenizer(config).fingerprint() == tokenizer.fingerprint()
    again.prepare_shards(str(source), tokenizer)
    assert [text for text in messages if "tokenizing" in text] == [] and "tokens found again in" in messages[0]
    assert again.shard_digests == first.shard_digests


def test_a_summary_counts_both_parts(source, tmp_path):
    training, validation = DocumentPreparer(tmp_path / "run").read_split(str(source))
    stats = summarize_split([*training, *validation], training, validation)
    assert stats["documents"] == 400 and stats["validation_documents"] == len(validation) > 0
    assert stats["bytes"] == {"file": stats["training_bytes"] + stats["validation_bytes"]}
