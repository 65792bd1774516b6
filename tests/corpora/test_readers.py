"""Readers: every kind of file gives the same documents, and skipped documents are counted."""

import bz2
import gzip
import json
import lzma
import os
import random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from fledgling.config import UserError
from fledgling.corpora import readers
from fledgling.corpora.document import split_held_out
from fledgling.corpora.readers import SkippedDocuments, list_source, read_documents


def texts(path, column=None):
    return [document.text for document in read_documents(path, column)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_table(path, columns, row_group_size=2):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def test_a_small_text_file_is_one_document(tmp_path):
    path = tmp_path / "note.txt"
    path.write_bytes("\ufeffOne.\r\n\r\nTwo\0 naïve.\n".encode())
    [document] = read_documents(path)
    assert document.text == "One.\n\nTwo naïve.\n"  # no byte-order mark, no NUL, Unix line ends
    assert (document.kind, document.origin) == ("file", "note.txt")


@pytest.mark.parametrize("is_source", [False, True])
def test_a_large_text_file_is_cut_at_blank_lines(tmp_path, monkeypatch, is_source):
    monkeypatch.setattr(readers, "MAX_UNSPLIT_SOURCE" if is_source else "MAX_UNSPLIT_FILE", 1_000)
    monkeypatch.setattr(readers, "MIN_PIECE", 100)
    parts = [f"Paragraph {number}: " + "words and words " * 3 for number in range(60)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(parts))
    pieces = list(read_documents(path, is_source=is_source))
    assert "\n\n".join(piece.text for piece in pieces) == "\n\n".join(parts)
    assert len(pieces) == 30 and pieces[1].origin == "book.txt:5"
    assert len(list(read_documents(path, is_source=not is_source))) == 1, "which has another limit"
    assert len(list(read_documents(tmp_path, is_source=is_source))) == 30, "one file in a folder is as few"
    for number in range(readers.FEW_FILES):
        (tmp_path / f"note{number}.txt").write_text("A note.")
    assert len(list(read_documents(tmp_path, is_source=is_source))) == readers.FEW_FILES + (1 if is_source else 30)


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
@pytest.mark.parametrize("kilobytes", [101, 300])
def test_of_ones_own_book_something_can_be_held_out(tmp_path, gap, kilobytes):
    draw = random.Random(0)
    lines = ["".join(draw.choices("abcdefghij    ", k=60)) for _ in range(20 * kilobytes)]
    path = tmp_path / "book.txt"
    path.write_text(gap.join(lines)[: 1_000 * kilobytes])
    training, validation = split_held_out(read_documents(path, is_source=True))
    assert validation and sum(document.num_bytes for document in training) > 0.8 * 1_000 * kilobytes


def test_end_of_text_markers_separate_documents(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("A cat.\n\n<|endoftext|>\nA dog.\n<|endoftext|>\n<|endoftext|>\nA cow.\n")
    assert texts(path) == ["A cat.", "A dog.", "A cow."]


@pytest.mark.parametrize("letter", ["x", "é", "語", "🐦"])
def test_a_very_long_line_is_cut_between_characters(tmp_path, monkeypatch, letter):
    monkeypatch.setattr(readers, "MAX_UNSPLIT_FILE", 1_000)
    monkeypatch.setattr(readers, "MAX_LINE", 101)
    path = tmp_path / "line.txt"
    path.write_text(letter * 5_000, encoding="utf-8")
    skipped = SkippedDocuments()
    pieces = [document.text for document in read_documents(path, skipped=skipped)]
    assert "".join(pieces) == letter * 5_000 and len(pieces) > 4 and not skipped.total


def test_json_lines_are_read_by_default_and_named_column(tmp_path):
    rows = [{"id": 1, "text": "first", "content": "c1"}, {"id": 2, "text": "sécond", "content": "c2"}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    assert texts(path) == ["first", "sécond"]
    assert texts(path, "content") == texts(path, " Content") == ["c1", "c2"]
    assert texts(write_lines(tmp_path / "capitals.jsonl", [{"Text": "a"}, {"Text": "b"}])) == ["a", "b"]
    assert [document.origin for document in read_documents(path)] == ["rows.jsonl:1", "rows.jsonl:2"]


def test_parquet_is_read_with_row_groups_and_dictionaries(tmp_path):
    values = [f"row {number}" for number in range(700)]
    path = write_table(tmp_path / "t.parquet", {"id": list(range(700)), "text": values}, row_group_size=300)
    assert texts(path) == values
    coded = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    assert texts(write_table(tmp_path / "d.parquet", {"text": coded})) == ["a", "b", "a"]


def test_unusable_documents_are_skipped_and_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": "  "}\n\n{"text": "\xff\xfe"}\n[1]\n{"text": null}\n{"text": "t')
    skipped = SkippedDocuments()
    assert [document.text for document in read_documents(path, skipped=skipped)] == ["good"]
    assert (skipped.empty, skipped.undecodable, skipped.broken, skipped.total) == (3, 1, 2, 6)
    assert str(skipped) == (
        "skipped 3 empty (first: rows.jsonl:2), 1 not UTF-8 text (first: rows.jsonl:4),"
        " 2 malformed (first: rows.jsonl:5)"
    )
    assert str(SkippedDocuments()) == ""


def test_a_parquet_row_that_is_not_utf8_is_skipped_alone(tmp_path):
    path = write_table(tmp_path / "b.parquet", {"text": [b"good", b"\xff\xff", None, b"too"]})
    skipped = SkippedDocuments()
    assert [document.text for document in read_documents(path, skipped=skipped)] == ["good", "too"]
    assert (skipped.undecodable, skipped.empty) == (1, 1)


def test_utf16_is_skipped(tmp_path):
    (tmp_path / "a.txt").write_bytes("plain words".encode("utf-16-le"))
    (tmp_path / "b.txt").write_text("plain words")
    skipped = SkippedDocuments()
    assert [document.origin for document in read_documents(tmp_path, skipped=skipped)] == ["b.txt"]
    assert skipped.first_undecodable == "a.txt"


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "z.parquet.part").write_bytes(b"half a download")
    write_lines(tmp_path / "b" / "one.jsonl", [{"text": "1"}])
    (tmp_path / "a.md").write_text("# A")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as handle:
        handle.write('{"content": "packed"}\n')
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed too", mtime=0))
    seen = []
    documents = list(read_documents(tmp_path, progress=lambda name, count: seen.append((name, count))))
    assert [document.text for document in documents] == ["# A", "1", "packed", "packed too"]
    assert seen == [("a.md", 0), ("b/one.jsonl", 1), ("c.jsonl.gz", 2), ("d.txt.gz", 3)]


PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", ["", *PACKERS])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".txt", "One.\n<|endoftext|>\nTwo, \u201cthree\u201d.\n"),
        (".jsonl", '{"text": "One."}\n{"text": "Two, \u201cthree\u201d."}\n'),
        (".json", '[{"id": 1, "text": "One."}, {"text": "Two, \u201cthree\u201d."}]'),
        (".json", '["One.", "Two, \u201cthree\u201d."]'),
        (".json", '{"text": "One."}\n{"text": "Two, \u201cthree\u201d."}\n'),
        (".csv", '\ufeffid,text\r\n1,One.\r\n2,"Two, \u201cthree\u201d."\r\n'),
        (".tsv", "text\tid\nOne.\t1\nTwo, \u201cthree\u201d.\t2\n"),
    ],
)
def test_every_kind_is_read_in_every_compression(tmp_path, suffix, content, packed):
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(PACKERS.get(packed, bytes)(content.encode()))
    assert texts(path) == texts(tmp_path) == ["One.", "Two, \u201cthree\u201d."]


