"""Rows of every kind of file, with their places; what cannot be read is one line, in bounded memory."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from fledgling.config import UserError
from fledgling.files import BadRows, is_row_file, list_row_blocks, opening, read_rows, split_columns, values
from fledgling.files.rows import LINES_PER_BLOCK

ROWS = [{"a": "1", "b": "x\ny"}, {"a": "é", "b": ""}]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def parquet(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=1)
    return sink.getvalue()


CONTENTS = {
    ".jsonl": "\n\n".join(map(json.dumps, ROWS)).encode(),
    ".ndjson": b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    ".json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode(),
    ".csv": 'a,b\n1,"x\ny"\né\n'.encode("utf-8-sig"),
    ".tsv": 'a\tb\n1\t"x\ny"\né\t\n'.encode(),
    ".parquet": parquet(ROWS),
}


def read(path):
    """All rows of a file; an error as its text without the folder."""
    return [
        str(row).replace(f"{path.parent}/", "") if isinstance(row, UserError) else row
        for block in list_row_blocks(path)
        for row, _ in block.iterate_rows()
    ]


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_kind_of_file_has_the_same_rows(tmp_path, kind, packed):
    path = write(tmp_path, f"rows{kind}{packed}", PACK[packed](CONTENTS[kind]))
    assert is_row_file(path) and read(path) == ROWS
    places = [place for _, place in read_rows(path)]
    assert places == [f"{path}:1", f"{path}:{3 if kind == '.jsonl' else 2}"]


def test_a_row_that_cannot_be_read_is_one_line_and_the_next_is_read(tmp_path):
    lines = [b'{"a": 1}', b"{bad", b"3", b'{"a": ' + b"[" * 200_000, b'{"a": ' + b"1" * 5000 + b"}", b'"\xff"', b"[{}]"]
    for name in ("rows.jsonl", "rows.json"):
        found = read(
            write(tmp_path, name, b"\n".join([*lines[:5], *(lines[5:6] if name == "rows.jsonl" else ()), b"[{}]"]))
        )
        assert found[0] == {"a": 1} and found[-1] == [{}]
        expected = [
            "not JSON (Expecting property name",
            "type int, expected",
            "nested too deeply",
            "a number is too long",
        ]
        for problem, line in zip([*expected, "not UTF-8"], found[1:-1], strict=False):
            assert problem in line and "\n" not in line and line.startswith(f"{name}:")
    with pytest.raises(UserError, match=r"rows.jsonl:2: not JSON"):
        list(read_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(UserError, match="a list, expected"):
        list(read_rows(write(tmp_path, "list.jsonl", b"[{}]")))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.json", b'[{"a": 1}, {"a"', "Expecting ':' delimiter"),
        ("rows.json", b'[{"a": 1}', "the array has no end"),
        ("rows.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("rows.jsonl", b'{"a": 1}\n{"a"', "the file ends there"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9000, mtime=0)[:-20], "corrupt or cut off"),
        ("rows.jsonl.zst", b"no zstd", "corrupt or cut off"),
        ("rows.parquet", b"PAR1", "corrupt or not a parquet file"),
        ("rows.parquet.gz", b"PAR1", "corrupt or not a parquet file"),
        ("rows.csv", b'a,b\n1,2\n3,"the fox\n', "line 3 is not CSV (a quoted cell has no end"),
        ("rows.csv", b'a,"b', "line 1 is not CSV (a quoted cell has no end"),
        ("rows.tsv", b'a\tb\n1\t"2\n\n3\t4\n', "line 2 is not CSV (a quoted cell has no end"),
        ("rows.csv.gz", gzip.compress(b'a,b\n1,"2', mtime=0), "a quoted cell has no end"),
        ("rows.txt", b"", "cannot read rows from this kind of file"),
    ],
)
def test_a_corrupt_file_is_one_line(tmp_path, name, content, problem):
    with pytest.raises(UserError) as error:
        list(read_rows(write(tmp_path, name, content)))
    assert problem in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b'a,b\n1,"2"', b'a,b\n1,"2\n\n3"\n', b'a,b\n1,2""x"', b'a,b\r\n1,"2"\r\n\r\n'])
def test_a_table_that_is_whole_has_its_last_row(tmp_path, content):
    assert len(list(read_rows(write(tmp_path, "rows.csv", content)))) == 1


def test_blocks_of_lines_are_read_alone(tmp_path):
    path = write(tmp_path, "rows.jsonl", b"".join(b'{"n": %d}\n\n' % n for n in range(2 * LINES_PER_BLOCK + 5)))
    blocks = list_row_blocks(path)
    assert [block.row_count for block in blocks] == [LINES_PER_BLOCK, LINES_PER_BLOCK, 5]
    assert [row["n"] for block in blocks for row, _ in block.read_rows()] == list(range(2 * LINES_PER_BLOCK + 5))
    assert next(place for _, place in blocks[1].read_rows()) == f"{path}:{2 * LINES_PER_BLOCK + 1}"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "more.csv"])
def test_a_cell_of_any_length_takes_bounded_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(values, "MAX_ROW_BYTES", 1 << 18)
    long, size = b"x" * (1 << 20), 24
    content = {
        "rows.jsonl": b'{"a": "' + long * size + b'"}\n{"a": "1"}\n',
        "rows.json": b'[{"a": "1"}, {"a": "' + long * size + b'"}]',
        "rows.csv": b'a,b\n1,2\n"' + long * size + b'",2\n1,2\n',
        "more.csv": b'a,b\n1,2\n"' + b"x\n" * (size << 19) + b'",2\n1,2\n',  # lines within one cell
    }[name]
    path = write(tmp_path, name, content)
    del content
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 and len(found) == 2
    assert sum(isinstance(row, str) and name in row for row in found) == 1


@pytest.mark.parametrize("kind", ["rows.jsonl.zst", "rows.parquet.zst", "rows.csv.gz"])
def test_a_file_that_expands_without_measure_ends(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(opening, "MIN_EXPANSION_LIMIT", 1 << 20)
    monkeypatch.setattr(opening, "MAX_EXPANSION", 100)
    pack = PACK[f".{kind.rpartition('.')[2]}"]
    with pytest.raises(UserError, match="expands to more than"):
        list(read_rows(write(tmp_path, kind, pack(b"\0" * (16 << 20)))))


def test_bad_rows_are_counted_and_more_than_one_in_a_hundred_are_an_error():
    bad = BadRows()
    assert bad.describe(5) == ""
    bad.add(UserError("f:1: no"))
    bad.require_few(100)
    assert bad.describe(1000) == "1 of 1,000 rows left out (first: f:1: no)"
    bad.add(UserError("f:2: no"))
    with pytest.raises(UserError, match="f:1: no"):
        bad.require_few(199)


def test_columns_are_named_after_a_path(tmp_path):
    assert split_columns("a.csv") == ("a.csv", {})
    assert split_columns("a.csv?prompt=Frage%26&answer=B%20C") == ("a.csv", {"prompt": "Frage&", "answer": "B C"})
    odd = write(tmp_path, "a?text=b", b"")
    assert split_columns(str(odd)) == (str(odd), {})
    for source in ("a.csv?promt=x", "a.csv?prompt=", "a.csv?x"):
        with pytest.raises(UserError, match=r"expected PATH\?NAME=COLUMN"):
            split_columns(source)
