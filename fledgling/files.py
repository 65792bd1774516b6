"""Files that a user provides: the data folder, what a folder holds, and rows of JSONL, JSON and parquet files.

Each row comes with its "FILE:LINE", so that an error can name the place however much later it is found. Packages that
do not import each other (corpora, tasks) read rows through this module. It knows no columns and imports no torch.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from fledgling.config import UserError

COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
LINE_SUFFIXES = (".jsonl", ".ndjson")
ROW_SUFFIXES = (*LINE_SUFFIXES, ".json", ".parquet")
ROW_FILES = ".jsonl, .json (also compressed: .gz .zst .bz2 .xz) or .parquet"  # in messages
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)  # raised by reading a damaged compressed file
JSONL_FORMAT = '{"name": value, ...} on each line'
LINES_PER_BLOCK = 1024


def resolve_data_root(explicit: str | Path | None = None) -> Path:
    """Returns the data folder: `explicit`, else the variable FLEDGLING_DATA, else ~/.cache/fledgling."""
    root = explicit or os.environ.get("FLEDGLING_DATA") or Path.home() / ".cache" / "fledgling"
    return Path(root).expanduser()


FileStamps = tuple[tuple[Path, int, int, int], ...]


def stat_files(paths: Iterable[Path]) -> FileStamps:
    """Returns (path, times of modification and of change in nanoseconds, bytes) of each file, as a key for a cache.

    The time of change, which no program can set, tells an edit that keeps size and time of modification.
    """
    stats = [(path, path.stat()) for path in paths]
    return tuple((path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size) for path, stat in stats)


# ---- kinds of files, and folders -----------------------------------------------------------------


def split_suffixes(path: Path) -> tuple[str, str]:
    """Returns the suffix of a file's kind and that of its compression, in lower case: a.JSONL.gz is (.jsonl, .gz)."""
    name = path.name.lower()
    packed = next((suffix for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), "")
    return Path(name.removesuffix(packed)).suffix, packed


def is_row_file(path: Path) -> bool:
    """Returns whether `read_rows` reads this kind of file, judged by its name."""
    kind, packed = split_suffixes(path)
    return kind in ROW_SUFFIXES and not (packed and kind == ".parquet")


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading, decompressed as its name says. Raises OSError; reading raises one of `DAMAGED`."""
    packed = split_suffixes(path)[1]
    if packed == ".zst":
        import pyarrow

        return io.BufferedReader(cast(io.RawIOBase, pyarrow.input_stream(str(path), compression="zstd")))
    openers: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return cast(BinaryIO, openers[packed](path)) if packed else path.open("rb")


@dataclass
class FolderContents:
    """The files of a folder that are read, in order of their paths, and how many others are passed over, and why."""

    files: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)  # reason -> files
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first of them

    def pass_over(self, reason: str, name: str) -> None:
        """Counts one file or folder that is not read."""
        self.passed_over[reason] += 1
        self.examples[reason] = min(self.examples.get(reason, name), name)

    def describe(self) -> str:
        """Returns "12 files (8 .txt, 4 .jsonl.gz); passed over 3: 2 .pdf (first: a.pdf), 1 hidden (first: .git)"."""
        kinds = Counter("".join(split_suffixes(file)) for file in self.files)
        read = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
        text = f"{len(self.files):,} file{'s' * (len(self.files) != 1)}" + (f" ({read})" if read else "")
        others = [f"{n:,} {reason} (first: {self.examples[reason]})" for reason, n in sorted(self.passed_over.items())]
        return text + (f"; passed over {self.passed_over.total():,}: {', '.join(others)}" if others else "")


def list_folder(folder: Path, is_known: Callable[[Path], bool]) -> FolderContents:
    """Returns the files in a folder at any depth that `is_known` and can be read, and counts all others by reason.

    Hidden folders, folders that may not be opened and links to folders count as one each.
    """
    contents = FolderContents()

    def count_closed(error: OSError) -> None:
        contents.pass_over("may not be read", Path(error.filename).relative_to(folder).as_posix() + "/")

    for parent, folders, names in os.walk(folder, onerror=count_closed):
        for name in sorted(folders):
            path = Path(parent, name)
            if name.startswith(".") or path.is_symlink():
                folders.remove(name)
                reason = "hidden" if name.startswith(".") else "link to a folder"
                contents.pass_over(reason, path.relative_to(folder).as_posix() + "/")
        for name in names:
            path = Path(parent, name)
            if reason := _reason_to_pass_over(path, is_known):
                contents.pass_over(reason, path.relative_to(folder).as_posix())
            else:
                contents.files.append(path)
    contents.files.sort(key=lambda file: file.relative_to(folder).as_posix())
    return contents


def _reason_to_pass_over(path: Path, is_known: Callable[[Path], bool]) -> str:
    """Returns why a file is not read, or ""."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink() and not path.exists():
        return "broken link"
    if not path.is_file():
        return "no regular file"
    if not is_known(path):
        return "".join(split_suffixes(path)) or "without a suffix"
    return "" if os.access(path, os.R_OK) else "may not be read"


