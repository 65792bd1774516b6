"""Readers of rows: JSON lines, JSON, CSV and parquet, each row as the bytes of its text and the place it was read from.

`readers.py` opens the files and decodes the text. Rows that cannot be used are counted in `SkippedDocuments`;
a row that a table cannot be read beyond raises UserError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from fledgling.config import UserError, did_you_mean
from fledgling.files import list_names, split_suffixes
from fledgling.files.columns import fold_name
from fledgling.files.opening import IF_ENCODED
from fledgling.files.parquet import iterate_batches, open_parquet
from fledgling.files.values import Unreadable, iterate_json, parse_json_line, read_lines, read_table
from fledgling.text.form_columns import MESSAGE_ALONE

TEXT_COLUMNS = ("text", "content")  # searched for text, in this order, when no column is named
NAME_COLUMN = (
    "name yours after the path: PATH?text=COLUMN of documents, PATH?prompt=COLUMN&answer=COLUMN of conversations"
)


class NoTextColumnError(UserError):
    """A file of rows has no column of text; in a folder, a .json or .csv file of another purpose is passed over."""


@dataclass
class SkippedDocuments:
    """Counts of skipped documents, with the first example of each kind; `str()` gives one line, or ""."""

    empty: int = 0
    undecodable: int = 0
    broken: int = 0
    textless: int = 0  # files of rows in a folder that have no column of text
    first_empty: str = ""
    first_undecodable: str = ""
    first_broken: str = ""
    first_textless: str = ""

    def add(self, reason: str, origin: str) -> None:
        """Counts one document under "empty", "undecodable", "broken" or "textless"."""
        if not getattr(self, reason):
            setattr(self, f"first_{reason}", origin)
        setattr(self, reason, getattr(self, reason) + 1)

    def __add__(self, other: SkippedDocuments) -> SkippedDocuments:
        kinds = ("empty", "undecodable", "broken", "textless")
        counts = {kind: getattr(self, kind) + getattr(other, kind) for kind in kinds}
        firsts = (f"first_{kind}" for kind in kinds)
        return SkippedDocuments(**counts, **{name: getattr(self, name) or getattr(other, name) for name in firsts})

    @property
    def total(self) -> int:
        """All skipped documents."""
        return self.empty + self.undecodable + self.broken + self.textless

    def __str__(self) -> str:
        counted = [
            (self.empty, "empty", self.first_empty),
            (self.undecodable, "not UTF-8 text", self.first_undecodable),
            (self.broken, "malformed", self.first_broken),
            (self.textless, "files without a column of text", self.first_textless),
        ]
        reports = [f"{count:,} {what} (first: {first})" for count, what, first in counted if count]
        return f"skipped {', '.join(reports)}" if reports else ""

    def explain(self) -> str:
        """Returns what is skipped, and how to convert a file if most of it is not UTF-8."""
        return f"{self}; {IF_ENCODED}" if 2 * self.undecodable > self.total else str(self)


def decode_text(raw: bytes) -> str | None:
    """Returns the text without byte-order mark, NULs and carriage returns, or None when it is not UTF-8.

    Above 10 % NULs it is taken for UTF-16 or a binary file: None, too.
    """
    nulls = raw.count(0)
    if nulls > 0.1 * len(raw):
        return None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def _find_text_column(names: Iterable[str], requested: str | None, file: Path) -> str:
    """Returns the column that holds the text. Raises UserError, naming the columns there are."""
    names = list(names)
    by_folded_name = {**{fold_name(name): name for name in names}, **{name: name for name in names}}
    if requested is None:
        column = next((by_folded_name[name] for name in TEXT_COLUMNS if name in by_folded_name), None)
        if {"role", "content"} <= by_folded_name.keys():
            raise NoTextColumnError(f"{file}: has messages, a row each, not documents; {MESSAGE_ALONE}")
        if column is not None:
            return column
        if "messages" in names:
            raise NoTextColumnError(
                f'{file}: has conversations ("messages"), not documents; use it as chat:{file} in the mixture of '
                f"midtrain or sft (`fledgling data inspect chat:{file}` shows them)"
            )
        present = list_names(names)
        raise NoTextColumnError(f"{file}: no column {' or '.join(TEXT_COLUMNS)} among {present}; {NAME_COLUMN}")
    if requested not in names and fold_name(requested) not in by_folded_name:
        hint = did_you_mean(requested, names)
        raise NoTextColumnError(f'{file}: no column "{requested}"{hint}; expected one of {list_names(names)}')
    return requested if requested in names else by_folded_name[fold_name(requested)]


def read_json_lines(
    handle: BinaryIO,
    file: Path,
    name: str,
    requested: str | None,
    skipped: SkippedDocuments,
    part: tuple[int, int] | None,
) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes of the text column, origin) of each line that holds an object.

    Args:
        handle: of the file, at its beginning.
        file: for error messages.
        name: for the origin of a line, NAME:NUMBER; in a part that does not begin the file, "NAME from byte N:NUMBER",
            counted from the beginning of the part.
        requested: the column of the text; None: the one that has it.
        skipped: counts lines that are left out.
        part: [first, last) bytes, in which the lines that are read begin; None: all.
    """
    column = None
    offset, last = part or (0, 1 << 62)
    if offset:
        name = f"{name} from byte {offset:,}"
        handle.seek(offset - 1)
        offset += next(read_lines(handle), (1, b""))[0] - 1  # skip the end of a line that began in the part before
    lines = read_lines(handle)
    for number in count(1):
        if offset >= last or (entry := next(lines, None)) is None:
            return
        size, line = entry
        offset += size
        row, origin = parse_json_line(line), f"{name}:{number}"
        if row is None:
            skipped.add("empty", origin)
        elif isinstance(row, dict):
            column = column or _find_text_column(row, requested, file)
            yield _text_of(row, column, f"{file}: line {number}"), origin
        else:
            skipped.add(_reason_of(row, line), origin)


