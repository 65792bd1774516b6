"""Prepared data is found again by what it was made from: an edited source of any kind is prepared again."""

import gzip
import json
import os
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from fledgling.config import TokenizerConfig, UserError
from fledgling.corpora import document, embedded, prepare, prepared_data, readers, tokenization
from fledgling.corpora.prepare import DocumentPreparer
from fledgling.text.tokenizer import Tokenizer

TEXTS = [f"The document about {chr(97 + n % 26) * (n // 26 + 1)} is document {n}." for n in range(100)]
EDITED = [text.replace("document", "DOCUMENT") for text in TEXTS]  # of the same size


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_folder(path, texts):
    (path / "deep").mkdir(parents=True, exist_ok=True)
    (path / "a.txt").write_text("A file that stays.")
    for n, text in enumerate(texts[1:]):
        (path / "deep" / f"{n:03}.md").write_text(text)
    (path / "deep" / "rest.jsonl").write_bytes(lines(texts[:1]))


WRITERS = {
    "text.txt": lambda path, texts: path.write_text("\n<|endoftext|>\n".join(texts)),
    "folder": write_folder,
    "rows.jsonl": lambda path, texts: path.write_bytes(lines(texts)),
    "rows.json": lambda path, texts: path.write_text(json.dumps(texts)),
    "rows.csv": lambda path, texts: path.write_text("text\n" + "\n".join(texts) + "\n"),
    "rows.parquet": lambda path, texts: pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path),
    "rows.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(lines(texts))),
    "rows.jsonl.zst": lambda path, texts: path.write_bytes(zstandard.compress(lines(texts))),
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 320)


@pytest.fixture
def run(tmp_path, tokenizer):
    """The directory of a run that has a tokenizer."""
    tokenizer.save(tmp_path / "run" / "tokenizer" / "tokenizer.json")
    return tmp_path / "run"


def prepare_once(run, source, tokenizer, pinned=None):
    """Returns the training text of a source's tokens, what was logged, and the preparer."""
    messages = []
    preparer = DocumentPreparer(run, log=messages.append, workers=1)
    preparer.prepared.pinned = pinned or {}
    corpus = preparer.prepare_shards(str(source), tokenizer)
    shards = (*corpus.train, *corpus.held_out)
    parts = [shard.read_tokens(i, 0, int(shard.lengths[i]))[0] for shard in shards for i in range(len(shard))]
    return "\n".join(tokenizer.decode(part.tolist()) for part in parts), "\n".join(messages), preparer


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_an_edited_source_is_prepared_again_and_an_unchanged_one_found_again(
    run, tmp_path, tokenizer, monkeypatch, kind, large
):
    if large:
        monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 10)
    source = tmp_path / kind
    WRITERS[kind](source, TEXTS)
    text, messages, _ = prepare_once(run, source, tokenizer)
    assert "is document 7." in text and "found again" not in messages
    again, messages, _ = prepare_once(run, source, tokenizer)
    assert again == text and "tokens found again in" in messages and "tokenizing" not in messages
    WRITERS[kind](source, EDITED)
    text, messages, _ = prepare_once(run, source, tokenizer)
    assert "is DOCUMENT 7." in text and "is document 7." not in text
    assert "its text changed, so it is prepared again" in messages and "of earlier tokens stay in" in messages


def test_an_edit_that_keeps_size_and_time_is_noticed(run, tmp_path, tokenizer):
    source = tmp_path / "text.txt"
    WRITERS["text.txt"](source, TEXTS)
    os.utime(source, ns=(5, 5))
    prepare_once(run, source, tokenizer)
    WRITERS["text.txt"](source, EDITED)
    os.utime(source, ns=(5, 5))
    assert "is DOCUMENT 7." in prepare_once(run, source, tokenizer)[0]


