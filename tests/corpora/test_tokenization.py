"""A corpus of many files: units, the pool of processes, resuming, and errors of files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.corpora import tokenization
from fledgling.corpora.document import Document
from fledgling.corpora.readers import SkippedDocuments, read_file_part, split_file
from fledgling.corpora.tokenization import (
    CORPUS_FILE,
    TokenizedCorpus,
    sample_documents,
    split_into_units,
    tokenize_corpus,
)
from fledgling.data.shards import MANIFEST, TokenShard
from fledgling.data.stream import RowSource
from fledgling.text.tokenizer import Tokenizer
from tests.corpora.many_shards import make_corpus, read_memory
from tests.waits import wait_for

TEXTS = [f"Document {n} says {'so ' * (n % 7)}and ends with {n * n}." for n in range(4000)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(iter(TEXTS[:500]), 330).save(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def folder(tmp_path):
    """Four parquet files of row groups, one of JSON lines and some small text files."""
    source = tmp_path / "source"
    (source / "notes").mkdir(parents=True)
    for number in range(4):
        texts = TEXTS[number * 800 : (number + 1) * 800]
        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts}), source / f"shard_{number:05}.parquet", row_group_size=100
        )
    rows = [json.dumps({"text": text}) + "\n" for text in TEXTS[3200:3990]]
    (source / "rows.jsonl").write_text("".join(rows))
    for number, text in enumerate(TEXTS[3990:]):
        (source / "notes" / f"{number}.txt").write_text(text)
    return source


def read_documents(shards) -> list[list[int]]:
    return [shard.read_tokens(i, 0, int(n))[0].tolist() for shard in shards for i, n in enumerate(shard.lengths)]


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=30, deadline=None)
@given(size=st.integers(20, 9000), lengths=st.lists(st.integers(0, 200), min_size=1, max_size=60))
def test_parts_of_a_json_lines_file_have_all_its_documents(tmp_path_factory, size, lengths):
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    texts = [f"{n} " + "é" * length for n, length in enumerate(lengths)]
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    found = [
        d.text for part in split_file(path, size) for d in read_file_part(path, "rows", None, SkippedDocuments(), part)
    ]
    assert found == texts


@pytest.mark.parametrize("pieces", [1, 3, 8, 50])
def test_parts_of_a_parquet_file_have_all_its_documents(folder, pieces):
    path = folder / "shard_00001.parquet"
    cuts = split_file(path, path.stat().st_size // pieces)
    found = [d for part in cuts for d in read_file_part(path, "t", None, SkippedDocuments(), part)]
    assert len(cuts) == min(pieces, 8) and [d.text for d in found] == TEXTS[800:1600]
    assert [d.origin for d in found] == [f"t:{row}" for row in range(1, 801)]


def test_units_split_large_files_and_group_small_ones(folder):
    units = split_into_units(folder, "a", unit_bytes=12_000)
    names = [[name for _, name, _ in unit.parts] for unit in units]
    assert names[0] == [f"notes/{n}.txt" for n in range(10)], "small files share a unit"
    assert sum(name == ["rows.jsonl"] for name in names) > 1, "a large one has several"
    assert len({unit.name for unit in units}) == len(units)
    assert [unit.name for unit in split_into_units(folder, "a", unit_bytes=12_000)] == [unit.name for unit in units]
    assert not {unit.name for unit in split_into_units(folder, "b", unit_bytes=12_000)} & {unit.name for unit in units}


def test_every_document_is_stored_once_in_the_part_of_its_hash(folder, tokenizer, tmp_path, monkeypatch):
    calls = []
    units = tokenize_corpus(
        folder, tmp_path / "two", tokenizer, workers=2, unit_bytes=12_000, progress=lambda *call: calls.append(call)
    )
    tokenize_corpus(folder, tmp_path / "one", tokenizer, workers=1, unit_bytes=12_000)
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two"), "the same bytes from one process and from two"
    library = Tokenizer.load(tokenizer)
    corpus = TokenizedCorpus.open(tmp_path / "two", library.fingerprint())
    read = [
        d.text
        for unit in units
        for file, name, part in unit.parts
        for d in read_file_part(Path(file), name, None, SkippedDocuments(), part)
    ]
    assert sorted(read) == sorted(TEXTS)
    is_held_out = [Document(text).hash_fraction() < tokenization.HELD_OUT_FRACTION for text in read]
    assert 2 <= sum(is_held_out) <= 30
    encoded = library.encode_batch(read)
    assert read_documents(corpus.train) == [ids for ids, held in zip(encoded, is_held_out, strict=True) if not held]
    assert read_documents(corpus.held_out) == [ids for ids, held in zip(encoded, is_held_out, strict=True) if held]
    listing = json.loads((tmp_path / "two" / CORPUS_FILE).read_text())
    assert listing["train"]["documents"] == len(TEXTS) - sum(is_held_out) and listing["held_out"]["documents"] == sum(
        is_held_out
    )
    held_bytes = sum(len(text.encode()) for text, held in zip(read, is_held_out, strict=True) if held)
    assert listing["held_out"]["bytes"] == held_bytes and listing["train"]["bytes"] > 90 * held_bytes
    assert calls[-1][0].documents == len(TEXTS) and calls[-1][1] == calls[-1][2] > 0


def test_only_missing_shards_are_written_again_and_new_files_are_ignored(folder, tokenizer, tmp_path):
    units = tokenize_corpus(folder, tmp_path / "out", tokenizer, workers=1, unit_bytes=12_000)
    expected = read_files(tmp_path / "out")
    (tmp_path / "out" / CORPUS_FILE).unlink()
    shutil.rmtree(tmp_path / "out" / units[2].name)
    before = {unit.name: (tmp_path / "out" / unit.name / MANIFEST).stat().st_mtime_ns for unit in units[3:]}
    calls = []
    tokenize_corpus(
        folder, tmp_path / "out", tokenizer, workers=1, unit_bytes=12_000, progress=lambda *call: calls.append(call)
    )
    assert read_files(tmp_path / "out") == expected
    assert {name: (tmp_path / "out" / name / MANIFEST).stat().st_mtime_ns for name in before} == before
    assert [ready for _, ready, _ in calls] == [calls[-1][2] - units[2].num_bytes, calls[-1][2]]
    first = len(TokenizedCorpus.open(tmp_path / "out", Tokenizer.load(tokenizer).fingerprint()).train)
    (folder / "later.txt").write_text("One more.")
    assert len(TokenizedCorpus.open(tmp_path / "out", Tokenizer.load(tokenizer).fingerprint()).train) == first


SCRIPT = """
import sys
import time
from pathlib import Path
from fledgling.corpora.tokenization import tokenize_corpus
if __name__ == "__main__":
    source, out, tokenizer = map(Path, sys.argv[1:])
    wait = lambda stats, done, total: done and time.sleep(600)  # once a unit is written: it cannot come to its end
    tokenize_corpus(source, out, tokenizer, workers=2, unit_bytes=12_000, progress=wait)