def _reason_of(value: Any, line: bytes | None = None) -> str:
    """Returns the count, "broken" or "undecodable", that a value which is not an object adds to."""
    is_text = not isinstance(value, Unreadable) or (not value.undecodable and (line is None or decode_text(line)))
    return "broken" if is_text else "undecodable"


def _text_of(row: dict[str, Any], column: str, place: str) -> bytes:
    """Returns the bytes of a row's text, b"" for none. Raises UserError for a value that is no text."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UserError(f'{place}, "{column}" is {type(value).__name__}; expected text, name another column')
    return (value or "").encode("utf-8", "surrogatepass")


def read_json_rows(
    handle: BinaryIO, file: Path, name: str, requested: str | None, skipped: SkippedDocuments
) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of a .json file: one array of objects or texts, one object, or an object on each line.

    Args:
        handle: of the file, at its beginning.
        file: for error messages.
        name: for the origin of a row.
        requested: the column of the text; None: the one that has it.
        skipped: counts rows that are left out.
    """
    column = None
    for number, row in enumerate(iterate_json(handle), 1):
        origin = f"{name}:{number}"
        if isinstance(row, str):
            yield row.encode("utf-8", "surrogatepass"), origin
        elif isinstance(row, dict):
            column = column or _find_text_column(row, requested, file)
            yield _text_of(row, column, f"{file}: entry {number}"), origin
        else:
            skipped.add(_reason_of(row), origin)


def read_csv_rows(
    handle: BinaryIO, file: Path, name: str, requested: str | None, skipped: SkippedDocuments
) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of a .csv or .tsv file, whose first line names its columns.

    Args:
        handle: of the file, at its beginning.
        file: for error messages, and whether its columns are separated by tabs.
        name: for the origin of a row.
        requested: the column of the text; None: the one that has it.
        skipped: counts rows that are left out.
    """
    column = None
    for number, row in enumerate(read_table(handle, split_suffixes(file)[0] == ".tsv"), 1):
        if not isinstance(row, Unreadable):
            column = column or _find_text_column(row, requested, file)
            yield row[column].encode("utf-8", "surrogateescape"), f"{name}:{number}"
        elif row.ends_file:
            raise (NoTextColumnError if column is None else UserError)(f"{file}: {row}; write it again")
        else:
            skipped.add("broken", f"{name}:{number}")


def count_row_groups(file: Path) -> int:
    """Returns the number of row groups of a parquet file. Raises UserError for a corrupt one."""
    with open_parquet(file) as table:
        return table.num_row_groups


def read_parquet_rows(
    file: Path, name: str, requested: str | None, part: tuple[int, int] | None
) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of the rows of a parquet file; part: [first, last) row groups, None for all."""
    import pyarrow

    texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())
    with open_parquet(file) as table:
        schema = table.schema_arrow
        column = _find_text_column(schema.names, requested, file)
        kind = schema.field(column).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if kind not in texts:
            raise UserError(f'{file}: column "{column}" is {kind}; expected text, name another column')
        first, last = part or (0, table.num_row_groups)
        row = sum(table.metadata.row_group(group).num_rows for group in range(first))
        groups = list(range(first, last))
        for batch in iterate_batches(table, file, groups, [column]):
            # As bytes, so that one row that is not UTF-8 costs one row and not the batch.
            for value in batch.column(0).cast(kind).cast(pyarrow.large_binary()).to_pylist():
                row += 1
                yield value or b"", f"{name}:{row}"