def test_a_large_file_replaced_by_one_of_the_same_size_and_time_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 300_000)
    (tmp_path / "b.txt").write_bytes(b"a" * 299_000 + b"b" * 1_000)
    for name in "ab":
        os.utime(tmp_path / f"{name}.txt", ns=(7, 7))
    before = prepared_data.stamp_file(tmp_path / "a.txt")
    os.replace(tmp_path / "b.txt", tmp_path / "a.txt")
    after = prepared_data.stamp_file(tmp_path / "a.txt")
    assert before[:2] == after[:2] and before[2] != after[2]


def test_a_text_that_was_moved_or_touched_is_found_again(run, tmp_path, tokenizer):
    write_folder(tmp_path / "one" / "folder", TEXTS)
    prepare_once(run, tmp_path / "one" / "folder", tokenizer)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "folder" / "a.txt")
    assert "tokens found again in" in prepare_once(run, tmp_path / "two" / "folder", tokenizer)[1]


def test_another_tokenizer_makes_other_tokens_and_is_named(run, tmp_path, tokenizer):
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl", TEXTS)
    prepare_once(run, tmp_path / "rows.jsonl", tokenizer)
    other = Tokenizer.train(EDITED, 325)
    text, messages, _ = prepare_once(run, tmp_path / "rows.jsonl", other)
    assert "is document 7." in text and "the tokenizer changed, so it is prepared again" in messages


@pytest.mark.parametrize("large", [False, True])
def test_every_setting_that_shapes_documents_is_part_of_the_key(tmp_path, tokenizer, monkeypatch, large):
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 10 if large else 10**6)
    source = tmp_path / "rows.jsonl"
    WRITERS["rows.jsonl"](source, TEXTS)
    constants = [(readers, name) for name in ("VERSION", "MAX_UNSPLIT_FILE", "MIN_PIECE", "MAX_LINE")]
    if large:
        constants += [(tokenization, "HELD_OUT_FRACTION")]
    else:
        constants += [(readers, name) for name in ("FEW_FILES", "MAX_UNSPLIT_SOURCE", "MAX_SOURCE_PIECE")]
        names = ("HELD_OUT_FRACTION", "MIN_CHARACTERS", "MIN_SHARED_LINE", "MIN_SHARED_FILE_LINE")
        constants += [(document, name) for name in (*names, "MIN_DOCUMENTS", "MAX_SHARE")]
        names = ("VERSION", "MAX_CHARACTERS", "DOCSTRING_DOCUMENT_SIZE", "CODE_DOCUMENT_SIZE", "MIN_REPEAT_LENGTH")
        constants += [(embedded, name) for name in names]
    digests = set()
    for module, name in [*constants, (readers, "TEXT_COLUMN_UNUSED")]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, getattr(module, name, 0) * 2 + 1, raising=False)
            digests.add(DocumentPreparer(tmp_path / "run").collect_inputs(str(source), tokenizer).digest)
    assert len(digests) == len(constants) + 1


def test_the_embedded_corpus_is_prepared_again_when_the_installation_changes(run, tmp_path, tokenizer, monkeypatch):
    module = tmp_path / "library.py"
    monkeypatch.setattr(prepared_data, "list_python_files", lambda: [("library", module)])
    monkeypatch.setattr(embedded, "list_python_files", lambda: [("library", module)])
    found = []
    for word in ("first", "first", "second"):
        prepared_data.digest_installed_python.cache_clear()
        prose = " ".join(f"Sentence {n} of the {word} version has some words about matter {n * n}." for n in range(20))
        if not found or word == "second":
            module.write_text(f'"""{prose}"""\n')
        found.append(prepare_once(run, "embedded", tokenizer)[:2])
    prepared_data.digest_installed_python.cache_clear()
    assert "first version" in found[0][0] and "tokens found again in" in found[1][1]
    assert "second version" in found[2][0] and "its text changed" in found[2][1]


