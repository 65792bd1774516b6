"""Parses lines of JSON, JSON files and tables, each value with its number, in memory that does not grow with the file.

A value that cannot be read is yielded as the reason, a text; the caller skips, counts or rejects it. Documents
(`fledgling.corpora`) and rows (`rows.py`) are both read through here.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

from fledgling.config.errors import show_name

LINE_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
MAX_ROW_BYTES = 1 << 26  # a longer line, entry or cell is no row
READ_BYTES = 1 << 16
BYTE_ORDER_MARK = codecs.BOM_UTF8
WHITE_SPACE = " \t\r\n"
NO_MORE = "so what follows cannot be read"
CLOSING = '}]"'  # the last character of a value that no more text can change


@dataclass(frozen=True)
class Unreadable:
    """A row that cannot be read, and why."""

    reason: str
    undecodable: bool = False  # it is not UTF-8
    ends_file: bool = False  # what follows it cannot be read

    def __str__(self) -> str:
        return self.reason


def read_lines(handle: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yields (bytes read, line) of each line; None for a line of more than `MAX_ROW_BYTES`, which is not kept."""
    while line := handle.readline(MAX_ROW_BYTES):
        size = len(line)
        if size < MAX_ROW_BYTES or line.endswith(b"\n"):
            yield size, line
            continue
        while more := handle.readline(READ_BYTES):
            size += len(more)
            if more.endswith(b"\n"):
                break
        yield size, None


def parse_json_line(line: bytes | None) -> Any | Unreadable:
    """Returns the value in a line, None for an empty one; a byte-order mark before it is ignored."""
    if line is None:
        return Unreadable(f"longer than {MAX_ROW_BYTES:,} bytes")
    try:
        text = line.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 (byte {error.start} of the line)", undecodable=True)
    if not text.strip():
        return None
    value, end = _decode(json.JSONDecoder(object_pairs_hook=_make_object), text, len(text) - len(text.lstrip()))
    if not isinstance(value, Unreadable) and text[end:].strip():
        return Unreadable(f"not JSON (Extra data at column {end + 1})")
    return value


def iterate_json(handle: BinaryIO) -> Iterator[Any | Unreadable]:
    """Yields the values of a .json file: the entries of one array, or one value after the other.

    The file is read piece by piece. After a value that cannot be read, reading continues with the next line, except in
    an array, which ends there.
    """
    buffer = _TextBuffer(handle)
    try:
        in_array = buffer.skip(WHITE_SPACE) == "["
        buffer.at += in_array
        separators = WHITE_SPACE + "," if in_array else WHITE_SPACE
        while (first := buffer.skip(separators)) and not (in_array and first == "]"):
            value = buffer.parse_value()
            if isinstance(value, Unreadable) and in_array:
                yield replace(value, reason=f"{value} in an array, {NO_MORE}", ends_file=True)
                return
            yield value
            if isinstance(value, Unreadable) and not buffer.skip_line():
                return
        if in_array and not first:
            yield Unreadable("the array has no end, so the file was cut off")
    except UnicodeDecodeError:
        yield Unreadable(f"not UTF-8, {NO_MORE}", undecodable=True, ends_file=True)


