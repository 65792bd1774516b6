"""A growing file is read once, a part at a time, whatever happens to it meanwhile."""

import json

from hypothesis import given
from hypothesis import strategies as st

from fledgling.watch import tail
from fledgling.watch.tail import JsonlTail


def write(path, lines) -> None:
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 50))
def test_every_line_is_read_once_however_it_arrives(tmp_path_factory, cuts, size):
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    lines = [{"step": number, "text": "ü" * (number % 5)} for number in range(12)]
    content = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
    reader, seen, end = JsonlTail(path), [], 0
    path.write_bytes(b"")
    tail_read, tail.MAX_READ_BYTES = tail.MAX_READ_BYTES, size
    try:
        for cut in [*cuts, len(content)]:
            with open(path, "ab") as file:
                file.write(content[end : end + cut])
            end = min(len(content), end + cut)
            seen += reader.read()[0]
        while new := reader.read()[0] or reader._offset < len(content):
            seen += new if isinstance(new, list) else []
    finally:
        tail.MAX_READ_BYTES = tail_read
    assert seen == lines


def test_a_file_that_is_replaced_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = JsonlTail(path)
    assert reader.read() == ([], False)
    write(path, [{"step": 1}, {"step": 2}])
    assert reader.read() == ([{"step": 1}, {"step": 2}], True)
    assert reader.read() == ([], False)
    write(path, [{"step": 1}])  # shorter, the same file
    assert reader.read() == ([{"step": 1}], True)
    other = tmp_path / "other"
    write(other, [{"step": 1}, {"step": 5}])
    other.rename(path)  # longer, another file, as after a rewind
    assert reader.read() == ([{"step": 1}, {"step": 5}], True)
    path.unlink()
    assert reader.read() == ([], True)
    assert reader.read() == ([], False)


def test_what_is_no_line_of_json_is_skipped_and_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(tail, "MAX_READ_BYTES", 64)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\n[1]\nnull\n{torn\n' + b"[" * 9000 + b'\n{"step": 2}\n{"step": 3')
    reader, seen = JsonlTail(path), []
    for _ in range(200):
        seen += reader.read()[0]
        assert len(reader._partial) <= 164
    assert seen == [{"step": 1}, {"step": 2}]


def test_of_a_huge_file_only_the_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tail, "MAX_BACKLOG_BYTES", 30)
    path = tmp_path / "metrics.jsonl"
    write(path, [{"step": number} for number in range(10, 99)])
    reader = JsonlTail(path)
    assert [line["step"] for line in reader.read()[0]] == [97, 98]
    assert reader.skipped_bytes == path.stat().st_size - 30