def test_only_changed_files_of_a_large_source_are_tokenized_again(run, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 10)
    original = tokenization.split_into_units
    monkeypatch.setattr(tokenization, "split_into_units", lambda source, key, size: original(source, key, 2_500))
    folder = tmp_path / "web"
    folder.mkdir()
    for part in range(4):
        (folder / f"{part}.jsonl").write_bytes(lines(TEXTS[part::4]))
    _, _, first = prepare_once(run, folder, tokenizer)
    [directory] = (run / "data").iterdir()
    shards = {path: path.stat().st_mtime_ns for path in directory.glob("*/manifest.json")}
    (folder / "2.jsonl").write_bytes(lines(EDITED[2::4]))
    text, messages, _ = prepare_once(run, folder, tokenizer)
    assert "is DOCUMENT 2." in text and "is document 2." not in text and "is document 1." in text
    now = {path: path.stat().st_mtime_ns for path in directory.glob("*/manifest.json")}
    assert len(shards) == 4 and len(now) == 5 and shards.items() <= now.items()

    text, messages, _ = prepare_once(run, folder, tokenizer, first.prepared.used_inputs)
    assert "is document 2." in text and "its text changed since this stage began" in messages


def test_a_resumed_stage_keeps_the_text_it_began_with(run, tmp_path, tokenizer):
    source = tmp_path / "rows.jsonl"
    WRITERS["rows.jsonl"](source, TEXTS)
    _, _, first = prepare_once(run, source, tokenizer)
    WRITERS["rows.jsonl"](source, EDITED)
    pinned = json.loads(json.dumps(first.prepared.used_inputs))
    text, messages, resumed = prepare_once(run, source, tokenizer, pinned)
    assert "is document 7." in text and "--resume never trains on the new one" in messages
    assert resumed.prepared.used_inputs == pinned, "the next checkpoint pins it too"
    shutil.rmtree(run / "data")
    text, messages, _ = prepare_once(run, source, tokenizer, pinned)
    assert "is DOCUMENT 7." in text and "is gone: it continues with the present text" in messages


def test_a_stage_that_starts_reads_the_only_tokens_of_a_text_that_is_gone(run, tmp_path, tokenizer):
    source = tmp_path / "rows.jsonl"
    WRITERS["rows.jsonl"](source, TEXTS)
    prepare_once(run, source, tokenizer)
    first = next((run / "data").glob("*-train-*"))
    source.unlink()
    text, messages, _ = prepare_once(run, source, tokenizer)
    assert "is document 7." in text and "the tokens that the run has of it are read" in messages
    WRITERS["rows.jsonl"](source, EDITED)
    prepare_once(run, source, tokenizer)
    source.unlink()
    with pytest.raises(UserError, match=r"rows\.jsonl: no such file.*tokens of it in 2 versions"):
        prepare_once(run, source, tokenizer)
    lost = {str(source): {"tokenizer": tokenizer.fingerprint(), "digest": "x", "directories": ["lost"]}}
    shutil.rmtree(first)
    with pytest.raises(
        UserError, match=r"rows\.jsonl: no such file.*\['lost'\], are gone"
    ):  # never another text in a resumed stage
        prepare_once(run, source, tokenizer, lost)


def test_a_text_that_changes_while_it_is_read_is_an_error(run, tmp_path, tokenizer, monkeypatch):
    source = tmp_path / "rows.jsonl"
    WRITERS["rows.jsonl"](source, TEXTS)
    original = prepare.split_held_out

    def edit(documents):
        parts = original(documents)
        WRITERS["rows.jsonl"](source, EDITED)
        return parts

    monkeypatch.setattr(prepare, "split_held_out", edit)
    with pytest.raises(UserError, match=r"rows.jsonl was changed while it was read: run again"):
        prepare_once(run, source, tokenizer)
    assert not list((run / "data").glob("*/manifest.json"))


