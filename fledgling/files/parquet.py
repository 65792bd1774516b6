"""Parquet files: opened with errors of one line, and read in memory that does not grow with the file.

A page of a few bytes may expand to gigabytes, and one value of a dictionary may be that of every row, so the rows that
are read at a time follow from the sizes that the file states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.files.opening import CORRUPT_FILE_ERRORS, open_parquet_bytes, require_expansion
from fledgling.files.values import MAX_ROW_BYTES

BATCH_ROWS = 256  # at a time, at most


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Opens a parquet file, decompressed if its name says so, as pyarrow's ParquetFile.

    Raises UserError for one that is missing or corrupt, also while it is read, and for one that expands more than
    `opening.MAX_EXPANSION` times.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(open_parquet_bytes(path)) as table:
            groups = (table.metadata.row_group(index) for index in range(table.num_row_groups))
            require_expansion(path, path.stat().st_size, sum(group.total_byte_size for group in groups))
            yield table
    except FileNotFoundError:
        raise UserError(f"cannot read {path}: no such file; check the path and --data-dir") from None
    except (*CORRUPT_FILE_ERRORS, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: corrupt or not a parquet file ({reason}); fetch or copy it again") from None


def iterate_batches(
    table: Any, path: Path, groups: Sequence[int] | None = None, columns: list[str] | None = None
) -> Iterator[Any]:
    """Yields the rows of a table's row groups, None for all, in batches of about `MAX_ROW_BYTES` at most.

    Raises UserError for a row group whose rows have more bytes than that on average.
    """
    for index in range(table.num_row_groups) if groups is None else groups:
        group = table.metadata.row_group(index)
        if group.total_byte_size > MAX_ROW_BYTES * max(1, group.num_rows):
            raise UserError(f"{path}: its rows are longer than {MAX_ROW_BYTES:,} bytes, so they are no rows of text")
        yield from table.iter_batches(batch_size=count_batch_rows(group), row_groups=[index], columns=columns)


def count_batch_rows(group: Any) -> int:
    """Returns how many rows take about `MAX_ROW_BYTES`, at most `BATCH_ROWS`.

    Each value of a column with a dictionary counts as the whole dictionary: it may be its only entry.
    """
    rows = max(1, group.num_rows)
    size = group.total_byte_size / rows
    for chunk in map(group.column, range(group.num_columns)):
        if chunk.has_dictionary_page:
            packed = chunk.data_page_offset - chunk.dictionary_page_offset
            unpacked = packed * chunk.total_uncompressed_size / max(1, chunk.total_compressed_size)
            size += unpacked * chunk.num_values / rows
    return int(min(BATCH_ROWS, max(1, MAX_ROW_BYTES / max(1, size))))
