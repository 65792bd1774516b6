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
from fledgling.files import (
    BadRows,
    ColumnMap,
    is_row_file,
    list_names,
    list_row_blocks,
    opening,
    read_rows,
    require_names,
    split_columns,
    values,
)
from fledgling.files.rows import LINES_PER_BLOCK

HALF = b'{"a": "x\\ud83d"}'
ROWS = [{"a": "1", "b": "x\ny"}, {"a": "é", "b": ""}]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def parquet(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=1)
    return sink.getvalue()


def parquet_of_equal_names():
    sink = io.BytesIO()
    column = pyarrow.array(["x"])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column, column], names=["a", "a"]), sink)
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


def parquet_of_bytes(*values):
    """A file whose column of text is not checked for UTF-8, as some writers do not."""
    sink = io.BytesIO()
    table = pyarrow.Table.from_arrays([pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())], names=["a"])
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        (".csv", b"a,b\nGr\xfc\xdfe,1\ngood,2\n", 'the column "a" has Gr\\xfc\\xdfe'),
        (".tsv", b"a\tGr\xf6\xdfe\nx\ty\n", "the name of a column has Gr\\xf6\\xdfe"),
        (".jsonl", b'{"a": "\xfc"}\n{"a": "good"}', "not UTF-8 (byte 7 of the line)"),
        (".jsonl", HALF + b'\n{"a": "good"}', "\\ud83d is half of a character"),
        (".ndjson", b'{"b": [{"\\ud83d": 1}]}\n{"a": "good"}', "\\ud83d is half of a character"),
        (".json", b"[" + HALF + b', {"a": "good"}]', "\\ud83d is half of a character"),
        (".parquet", parquet_of_bytes(b"\xfc", b"good"), 'not UTF-8 (the column "a")'),
    ],
)
def test_a_row_of_text_that_is_not_utf8_is_one_line_and_the_next_is_read(tmp_path, kind, content, problem, packed):
    path = write(tmp_path, f"rows{kind}{packed}", PACK[packed](content))
    first, *others = read(path)
    assert first.startswith(f"{path.name}:1: ") and problem in first and first.isprintable()
    assert [row["a"] for row in others] == ["good"] * (kind != ".tsv")


def test_most_rows_that_are_not_utf8_are_an_error_that_says_how_to_convert(tmp_path):
    bad = BadRows()
    for block in list_row_blocks(write(tmp_path, "rows.csv", b"a\n\xfc\n\xe4\nx\n")):
        for row, _ in block.iterate_rows():
            if isinstance(row, UserError):
                bad.add(row)
    with pytest.raises(UserError, match=r"rows that are not UTF-8: 2; .*`iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW`"):
        bad.require_few(3)
    for _ in range(2):
        bad.add(UserError("of another kind"))
    assert "iconv" not in bad.explain()


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,b".encode("utf-16"), "but UTF-16; .*iconv -f UTF-16 -t UTF-8"),
        (b"\xfe\xff" + "a,b".encode("utf-16-be"), "but UTF-16; .*iconv -f UTF-16 "),
        ("a,b".encode("utf-32"), "but UTF-32; .*iconv -f UTF-32 "),
        ("a,b".encode("utf-16-le"), "but UTF-16LE; .*iconv -f UTF-16LE "),
        ("a,b".encode("utf-16-be"), "but UTF-16BE; .*iconv -f UTF-16BE "),
        (gzip.compress(b"a,b"), "but gzip; end its name with .gz"),
        (zstandard.compress(b"a,b"), "but zstandard; end its name with .zst"),
        (CONTENTS[".parquet"], "but parquet; end its name with .parquet"),
        (b"PK\x03\x04...", "but a zip archive or a spreadsheet; unpack it, or save it as CSV in UTF-8"),
        (bytes(9), "but zeros; fetch or copy it again"),
    ],
)
def test_a_file_that_is_no_text_is_one_line_that_says_what_it_is(tmp_path, content, problem, packed):
    for kind in ("rows.csv", "rows.jsonl", "rows.json"):
        with pytest.raises(UserError, match=f"{kind}{packed}: not UTF-8 text {problem}"):
            list_row_blocks(write(tmp_path, f"{kind}{packed}", PACK[packed](content)))


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("a;b\n1;x, y\n", [{"a": "1", "b": "x, y"}]),  # as spreadsheets write it where a comma is the decimal mark
        ("a\tb\n1\tx\n", [{"a": "1", "b": "x"}]),
        ("\n \na,b\n1,x\n", [{"a": "1", "b": "x"}]),
        ('a, b\n1, "x, y"\n', [{"a": "1", "b": "x, y"}]),
        ("a,b,\n1,x,\n2,y,,\n", [{"a": "1", "b": "x", "": ""}, {"a": "2", "b": "y", "": ""}]),
        ("a,b\n1,x, y\n2,z\n", ["rows.csv:1: line 2 has 3 cells, and the first line names 2 columns; "]),
    ],
)
def test_a_table_is_read_as_people_write_it_and_no_cell_is_dropped(tmp_path, content, rows):
    found = read(write(tmp_path, "rows.csv", content.encode()))
    if isinstance(rows[0], str):
        assert found[0].startswith(rows[0]) and found[1:] == [{"a": "2", "b": "z"}]
    else:
        assert found == rows