def test_a_large_compressed_text_is_cut_as_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_UNSPLIT_FILE", 1_000)
    monkeypatch.setattr(readers, "MIN_PIECE", 100)
    content = "\n\n".join(f"Paragraph {number} " * 5 for number in range(60)).encode()
    for suffix, pack in (("", bytes), *PACKERS.items()):
        (tmp_path / f"a.txt{suffix}").write_bytes(pack(content))
    pieces = [texts(tmp_path / f"a.txt{suffix}") for suffix in ("", *PACKERS)]
    assert len(pieces[0]) > 5 and all(part == pieces[0] for part in pieces)


def test_a_folder_says_what_it_passes_over_and_why(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "a.txt").write_text("hidden")
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    for name in (
        "a.txt",
        "b.TXT",
        "c.md",
        "d.pdf",
        "e.pdf",
        "f.tar.gz",
        "Makefile",
        "locked.txt",
        ".env",
        "g.docx.gz",
    ):
        (folder / name).write_text("Some words.")
    monkeypatch.setattr("fledgling.files.folder.os.access", lambda path, mode: path.name != "locked.txt")
    assert list_source(folder).describe() == (
        "3 files (1 .md, 2 .txt); passed over 11: 1 .docx.gz (first: g.docx.gz), 2 .pdf (first: d.pdf), "
        "1 .tar.gz (first: f.tar.gz), 1 broken link (first: gone.txt), 2 hidden (first: .env), "
        "1 link to a folder (first: linked/), 1 may not be read (first: locked.txt), "
        "1 no regular file (first: pipe.txt), 1 without a suffix (first: Makefile)"
    )