# ---- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a file that can be read without the others: a parquet row group, or lines of a JSONL file.

    A .json file, one array of objects, is one block.

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
        if split_suffixes(self.path)[0] == ".json":
            yield from _read_json_file(self.path)
            return
        with _open(self.path) as handle:
            if self.offset:  # not in a compressed file, which cannot be searched
                handle.seek(self.offset)
            rows_left, number = self.row_count, self.first_row
            while rows_left and (line := _read_line(handle, self.path, number)):
                if line.strip():
                    rows_left -= 1
                    yield _parse_object(line, self.path, number), f"{self.path}:{number}"
                number += 1


def list_row_blocks(path: Path) -> list[RowBlock]:
    """Returns the blocks of a file of rows (`ROW_FILES`) in order, without keeping its rows.

    Empty lines are skipped. Raises UserError for a file that is missing, damaged or of another kind.
    """
    if not is_row_file(path):
        raise UserError(f"{path}: cannot read rows from this kind of file; expected {ROW_FILES}")
    kind, packed = split_suffixes(path)
    if kind == ".parquet":
        return _list_row_groups(path)
    if kind == ".json":
        count = sum(1 for _ in _read_json_file(path))
        return [RowBlock(path, count, 1, 0)] if count else []
    blocks: list[RowBlock] = []
    with _open(path) as handle:
        count = number = offset = 0
        first_row = 1
        while line := _read_line(handle, path, number + 1):
            number += 1
            count += bool(line.strip())
            if count == LINES_PER_BLOCK and not packed:  # seeking in a compressed file reads all that comes before
                blocks.append(RowBlock(path, count, first_row, offset))
                count, first_row, offset = 0, number + 1, handle.tell()
    return [*blocks, RowBlock(path, count, first_row, offset)] if count else blocks


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every row of a file with its "FILE:LINE"; skips empty lines. Raises as `list_row_blocks` does."""
    for block in list_row_blocks(path):
        yield from block.read_rows()


def _open(path: Path) -> BinaryIO:
    try:
        return open_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path and --data-dir") from None


def _read_line(handle: BinaryIO, path: Path, number: int) -> bytes:
    try:
        return handle.readline()
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged or cut off at line {number} ({reason}); fetch or copy it again") from None


def _read_json_file(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the objects of a .json file with their "FILE:NUMBER": of one array, one object, or one on each line."""
    with _open(path) as handle:
        try:
            content = handle.read()
        except DAMAGED as error:
            raise UserError(f"{path}: damaged or cut off ({error}); fetch or copy it again") from None
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            if line.strip():
                yield _parse_object(line, path, number), f"{path}:{number}"
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a {type(row).__name__}, expected an array of {{...}}")
        yield row, f"{path}:{number}"


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