def test_a_tokenizer_is_trained_again_only_where_no_weights_depend_on_it(tmp_path):
    source = tmp_path / "rows.jsonl"
    WRITERS["rows.jsonl"](source, TEXTS)
    config = TokenizerConfig(vocab_size=320, sources=(str(source),))
    messages = []

    def train(config=config, **options):
        preparer = DocumentPreparer(tmp_path / "run", log=messages.append)
        return preparer.load_or_train_tokenizer(config, **options).fingerprint()

    first = train()
    assert train(may_replace=True) == first
    WRITERS["rows.jsonl"](source, EDITED)
    messages.clear()
    assert train() == first and "tokenizer: kept, although its text changed" in messages[0]
    assert train(may_replace=True) != first and any("text changed, so it is trained again" in m for m in messages)
    second = train(may_replace=True)
    larger = TokenizerConfig(vocab_size=325, sources=(str(source),))
    assert train(larger) == second and "its settings changed" in messages[-1]
    assert train(larger, may_replace=True) != second
    (tmp_path / "run" / "tokenizer" / "training.json").unlink()
    assert train(may_replace=True) not in (first, second), "one of unknown origin is kept"


def test_what_was_skipped_is_reported_again_when_it_is_found_again(run, tmp_path, tokenizer, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines([*TEXTS, " "]))
    (folder / "b.pdf").write_text("x")
    expected = "1 file (1 .jsonl); passed over 1: 1 .pdf (first: b.pdf); skipped 1 empty (first: a.jsonl:101)"
    for large in (False, True):
        monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 10 if large else 10**6)
        for _ in range(2):
            assert f"{folder}: {expected}" in prepare_once(run, folder, tokenizer)[1]


def test_files_that_a_resumed_stage_reads_as_they_are_are_compared(tmp_path):
    lines, path = [], tmp_path / "pairs.jsonl"
    path.write_text("one")
    first = prepared_data.PreparedData(tmp_path / "data", lines.append)
    first.record_files("dpo.pairs", [path])
    pinned = json.loads(json.dumps(first.used_inputs))
    prepared_data.PreparedData(tmp_path / "data", lines.append, pinned).record_files("dpo.pairs", [path])
    assert not lines
    path.write_text("two")
    prepared_data.PreparedData(tmp_path / "data", lines.append, pinned).record_files("dpo.pairs", [path])
    assert lines == ["dpo.pairs: its files changed since this stage began; it continues with the present ones"]


def test_a_source_whose_documents_all_repeat_held_out_lines_is_one_clear_error(run, tmp_path, tokenizer, monkeypatch):
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl", ["A line that every document of this source repeats. " * 9] * 3)
    monkeypatch.setattr(document, "HELD_OUT_FRACTION", 1.0)
    with pytest.raises(UserError, match=r"rows.jsonl: no document is left to train on; 3 are held out"):
        prepare_once(run, tmp_path / "rows.jsonl", tokenizer)
    (tmp_path / "rows.jsonl").write_text('{"text": " "}\n{"text": ""}\n')
    with pytest.raises(UserError, match=r"rows.jsonl: no document in it; skipped 2 empty"):
        prepare_once(run, tmp_path / "rows.jsonl", tokenizer)


def test_training_a_tokenizer_says_what_it_passed_over(tmp_path):
    messages = []
    (tmp_path / "a.jsonl").write_bytes(lines([*TEXTS[:3], " "]))
    (tmp_path / "b.pdf").write_text("x")
    assert len(list(prepare.read_training_texts([str(tmp_path)], None, messages.append))) == 3
    assert "passed over 1: 1 .pdf (first: b.pdf); skipped 1 empty (first: a.jsonl:4)" in messages[-1]


@pytest.mark.parametrize("large", [False, True])
def test_a_changed_byte_of_tokens_that_are_found_again_is_named(run, tmp_path, tokenizer, monkeypatch, large):
    if large:
        monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 0)
    source = tmp_path / "text.txt"
    WRITERS["text.txt"](source, TEXTS)
    _, _, preparer = prepare_once(run, source, tokenizer)
    file = sorted(preparer.prepared.directory.rglob("tokens.bin"))[0]
    content = bytearray(file.read_bytes())
    content[2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"tokens.bin does not match its SHA-256 .*delete .* and it is prepared again"):
        prepare_once(run, source, tokenizer)
    monkeypatch.setattr(prepared_data, "MAX_READ_BYTES", 0)
    assert "whose sizes alone are compared" in prepare_once(run, source, tokenizer)[1]