"""


def test_a_killed_run_resumes_and_leaves_no_process(folder, tokenizer, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    running = subprocess.Popen([sys.executable, str(script), str(folder), str(out), str(tokenizer)])
    while not list(out.glob(f"*/{MANIFEST}")):
        assert running.poll() is None and time.sleep(0.002) is None
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    pool_processes = children.read_text().split() if children.exists() else []
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in pool_processes))
    assert not (out / CORPUS_FILE).exists()
    tokenize_corpus(folder, out, tokenizer, workers=1, unit_bytes=12_000)
    tokenize_corpus(folder, tmp_path / "whole", tokenizer, workers=1, unit_bytes=12_000)
    found = {name: content for name, content in read_files(out).items() if ".tmp-" not in name}
    assert found == read_files(tmp_path / "whole")


def test_a_truncated_parquet_file_is_one_line_and_finished_shards_stay(folder, tokenizer, tmp_path):
    bad = folder / "shard_00002.parquet"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"shard_00002.parquet: corrupt or not a parquet file"):
        tokenize_corpus(folder, tmp_path / "out", tokenizer, workers=1)
    for name in ("rows.jsonl", "notes"):
        shutil.move(folder / name, tmp_path / name)
    with pytest.raises(UserError, match=r"shard_00002.parquet: corrupt or not a parquet file") as caught:
        tokenize_corpus(folder, tmp_path / "out", tokenizer, workers=2, unit_bytes=16_000)
    assert "\n" not in str(caught.value) and list((tmp_path / "out").glob(f"*/{MANIFEST}"))
    assert not (tmp_path / "out" / CORPUS_FILE).exists()


def test_a_parquet_file_without_the_column_is_one_line(folder, tokenizer, tmp_path):
    table = pyarrow.table({"body": ["a"], "url": ["b"]})
    pyarrow.parquet.write_table(table, folder / "shard_00001.parquet")
    with pytest.raises(UserError, match=r"shard_00001.parquet: no column text or content among body, url"):
        tokenize_corpus(folder, tmp_path / "out", tokenizer, workers=2)


def test_shards_of_another_tokenizer_are_rejected(folder, tokenizer, tmp_path):
    tokenize_corpus(folder, tmp_path / "out", tokenizer, workers=1)
    with pytest.raises(UserError, match=r"was made with another tokenizer .*delete it and prepare the data again"):
        TokenizedCorpus.open(tmp_path / "out", "0" * 64)


def test_samples_are_from_all_files_and_not_held_out(folder):
    found = list(sample_documents(folder, 30_000, unit_bytes=12_000))
    assert 30_000 <= sum(len(d.text) for d in found) <= 30_000 + 20 * 80
    assert {d.origin.split(":")[0] for d in found} >= {f"shard_{n:05}.parquet" for n in range(4)}
    assert not any(d.hash_fraction() < tokenization.HELD_OUT_FRACTION for d in sample_documents(folder, 10**9))


def test_a_slice_of_a_shard_is_a_shard(folder, tokenizer, tmp_path):
    [first, *_] = tokenize_corpus(folder, tmp_path / "out", tokenizer, workers=1)
    shard = TokenShard.open(tmp_path / "out" / first.name)
    documents = read_documents([shard])
    assert (
        read_documents([shard.slice_documents(3, 9)]) == documents[3:9]
        and shard.slice_documents(3, 9).tokens is shard.tokens
    )
    assert len(shard.slice_documents(4, 4)) == 0 and np.shares_memory(
        shard.slice_documents(0, 2).offsets, shard.offsets
    )


def test_corpora_of_many_shards_are_open_at_once(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    make_corpus(tmp_path, shards=300, documents=10, tokens=100)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        corpora = [TokenizedCorpus.open(tmp_path, "made up") for _ in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [len(corpus.train) for corpus in corpora] == [300] * 3


def test_three_hundred_shards_take_memory_for_their_index_only(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which only Linux has")
    make_corpus(tmp_path, shards=300, documents=1000, tokens=4_000_000)
    before = read_memory()["own"]
    corpus = TokenizedCorpus.open(tmp_path, "made up")
    source = RowSource(corpus.train, "crop", 512, seed=0, bos=65535)
    rows = np.random.default_rng(0).integers(0, 2 * len(source), 300)
    assert all(len(source.read_row(int(row))[0]) == 513 for row in np.sort(rows))
    assert sum(len(shard.tokens) for shard in corpus.train) * 2 == 2_400_000_000
    assert read_memory()["own"] - before < 200, "MB, where the tokens are 2,400"