def test_a_folder_without_a_file_to_read_says_what_it_has(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(UserError, match=r"nothing to read in this folder \(0 files; passed over 1: 1 .pdf"):
        read_documents(tmp_path)


def test_files_without_text_next_to_others_are_counted(tmp_path):
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "prices.csv").write_text("price\n3\n")
    (tmp_path / "twice.csv").write_text("text,text\nx,y\n")
    (tmp_path / "wide.csv").write_text("text\nx,y\n", encoding="utf-16")
    (tmp_path / "none.jsonl").write_text("")
    write_table(tmp_path / "none.parquet", {"text": pyarrow.array([], pyarrow.string())})
    (tmp_path / "a.txt").write_text("words")
    skipped = SkippedDocuments()
    assert [document.text for document in read_documents(tmp_path, skipped=skipped)] == ["words"]
    assert str(skipped) == (
        "skipped 2 empty (first: none.jsonl), 1 not UTF-8 text (first: wide.csv), "
        "3 files without a column of text (first: package.json)"
    )


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text('{"text": "x"}\n' * 5_000)
    stream = read_documents(path)
    assert next(stream).text == "x"  # a stream, not a list
    assert sum(1 for _ in stream) == 4_999


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            None,
            "no column text or content among body; name yours after the path: PATH?text=COLUMN",
        ),
        ("a.jsonl", b'{"body": "x"}\n', "bdy", 'no column "bdy" - did you mean "body"'),
        ("a.jsonl", b'{"messages": []}\n', None, "use it as chat:"),
        ("a.jsonl", b'{"text": 3}\n', None, '"text" is int; expected text'),
        ("a.jsonl", b"\n\n", None, "no document in it; skipped 2 empty"),
        ("a.txt", b"", None, "no document in it"),
        ("a.txt.gz", gzip.compress(b"words " * 99, mtime=0)[:-12], None, "corrupt or cut short"),
        ("a.txt.gz", b"no gzip", None, "corrupt or cut short"),
        ("a.txt.zst", zstandard.compress(b"words " * 99)[:-4], None, "corrupt or cut short"),
        ("a.txt.zst", b"no zstd", None, "corrupt or cut short"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "x"}\n')[:-9], None, "corrupt or cut short"),
        ("a.csv", "text\nx\n".encode("utf-16"), None, "iconv -f UTF-16 -t UTF-8"),
        (
            "a.txt",
            b"Gr\xfc\xdfe",
            None,
            "1 not UTF-8 text (first: a.txt); if the file is in another encoding, convert it",
        ),
        ("a.csv", b"text\nx,y\n", None, "no document in it; skipped 1 malformed (first: a.csv:1)"),
        ("a.csv", b"text,text\nx,y\n", None, 'the name "text" is there twice'),
        ("a.csv", b"price\n3\n", None, "no column text or content among price"),
        ("a.json", b'[{"body": "x"}]', None, "no column text or content among body"),
        ("a.json", b'[{"text": 3}]', None, 'entry 1, "text" is int; expected text'),
        ("a.parquet", b"PAR1", None, "corrupt or not a parquet file"),
        ("a.doc", b"x", None, "cannot read this kind of file; expected .txt .md .jsonl .json .csv"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, name, content, column, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_documents(path, column))
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_paths_and_parquet_columns_are_rejected(tmp_path):
    with pytest.raises(UserError, match="no such file or folder; expected"):
        read_documents(tmp_path / "nowhere")  # at once, not at the first document
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="it is no file and no folder; expected"):
        read_documents(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="nothing to read in this folder"):
        read_documents(tmp_path)
    path = write_table(tmp_path / "t.parquet", {"body": ["a"], "text": [1]})
    with pytest.raises(UserError, match='no column "boddy" - did you mean "body"'):
        texts(path, "boddy")
    with pytest.raises(UserError, match='column "text" is int64; expected text'):
        texts(path)


def test_a_text_file_in_another_encoding_says_which_one(tmp_path):
    (tmp_path / "a.txt").write_text("plain words", encoding="utf-16")
    with pytest.raises(UserError, match=r"not UTF-8 text but UTF-16; .*iconv -f UTF-16 -t UTF-8"):
        list(read_documents(tmp_path / "a.txt"))