class _TextBuffer:
    """The part of a text file that is in memory, and the position in it. Raises UnicodeDecodeError."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.text, self.at = handle, "", 0
        self.utf8, self.decoder = (
            codecs.getincrementaldecoder("utf-8-sig")(),
            json.JSONDecoder(object_pairs_hook=_make_object),
        )

    def extend(self) -> bool:
        """Reads as much as there is, so that a long value is parsed few times. Returns False at the file's end."""
        data = self.handle.read(max(READ_BYTES, len(self.text) - self.at))
        more = self.utf8.decode(data, final=not data)
        if data:
            self.text, self.at = self.text[self.at :] + more, 0
        return bool(data)

    def skip(self, characters: str) -> str:
        """Passes over some characters and returns the next one, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in characters:
                self.at += 1
            if self.at < len(self.text) or not self.extend():
                return self.text[self.at : self.at + 1]

    def skip_line(self) -> bool:
        """Passes over the rest of a line. Returns False at the end."""
        while (end := self.text.find("\n", self.at)) < 0:
            self.at = len(self.text)
            if not self.extend():
                return False
        self.at = end + 1
        return True

    def parse_value(self) -> Any | Unreadable:
        """Returns the value that begins here, and passes over it."""
        while True:
            value, end = _decode(self.decoder, self.text, self.at)
            may_be_longer = isinstance(value, Unreadable) or self.text[end - 1] not in CLOSING
            if may_be_longer and len(self.text) - self.at < MAX_ROW_BYTES and self.extend():
                continue
            self.at = end
            return value


class _RepeatedNameError(ValueError):
    """An object has a name twice, so that one of the two values would be lost."""


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RepeatedNameError(describe_repeated(name for name, _ in pairs))
    return made


def _decode(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any | Unreadable, int]:
    try:
        return decoder.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return Unreadable(f"not JSON ({error.msg} at column {error.colno})"), at
    except RecursionError:
        return Unreadable("not JSON (nested too deeply at column 1)"), at
    except _RepeatedNameError as error:
        return Unreadable(str(error)), at
    except ValueError:  # a number of thousands of digits
        return Unreadable("not JSON (a number is too long)"), at


def read_table(handle: BinaryIO, is_tabbed: bool) -> Iterator[dict[str, str] | Unreadable]:
    """Yields the rows of a .csv or .tsv file, whose first line names its columns; of a corrupt one, the reason last.

    A first line without a comma may have semicolons, or tabs, between its columns. If it has spaces after them, those
    in the rows are no part of the cells. A cell is "" where a row is too short; a row that is too long is none. Bytes
    that are not UTF-8 become lone surrogates. What follows a cell or a line of more than `MAX_ROW_BYTES` is not read. A
    last row that ends inside quotes is no row: the file was cut off.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _TextLines(handle)
    try:
        names: list[str] | None = None
        header = lines.peek()
        delimiter = "\t" if is_tabbed else next((mark for mark in ",;\t" if mark in header), ",")
        table = csv.reader(lines, delimiter=delimiter, skipinitialspace=f"{delimiter} " in header)
        first = lines.number
        for cells in table:
            if lines.at_end:  # the reader asked for more text before it gave this row
                reason = f"line {first} is not CSV (a quoted cell has no end, so the file was cut off)"
                yield Unreadable(reason, ends_file=names is None)
            elif names is None:
                names = cells
                as_json = "its first line begins as JSON does; end its name with .jsonl or .json"
                is_json = names[:1] and names[0].lstrip().startswith(("{", "["))
                if problem := as_json if is_json else describe_repeated(filter(None, names)):
                    yield Unreadable(problem, ends_file=True)
                    return
            elif any(cells[len(names) :]):
                found = f"line {first} has {len(cells)} cells, and the first line names {len(names)} columns"
                yield Unreadable(f"{found}; write quotes around a cell that holds the separator")
            elif cells:
                yield dict(zip(names, [*cells, *[""] * (len(names) - len(cells))], strict=False))
            first = lines.number + 1
    except (csv.Error, _TooLongError) as error:
        reason = str(error).partition(" - ")[0]  # what follows is about Python's open()
        yield Unreadable(f"line {lines.number} is not CSV ({reason}), {NO_MORE}", ends_file=True)


def describe_repeated(names: Iterable[str]) -> str:
    """Returns which of the names of columns, or in an object, is there twice, and what to do; "" for none."""
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    return "" if repeated is None else f'the name "{show_name(repeated)}" is there twice; give one another name'


class _TooLongError(Exception):
    """A line is longer than `MAX_ROW_BYTES`."""


class _TextLines(Iterator[str]):
    """The lines of a file as text, without the empty ones before the first.

    number: of the line that was read last. at_end: whether a line was asked for after the last.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self.lines, self.start, self.number, self.at_end = read_lines(handle), BYTE_ORDER_MARK, 0, False
        self.waiting: list[str] = []

    def peek(self) -> str:
        """Returns the first line, which is still to come; "" for none. Raises _TooLongError."""
        self.waiting = list(islice((line for line in self if line.strip()), 1))
        return "".join(self.waiting)

    def __next__(self) -> str:
        if self.waiting:
            return self.waiting.pop()
        entry = next(self.lines, None)
        if entry is None:
            self.at_end = True
            raise StopIteration
        self.number += 1
        if entry[1] is None:
            raise _TooLongError(f"longer than {MAX_ROW_BYTES:,} bytes")
        text = entry[1].removeprefix(self.start).decode(errors="surrogateescape")
        self.start = b""
        return text