def test_a_value_of_parquet_that_python_has_no_object_for_is_one_row(tmp_path):
    sink = io.BytesIO()
    table = pyarrow.table({"a": ["x", "y"], "t": pyarrow.array([2**62, 0], pyarrow.timestamp("us"))})
    pyarrow.parquet.write_table(table, sink)
    found = read(write(tmp_path, "rows.parquet", sink.getvalue()))
    assert found[0].startswith('rows.parquet:1: the column "t" cannot be read (') and found[1]["a"] == "y"


def test_a_row_that_is_nested_deeply_is_one_line(tmp_path):
    for deep in ("[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500):
        found = read(write(tmp_path, "rows.jsonl", f'{{"a": {deep}}}\n{{"a": 1}}'.encode()))
        assert "nested more than 100 levels deep" in found[0] and found[1] == {"a": 1}


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
        ("rows.csv", b"a,b,b\n1,2,3\n", 'the name "b" is there twice; give one another name'),
        ("rows.parquet", parquet_of_equal_names(), 'the name "a" is there twice; give one another name'),
        ("rows.jsonl", b'{"a": 1, "b": [{"c": 1, "c": 2}]}', 'the name "c" is there twice; give one another name'),
        ("rows.json", b'[{"a": 1, "a": 2}]', 'the name "a" is there twice; give one another name'),
        ("rows.csv", b'{"a": 1}\n', "begins as JSON does; end its name with .jsonl"),
        ("rows.csv", b"a,b\r1,2\r", "new-line character seen in unquoted field), so what follows cannot be read"),
        ("rows.json", b'[{"a": 1}, {bad}, {"a": 2}]', "in an array, so what follows cannot be read"),
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
    if name == "rows.jsonl":
        found = read(path)
        assert len(found) == 2 and sum(isinstance(row, str) and name in row for row in found) == 1
    else:  # the rows after it cannot be found, so they are not left out in silence
        with pytest.raises(UserError, match=f"{name}:[12]: .*so what follows cannot be read"):
            read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("kind", ["rows.jsonl.zst", "rows.parquet.zst", "rows.csv.gz"])
def test_a_file_that_expands_without_measure_ends(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(opening, "MIN_EXPANSION_LIMIT", 1 << 20)
    monkeypatch.setattr(opening, "MAX_EXPANSION", 100)
    pack = PACK[f".{kind.rpartition('.')[2]}"]
    with pytest.raises(UserError, match="expands to more than"):
        list(read_rows(write(tmp_path, kind, pack(b"a" * (16 << 20)))))


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


def test_a_named_column_that_no_row_has_is_one_line_after_the_last_row():
    mapped = ColumnMap("a.csv", {"prompt": "frage", "answer": "Antwort"})
    mapped.add({"Frage": "x", "text": "y"})
    mapped.add(UserError("a row that cannot be read"))
    with pytest.raises(UserError) as error:
        mapped.require_all()
    assert str(error.value) == (
        'a.csv: no row has the column "Antwort" that ?answer= names; the columns are Frage, text'
    )
    mapped.add({"Antwrt": "z"})
    with pytest.raises(UserError, match='did you mean "Antwrt"'):
        mapped.require_all()
    mapped.add({"Antwort ": "z"})
    mapped.require_all()
    ColumnMap("a.csv", {"prompt": "Frage"}).require_all()  # of no row at all: that is an error of its own


def test_a_name_that_a_use_does_not_read_is_one_line():
    require_names("a.csv", {"text": "x"}, ("text",), "a document")
    with pytest.raises(UserError, match=r"a.csv: \?prompt= names no column of a document; expected \?text="):
        require_names("a.csv", {"prompt": "x"}, ("text",), "a document")


def test_names_of_columns_are_one_short_line():
    assert list_names(["a\nb", "\x1b[31m", "\udcfc", "x" * 99]) == f"a\\nb, \\x1b[31m, \\udcfc, {'x' * 80}..."
    assert list_names(f"c{n}" for n in range(99)).endswith("c19 and 79 more") and list_names([]) == "none"
