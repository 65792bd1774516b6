"""Files that a user provides: the data folder, and rows of JSONL and parquet files.

Each row comes with its "FILE:LINE", so that an error can name the place however much later it is found. Packages that
do not import each other (corpora, tasks) read rows through this module. It knows no columns and imports no torch.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fledgling.config import UserError

ROW_FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
JSONL_FORMAT = '{"name": value, ...} on each line'
LINES_PER_BLOCK = 1024


def resolve_data_root(explicit: str | Path | None = None) -> Path:
    """Returns the data folder: `explicit`, else the variable FLEDGLING_DATA, else ~/.cache/fledgling."""
    root = explicit or os.environ.get("FLEDGLING_DATA") or Path.home() / ".cache" / "fledgling"
    return Path(root).expanduser()


def stat_files(paths: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Returns (path, modification time in nanoseconds, bytes) of each file, as a key for caching its content."""
    return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a file that can be read without the others: a parquet row group, or lines of a JSONL file.

    first_row: number of the block's first row, or line, counted from 1. offset: index of the row group, or the byte
    of the first line.
    """

    path: Path
    row_count: int
    first_row: int
    offset: int

    def read_rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yields each row with its "FILE:LINE". Raises UserError for a line that is not a JSON object."""
        if self.path.suffix == ".parquet":
            yield from _read_row_group(self)
            return
        with _open(self.path) as handle:
            handle.seek(self.offset)
            rows_left, number = self.row_count, self.first_row
            while rows_left and (line := _read_line(handle, self.path, number)):
                if line.strip():
                    rows_left -= 1
                    yield _parse_object(line, self.path, number), f"{self.path}:{number}"
                number += 1


def list_row_blocks(path: Path) -> list[RowBlock]:
    """Returns the blocks of a .jsonl, .jsonl.gz or .parquet file in order, without keeping its rows.

    Empty lines are skipped. Raises UserError for a file that is missing, damaged or of another kind.
    """
    if not path.name.endswith(ROW_FILE_SUFFIXES):
        expected = ", ".join(ROW_FILE_SUFFIXES)
        raise UserError(f"{path}: cannot read rows from this kind of file; expected {expected}")
    if path.suffix == ".parquet":
        return _list_row_groups(path)
    blocks: list[RowBlock] = []
    with _open(path) as handle:
        count = number = offset = 0
        first_row = 1
        while line := _read_line(handle, path, number + 1):
            number += 1
            count += bool(line.strip())
            if count == LINES_PER_BLOCK and path.suffix != ".gz":  # seeking in a .gz reads all that comes before
                blocks.append(RowBlock(path, count, first_row, offset))
                count, first_row, offset = 0, number + 1, handle.tell()
    return [*blocks, RowBlock(path, count, first_row, offset)] if count else blocks


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every row of a file with its "FILE:LINE"; skips empty lines. Raises as `list_row_blocks` does."""
    for block in list_row_blocks(path):
        yield from block.read_rows()


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and --data-dir") from None


def _read_line(handle: BinaryIO, path: Path, number: int) -> bytes:
    try:
        return handle.readline()
    except (EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged or cut off at line {number} ({reason}); fetch or copy it again") from None


def _parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    place = f"{path}:{number}"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: {path.name} is not UTF-8 (byte {error.start} of the line); save it so") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        torn = "" if line.endswith(b"\n") else "; the file ends there, so it was cut off: fetch or copy it again"
        column = getattr(error, "colno", 1)
        raise UserError(f"{place}: not JSON ({reason} at column {column}), expected {JSONL_FORMAT}{torn}") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: a {type(value).__name__}, expected {JSONL_FORMAT}")
    return value


def _list_row_groups(path: Path) -> list[RowBlock]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            sizes = [table.metadata.row_group(index).num_rows for index in range(table.metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise _parquet_error(path, error) from None
    blocks, first_row = [], 1
    for index, row_count in enumerate(sizes):
        blocks.append(RowBlock(path, row_count, first_row, index))
        first_row += row_count
    return blocks


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
    return UserError(f"{path}: damaged or not a parquet file ({reason}); fetch or copy it again")
