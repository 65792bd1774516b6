"""Rows of JSONL, JSON, CSV and parquet files, each with its "FILE:LINE".

A row that cannot be read, or has text that is not UTF-8, is an error of one line. `RowBlock.iterate_rows` yields it in
its place, for a caller that leaves such rows out and counts them; `read_rows` raises it. A corrupt file always raises.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fledgling.config import UserError, show_name
from fledgling.files.folder import split_suffixes
from fledgling.files.opening import CORRUPT_FILE_ERRORS, IF_ENCODED, open_text
from fledgling.files.parquet import iterate_batches, open_parquet
from fledgling.files.row_text import find_bad_text
from fledgling.files.values import (
    LINE_SUFFIXES,
    TABLE_SUFFIXES,
    Unreadable,
    describe_repeated,
    iterate_json,
    parse_json_line,
    read_lines,
    read_table,
)

ROW_SUFFIXES = (*LINE_SUFFIXES, ".json", *TABLE_SUFFIXES, ".parquet")
ROW_FILES = ".jsonl .ndjson .json .csv .tsv .parquet, also with .gz .zst .bz2 .xz"  # in messages
JSONL_FORMAT = '{"name": value, ...} on each line'
LINES_PER_BLOCK = 1024
ROWS_PER_BAD_ROW = 100  # one row in this many may be left out

Row = dict[str, Any] | list[Any]  # a list: the messages of one conversation


class NotUTF8Error(UserError):
    """The text of a row is not UTF-8."""


@dataclass
class BadRows:
    """Counts the rows that are left out, and keeps the first error."""

    count: int = 0
    first: UserError | None = None
    undecodable: int = 0

    def add(self, error: UserError) -> None:
        """Counts one row."""
        self.count, self.first = self.count + 1, self.first or error
        self.undecodable += isinstance(error, NotUTF8Error)

    def require_few(self, rows: int) -> None:
        """Raises the first error if more than one in `ROWS_PER_BAD_ROW` of `rows` rows is left out."""
        if self.count * ROWS_PER_BAD_ROW > rows:
            raise UserError(self.explain())

    def explain(self) -> str:
        """Returns the first error, and how to convert the file if most errors are of text that is not UTF-8."""
        if 2 * self.undecodable <= self.count:
            return str(self.first or "")
        return f"{self.first}; rows that are not UTF-8: {self.undecodable:,}; {IF_ENCODED}"

    def describe(self, rows: int) -> str:
        """Returns how many of `rows` rows are left out and the first error, or ""."""
        return f"{self.count:,} of {rows:,} rows left out (first: {self.first})" if self.count else ""


def require_file(path: Path, expected: str, setting: str = "") -> None:
    """Raises UserError unless `path` is a file: it says whether it is missing or a folder, and what was expected.

    setting: that names it, such as "dpo.pairs".
    """
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "it is no file" if path.exists() else "no such file"
        raise UserError(f"{setting}{': ' if setting else ''}cannot read {path}: {found}; expected {expected}")


def is_row_file(path: Path) -> bool:
    """Returns whether `read_rows` reads this kind of file, judged by its name."""
    return split_suffixes(path)[0] in ROW_SUFFIXES


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a file that can be read without the others: a parquet row group, or lines of a JSONL file.

    A .json or .csv file, and a compressed one, is one block.

    first_row: number of the block's first row, or line, counted from 1. offset: index of the row group, or the byte
    of the first line.
    """

    path: Path
    row_count: int
    first_row: int
    offset: int

    def read_rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yields each row with its "FILE:LINE". Raises UserError for one that is not a JSON object."""
        for row, place in self.iterate_rows():
            if isinstance(row, UserError):
                raise row
            if isinstance(row, list):
                raise UserError(f"{place}: a list, expected {JSONL_FORMAT}")
            yield row, place

    def iterate_rows(self) -> Iterator[tuple[Row | UserError, str]]:
        """Yields each row, also one that is a list, or the error of a row that cannot be read; with its place."""
        kind = split_suffixes(self.path)[0]
        name, is_table = show_name(self.path, sys.maxsize), kind in TABLE_SUFFIXES
        expected = "" if is_table or kind == ".parquet" else f", expected {JSONL_FORMAT}"
        for number, row in self._iterate_values():
            place = f"{name}:{number}"
            if isinstance(row, Unreadable):
                bad: Unreadable | None = row
            elif isinstance(row, dict | list):
                bad = find_bad_text(row, is_table)
            else:
                bad = Unreadable(f"a value of type {type(row).__name__}")
            if bad is None:
                yield row, place
            elif bad.ends_file:
                raise UserError(f"{place}: {bad}{f'; {IF_ENCODED}' if bad.undecodable else expected}")
            else:
                yield (NotUTF8Error if bad.undecodable else UserError)(f"{place}: {bad}{expected}"), place

    def _iterate_values(self) -> Iterator[tuple[int, Any]]:
        kind, packed = split_suffixes(self.path)
        if kind == ".parquet":
            groups = None if packed else [self.offset]
            yield from enumerate(_read_parquet(self.path, groups), self.first_row)
        elif kind in LINE_SUFFIXES:
            yield from _read_json_lines(self)
        else:
            yield from enumerate(_read_whole_file(self.path), 1)


def list_row_blocks(path: Path) -> list[RowBlock]:
    """Returns the blocks of a file of rows (`ROW_FILES`) in order, without keeping its rows.

    Empty lines are skipped. Raises UserError for a file that is missing, corrupt or of another kind.
    """
    kind, packed = split_suffixes(path)
    if not is_row_file(path):
        raise UserError(f"{path}: cannot read rows from this kind of file; expected {ROW_FILES}")
    if kind == ".parquet":
        return _list_row_groups(path, bool(packed))
    if kind not in LINE_SUFFIXES:
        count = sum(1 for _ in _read_whole_file(path))
        return [RowBlock(path, count, 1, 0)] if count else []
    blocks: list[RowBlock] = []
    with _open(path) as handle:
        count = number = offset = 0
        first_row, end = 1, 0
        for size, line in read_lines(handle):
            number, end = number + 1, end + size
            count += line is None or bool(line.strip())
            if count == LINES_PER_BLOCK and not packed:  # seeking in a compressed file reads all that comes before
                blocks.append(RowBlock(path, count, first_row, offset))
                count, first_row, offset = 0, number + 1, end
    return [*blocks, RowBlock(path, count, first_row, offset)] if count else blocks


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every row of a file with its "FILE:LINE"; skips empty lines.

    Raises as `list_row_blocks` does, and UserError for a row that is not an object.
    """
    for block in list_row_blocks(path):
        yield from block.read_rows()


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Opens a file. Raises UserError if that fails, or if reading finds it corrupt."""
    try:
        with open_text(path) as handle:
            yield handle
    except OSError as error:
        if error.errno is not None:
            reason = error.strerror or str(error)
            raise UserError(f"cannot read {path}: {reason}; check the path and --data-dir") from None
        raise _make_corrupt_error(path, error) from None
    except CORRUPT_FILE_ERRORS as error:
        raise _make_corrupt_error(path, error) from None


def _make_corrupt_error(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: corrupt or cut off ({' '.join(str(error).split())}); fetch or copy it again")


def _read_json_lines(block: RowBlock) -> Iterator[tuple[int, Any]]:
    with _open(block.path) as handle:
        if block.offset:  # not in a compressed file, which cannot be searched
            handle.seek(block.offset, io.SEEK_SET)
        rows_left, number, lines = block.row_count, block.first_row, read_lines(handle)
        while rows_left and (entry := next(lines, None)):
            line = entry[1]
            if line is None or line.strip():
                rows_left -= 1
                value = parse_json_line(line)
                if isinstance(value, Unreadable) and line is not None and not line.endswith(b"\n"):
                    value = Unreadable(
                        f"{value}; the file ends there; if it was cut off, fetch or copy it again", value.undecodable
                    )
                yield number, value
            number += 1


def _read_whole_file(path: Path) -> Iterator[Any]:
    """Yields the values of a .json or .csv file."""
    kind = split_suffixes(path)[0]
    with _open(path) as handle:
        yield from iterate_json(handle) if kind == ".json" else read_table(handle, kind == ".tsv")


def _list_row_groups(path: Path, as_one: bool) -> list[RowBlock]:
    with open_parquet(path) as table:
        sizes = [table.metadata.row_group(index).num_rows for index in range(table.metadata.num_row_groups)]
    if as_one:
        return [RowBlock(path, sum(sizes), 1, 0)] if sum(sizes) else []
    firsts = [1 + sum(sizes[:index]) for index in range(len(sizes))]
    return [RowBlock(path, size, first, index) for index, (size, first) in enumerate(zip(sizes, firsts, strict=True))]


def _read_parquet(path: Path, groups: list[int] | None) -> Iterator[dict[str, Any] | Unreadable]:
    with open_parquet(path) as table:
        if repeated := describe_repeated(table.schema_arrow.names):
            raise UserError(f"{path}: {repeated}")
        for batch in iterate_batches(table, path, groups):
            try:
                yield from batch.to_pylist()
            except (ValueError, OverflowError):  # text that is not UTF-8, a date without a Python object
                yield from (_read_parquet_row(batch.slice(index, 1)) for index in range(batch.num_rows))


def _read_parquet_row(batch: Any) -> dict[str, Any] | Unreadable:
    """Returns the only row of a batch, or why it has none."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except UnicodeDecodeError:
            return Unreadable(f'not UTF-8 (the column "{show_name(name)}"); write the file again with text in UTF-8')
        except (ValueError, OverflowError) as error:
            return Unreadable(f'the column "{show_name(name)}" cannot be read ({show_name(error)})')
    return row
