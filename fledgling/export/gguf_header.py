"""Checks the header of a GGUF file of any source before the `gguf` package reads it.

That package believes every count: one of 2**40 values, in a file of a hundred bytes, makes it append empty values until
memory ends. Here every count is compared with the bytes that are left, in one pass that keeps nothing.

Source: the format's specification, ggml/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

MAX_FIELDS = 1 << 16  # values, and tensors, of a file
MAX_ITEMS = 1 << 23  # values of all arrays together: tokens, scores, types and merges
MAX_NESTING = 4  # of arrays
MAX_DIMENSIONS = 4
ITEM_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by its type, bytes of a value
STRING, ARRAY = 8, 9


def check_header(path: Path) -> None:
    """Raises ValueError for a header that is cut off or whose counts cannot be true; OSError for no file."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Walk(data).check()
        except struct.error:
            raise ValueError("the header is cut off") from None


class _Walk:
    """A position in the bytes of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.items, self.order = data, 0, 0, "<"

    def check(self) -> None:
        """Passes over the whole header."""
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version & 0xFFFF == 0:  # written on a big-endian machine
            self.order = ">"
        tensors, fields = self.number("Q"), self.number("Q")
        for name, count in (("values", fields), ("tensors", tensors)):
            if count > MAX_FIELDS:
                raise ValueError(f"the header says {count:,} {name}; expected at most {MAX_FIELDS:,}")
        for _ in range(fields):
            self.string()
            self.value(self.number("I"), 0)
        for _ in range(tensors):
            self.string()
            dimensions = self.number("I")
            if dimensions > MAX_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions:,} dimensions; expected at most {MAX_DIMENSIONS}")
            self.skip(8 * dimensions + 4 + 8)  # sizes, type, offset

    def number(self, kind: str) -> int:
        """Returns the number at the position, of a format of `struct`, and moves past it."""
        (value,) = struct.unpack_from(self.order + kind, self.data, self.at)
        self.at += struct.calcsize(self.order + kind)
        return value

    def skip(self, count: int) -> None:
        """Moves on by `count` bytes. Raises ValueError where fewer are left."""
        if count > len(self.data) - self.at:
            raise ValueError(f"the header says {count:,} bytes where {len(self.data) - self.at:,} are left")
        self.at += count

    def string(self) -> None:
        """Moves over a text: its length, then its bytes."""
        self.skip(self.number("Q"))

    def value(self, kind: int, depth: int) -> None:
        """Moves over a value; depth: number of arrays that it is in. Raises ValueError for an unknown type."""
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            self.array(depth)
        elif kind in ITEM_BYTES:
            self.skip(ITEM_BYTES[kind])
        else:
            raise ValueError(f"a value has the unknown type {kind}")

    def array(self, depth: int) -> None:
        """Moves over an array. Raises ValueError for too many values, or arrays of arrays of too many levels."""
        kind, count = self.number("I"), self.number("Q")
        self.items += count
        if self.items > MAX_ITEMS:
            raise ValueError(f"the header's arrays have more than {MAX_ITEMS:,} values")
        if depth >= MAX_NESTING:
            raise ValueError("arrays of arrays are nested too deeply")
        if kind in ITEM_BYTES:
            self.skip(count * ITEM_BYTES[kind])
        else:
            for _ in range(count):
                self.value(kind, depth + 1)
