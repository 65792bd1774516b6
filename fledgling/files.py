"""Files that a user brings: the folder they lie in, and their rows, each with the place it was read at.

The one idea: a row travels with its `FILE:LINE`, so whoever finds it wrong, however much later, can say
where. Rooms that must not know each other (data, tasks) read through this.

What it is not: it knows no column. Floor 0; no torch.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fledgling.config import UserError

ROW_FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
JSONL_FORMAT = '{"name": value, ...} on each line'
LINES_PER_BLOCK = 1024  # lines of a JSONL file in one block


def resolve_data_root(explicit: str | Path | None = None) -> Path:
    """Return the folder that data lies in: the one given, else `FLEDGLING_DATA`, else ~/.cache/fledgling."""
    chosen = explicit or os.environ.get("FLEDGLING_DATA") or Path.home() / ".cache" / "fledgling"
    return Path(chosen).expanduser()


def stat_files(paths: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Return (path, nanosecond of the last change, bytes) of each file: a key under which its content may be kept."""
    return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a file that can be read without the others: a parquet row group, or lines in a row.

    count: its rows. first: number of its first row, or line, in the file, from 1. place: the row group, or the
    byte of the first line.
    """

    path: Path
    row_count: int
    first_row: int
    offset: int

    def read_rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Return each row with its "FILE:LINE". Raises UserError for a line that is no JSON object."""
        if self.path.suffix == ".parquet":
            yield from _read_row_group(self)
            return
        with _open(self.path) as handle:
            handle.seek(self.offset)
            left, number = self.row_count, self.first_row
            while left and (line := _read_line(handle, self.path, number)):
                if line.strip():
                    left -= 1
                    yield _parse_object(line, self.path, number), f"{self.path}:{number}"
                number += 1


def list_row_blocks(path: Path) -> list[RowBlock]:
    """Return the blocks of a .jsonl, .jsonl.gz or .parquet file, in order, without keeping its rows.

    Empty lines are passed over. Raises UserError for a file that is missing, damaged or of another kind.
    """
    if not path.name.endswith(ROW_FILE_SUFFIXES):
        raise UserError(f"{path}: cannot read rows from this kind of file; expected {', '.join(ROW_FILE_SUFFIXES)}")
    if path.suffix == ".parquet":
        return _list_row_groups(path)
    found: list[RowBlock] = []
    with _open(path) as handle:
        count = number = place = 0
        first = 1
        while line := _read_line(handle, path, number + 1):
            number += 1
            count += bool(line.strip())
            if count == LINES_PER_BLOCK and path.suffix != ".gz":  # there is no cheap way into the middle of a .gz
                found.append(RowBlock(path, count, first, place))
                count, first, place = 0, number + 1, handle.tell()
    return [*found, RowBlock(path, count, first, place)] if count else found


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Return every row of a file with its "FILE:LINE"; empty lines are passed over. Raises as `blocks` does."""
    for block in list_row_blocks(path):
        yield from block.read_rows()


def _open(path: Path) -> BinaryIO:
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and --data-dir") from None


def _read_line(handle: BinaryIO, path: Path, number: int) -> bytes:
    try:
        return handle.readline()
    except (EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged or cut off at line {number} ({reason}); fetch or copy it again") from None


def _parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}:{number}"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path.name} is not UTF-8 (byte {error.start} of the line); save it so") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        torn = "" if line.endswith(b"\n") else "; the file ends there, so it was cut off: fetch or copy it again"
        column = getattr(error, "colno", 1)
        raise UserError(f"{where}: not JSON ({reason} at column {column}), expected {JSONL_FORMAT}{torn}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: a {type(value).__name__}, expected {JSONL_FORMAT}")
    return value


def _list_row_groups(path: Path) -> list[RowBlock]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            sizes = [table.metadata.row_group(index).num_rows for index in range(table.metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise _parquet_error(path, error) from None
    found, first = [], 1
    for index, count in enumerate(sizes):
        found.append(RowBlock(path, count, first, index))
        first += count
    return found


def _read_row_group(block: RowBlock) -> Iterator[tuple[dict[str, Any], str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(block.path) as table:
            values = table.read_row_group(block.offset).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _parquet_error(block.path, error) from None
    for number, row in enumerate(values, block.first_row):
        yield row, f"{block.path}:{number}"


def _parquet_error(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"cannot read {path}: no such file; check the path and --data-dir")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: damaged or no parquet file ({reason}); fetch or copy it again")
