"""Headers of GGUF files of any source: counts that cannot be true are rejected before memory is taken."""

import struct

import pytest

from fledgling.export.gguf_header import MAX_FIELDS, MAX_NESTING, check_header

EIGHT = struct.pack("<IB", 7, 1)  # a value of one byte


def header(tensors=0, fields=0, rest=b"", order="<"):
    return b"GGUF" + struct.pack(f"{order}IQQ", 3, tensors, fields) + rest


def field(value):
    return struct.pack("<Q", 1) + b"k" + value


def array(kind, count, rest=b""):
    return struct.pack("<IIQ", 9, kind, count) + rest


@pytest.mark.parametrize(
    "data",
    [
        header(),
        header(order=">"),
        header(fields=1, rest=field(EIGHT)),
        header(fields=1, rest=field(array(8, 2, struct.pack("<Q1sQ2s", 1, b"a", 2, b"bc")))),
        header(tensors=1, rest=struct.pack("<Q1sIQIQ", 1, b"t", 1, 4, 0, 0)),
    ],
)
def test_a_header_that_is_whole_is_taken(data, tmp_path):
    (tmp_path / "x.gguf").write_bytes(data)
    check_header(tmp_path / "x.gguf")


nested = struct.pack("<I", 9)
for _ in range(MAX_NESTING + 1):
    nested += struct.pack("<IQ", 9, 1)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (header()[:10], "cut off"),
        (header(fields=MAX_FIELDS + 1), "65,537 values"),
        (header(tensors=2**40), "tensors; expected at most"),
        (header(fields=1, rest=struct.pack("<Q", 2**40)), "1,099,511,627,776 bytes where 0 are left"),
        (header(fields=1, rest=field(struct.pack("<I", 99))), "unknown type 99"),
        (header(fields=1, rest=field(array(7, 2**40))), "more than 8,388,608 values"),
        (header(fields=1, rest=field(nested)), "nested too deeply"),
        (header(tensors=1, rest=struct.pack("<Q1sI", 1, b"t", 9)), "9 dimensions"),
    ],
)
def test_a_header_that_cannot_be_true_is_rejected(data, problem, tmp_path):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=problem):
        check_header(tmp_path / "x.gguf")
