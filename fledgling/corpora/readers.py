"""Readers of the user's own text: text files, JSON lines, parquet, and folders of them, as a stream of documents.

    .txt .md    a file of up to 1 MB is one document; a larger one is cut at blank lines into pieces of at least 8 KB,
                and at lines that read <|endoftext|>, which some data sets put between documents
    .jsonl      one object a line; the text is in "text" or "content", or in the column that the caller names
    .parquet    the same columns, read batch by batch
    .gz         of .txt, .md and .jsonl, decompressed while it is read
    a folder    all of these in it, at any depth, sorted by path; hidden files and other kinds are ignored

Start with `read_documents`. The order depends on names alone, and memory does not grow with the size of a file.
Documents that cannot be used (empty, not UTF-8) are skipped and counted in `SkippedDocuments`. Conversations are read
by `fledgling.tasks.conversations`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

from fledgling.config import UserError, did_you_mean
from fledgling.corpora.document import Document

TEXT_SUFFIXES, JSONL_SUFFIXES, PARQUET_SUFFIXES = (
    (".txt", ".md", ".text", ".markdown"),
    (".jsonl", ".ndjson"),
    (".parquet",),
)
TEXT_COLUMNS = ("text", "content")  # searched for text, in this order, when no column is named
MAX_UNSPLIT_FILE = 1_000_000  # bytes; a larger text file is cut into pieces
MIN_PIECE = 8_000  # bytes from which a piece ends at the next blank line
MAX_LINE = 1 << 20  # bytes; a longer line of text is cut
MAX_JSON_LINE = 1 << 26  # bytes; a longer JSON line is skipped
DOCUMENT_SEPARATOR = b"<|endoftext|>"
BATCH_ROWS = 256  # rows of a parquet file in memory at a time
COMPRESSION_RATIO = 3  # bytes of text per byte of a compressed file, about
PROGRESS_INTERVAL = 1_000  # documents between two calls of `progress`

ReadProgress = Callable[[str, int], None]  # (file being read, documents so far)


@dataclass
class SkippedDocuments:
    """Counts of skipped documents, with the first example of each kind; `str()` gives one line, or ""."""

    empty: int = 0
    undecodable: int = 0
    broken: int = 0
    first_empty: str = ""
    first_undecodable: str = ""
    first_broken: str = ""

    def add(self, reason: str, origin: str) -> None:
        """Counts one document under "empty", "undecodable" or "broken"."""
        if not getattr(self, reason):
            setattr(self, f"first_{reason}", origin)
        setattr(self, reason, getattr(self, reason) + 1)

    def __add__(self, other: SkippedDocuments) -> SkippedDocuments:
        kinds = ("empty", "undecodable", "broken")
        counts = {kind: getattr(self, kind) + getattr(other, kind) for kind in kinds}
        firsts = (f"first_{kind}" for kind in kinds)
        return SkippedDocuments(**counts, **{name: getattr(self, name) or getattr(other, name) for name in firsts})

    @property
    def total(self) -> int:
        """All skipped documents."""
        return self.empty + self.undecodable + self.broken

    def __str__(self) -> str:
        counted = [
            (self.empty, "empty", self.first_empty),
            (self.undecodable, "not UTF-8 text", self.first_undecodable),
            (self.broken, "not a JSON object", self.first_broken),
        ]
        reports = [f"{count:,} {what} (first: {first})" for count, what, first in counted if count]
        return f"skipped {', '.join(reports)}" if reports else ""


def read_documents(
    path: str | Path,
    text_column: str | None = None,
    progress: ReadProgress | None = None,
    skipped: SkippedDocuments | None = None,
) -> Iterator[Document]:
    """Returns an iterator over the documents of a file or folder, in order.

    Args:
        path: a file of a known kind, or a folder.
        text_column: the column of JSON lines or parquet that holds the text; None for the first of `TEXT_COLUMNS`.
        progress: is called with each file and the number of documents so far.
        skipped: counts the documents that are skipped.

    Raises:
        UserError: at once for a path that is missing or of an unknown kind; while reading for a missing column, a
            damaged file, or a source without any document.
    """
    root = Path(path)
    files = list_source_files(root)
    return _read_files(root, files, text_column, progress, SkippedDocuments() if skipped is None else skipped)


def list_source_files(path: Path) -> list[Path]:
    """Returns the readable files under `path`, sorted. Raises UserError when there are none."""
    kinds = " ".join((*TEXT_SUFFIXES[:2], JSONL_SUFFIXES[0], *PARQUET_SUFFIXES))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected {kinds}, these with .gz, or a folder of them")
    if path.is_file():
        if _file_kind(path) is None:
            raise UserError(f"{path}: cannot read this kind of file; expected {kinds}, or text with .gz")
        return [path]
    candidates = (file for file in path.rglob("*") if file.is_file() and _file_kind(file))
    files = sorted(
        (file for file in candidates if not any(part.startswith(".") for part in file.relative_to(path).parts)),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    if not files:
        raise UserError(f"{path}: nothing to read in this folder; expected {kinds}, or text with .gz")
    return files


def estimate_text_bytes(file: Path) -> int:
    """Returns about how many bytes of text a file holds; parquet and .gz compress text to about a third."""
    packed = _file_kind(file) is PARQUET_SUFFIXES or file.name.lower().endswith(".gz")
    return file.stat().st_size * (COMPRESSION_RATIO if packed else 1)


def _file_kind(path: Path) -> tuple[str, ...] | None:
    """Returns the suffixes of a file's kind, judged by its name, or None for an unknown kind."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    return next(
        (
            kind
            for kind in (TEXT_SUFFIXES, JSONL_SUFFIXES, PARQUET_SUFFIXES)
            if suffix in kind and not (packed and kind is PARQUET_SUFFIXES)
        ),
        None,
    )


def _read_files(
    root: Path, files: list[Path], column: str | None, progress: ReadProgress | None, skipped: SkippedDocuments
) -> Iterator[Document]:
    count = 0
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        if progress:
            progress(name, count)
        for document in read_file_part(file, name, column, skipped):
            yield document
            count += 1
            if progress and count % PROGRESS_INTERVAL == 0:
                progress(name, count)
    if not count:
        reason = f"; {skipped}" if skipped.total else ""
        raise UserError(f"{root}: no document in it{reason}; give a source with some text")


def read_file_part(
    file: Path, name: str, column: str | None, skipped: SkippedDocuments, part: tuple[int, int] | None = None
) -> Iterator[Document]:
    """Yields the documents of one file, or of a part of it.

    Args:
        name: the file's name in the origin of its documents.
        part: [first, last) row groups of a parquet file, or bytes of a JSON lines file; a line belongs to the part in
            which it begins. None for the whole file.
    """
    for raw, origin in _read_raw(file, name, column, skipped, part):
        text = _decode(raw)
        if text is None:
            skipped.add("undecodable", origin)
        elif not text.strip():
            skipped.add("empty", origin)
        else:
            yield Document(text, "file", origin)


def split_file(file: Path, size: int) -> list[tuple[int, int] | None]:
    """Returns parts of about `size` bytes that `read_file_part` reads, or [None] when the file is one part.

    Raises UserError for a damaged parquet file.
    """
    file_bytes = file.stat().st_size
    count = round(file_bytes / size)
    if count <= 1:
        return [None]
    if _file_kind(file) is PARQUET_SUFFIXES:
        last = _count_row_groups(file)
    else:
        last = file_bytes if _file_kind(file) is JSONL_SUFFIXES and not file.name.lower().endswith(".gz") else 0
    edges = sorted({last * edge // count for edge in range(count + 1)})
    return list(pairwise(edges)) or [None]


def _read_raw(
    file: Path, name: str, column: str | None, skipped: SkippedDocuments, part: tuple[int, int] | None
) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of each document of a file. Raises UserError for a damaged file."""
    kind = _file_kind(file)
    try:
        if kind is PARQUET_SUFFIXES:
            yield from _read_parquet_rows(file, name, column, part)
            return
        open_file = gzip.open if file.name.lower().endswith(".gz") else open
        with cast(BinaryIO, open_file(file, "rb")) as handle:
            if kind is JSONL_SUFFIXES:
                yield from _read_json_rows(handle, file, name, column, skipped, part)
            else:
                yield from _read_text_pieces(handle, name)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged or cut short ({error}); expected gzip, fetch or pack it again") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); check the file and its rights") from None


def _decode(raw: bytes) -> str | None:
    """Returns the text without byte-order mark, NULs and carriage returns, or None when it is not UTF-8."""
    nulls = raw.count(0)
    if nulls > 0.1 * len(raw):
        return None  # UTF-16 or a binary file under a wrong name
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


# ---- text ----------------------------------------------------------------------------------------


def _read_lines(handle: BinaryIO) -> Iterator[bytes]:
    """Yields lines of at most about `MAX_LINE` bytes, cut only between UTF-8 characters."""
    rest = b""
    while line := handle.readline(MAX_LINE):
        line = rest + line
        cut = len(line)
        if not line.endswith(b"\n"):
            for back in range(1, min(4, len(line)) + 1):  # a lead byte among the last four bytes begins a character
                if line[-back] >= 0xC0:
                    length = 2 + (line[-back] >= 0xE0) + (line[-back] >= 0xF0)
                    cut = len(line) - back if back < length else len(line)
                    break
        rest = line[cut:]
        yield line[:cut]
    if rest:
        yield rest


def _read_text_pieces(handle: BinaryIO, name: str) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of a small text file, or of the pieces of a large one."""
    start = handle.read(MAX_UNSPLIT_FILE + 1)
    if len(start) <= MAX_UNSPLIT_FILE and DOCUMENT_SEPARATOR not in start:
        yield start, name
        return
    handle.seek(0)
    piece: list[bytes] = []
    size, first = 0, 1
    for number, line in enumerate(_read_lines(handle), 1):
        blank = not line.strip()
        separates = line.strip() == DOCUMENT_SEPARATOR
        if not separates:
            piece.append(line)
            size += len(line)
        if size and (separates or (blank and size >= MIN_PIECE) or size >= MAX_UNSPLIT_FILE):
            yield b"".join(piece).strip(b"\n"), f"{name}:{first}"
            piece, size, first = [], 0, number + 1
    if size:
        yield b"".join(piece).strip(b"\n"), f"{name}:{first}"


# ---- rows ----------------------------------------------------------------------------------------


def _find_text_column(names: Iterable[str], requested: str | None, file: Path) -> str:
    """Returns the column that holds the text. Raises UserError, naming the columns there are."""
    names = list(names)
    if requested is None:
        column = next((name for name in TEXT_COLUMNS if name in names), None)
        if column:
            return column
        if "messages" in names:
            raise UserError(f'{file}: has conversations ("messages"), not documents; use it as chat:{file}')
        present = ", ".join(names) or "none"
        raise UserError(f"{file}: no column {' or '.join(TEXT_COLUMNS)} among {present}; name the text column")
    if requested not in names:
        hint = did_you_mean(requested, names)
        raise UserError(f'{file}: no column "{requested}"{hint}; expected one of {", ".join(names) or "none"}')
    return requested


def _read_json_rows(
    handle: BinaryIO,
    file: Path,
    name: str,
    requested: str | None,
    skipped: SkippedDocuments,
    part: tuple[int, int] | None,
) -> Iterator[tuple[bytes, str]]:
    column = None
    number, offset, last = 0, *(part or (0, 1 << 62))
    if offset:
        name = f"{name} from byte {offset:,}"
        handle.seek(offset - 1)
        offset += len(handle.readline()) - 1  # skip the end of a line that began in the part before
    while offset < last and (line := handle.readline(MAX_JSON_LINE)):
        offset += len(line)
        number += 1
        origin = f"{name}:{number}"
        if len(line) >= MAX_JSON_LINE and not line.endswith(b"\n"):
            while (more := handle.readline(MAX_JSON_LINE)) and not more.endswith(b"\n"):
                offset += len(more)
            offset += len(more)
            skipped.add("broken", origin)
            continue
        text = _decode(line)
        if text is None or not text.strip():
            skipped.add("empty" if text is not None else "undecodable", origin)
            continue
        row = _parse_object(text)
        if row is None:
            skipped.add("broken", origin)
            continue
        column = column or _find_text_column(row, requested, file)
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            what = f'{file}: line {number}, "{column}" is {type(value).__name__}'
            raise UserError(f"{what}; expected text, name another column")
        yield (value or "").encode("utf-8", "surrogatepass"), origin


def _parse_object(text: str) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


@contextmanager
def _open_parquet(file: Path) -> Iterator[Any]:
    """Opens a parquet file. Raises UserError for a damaged one."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: damaged or no parquet file ({reason}); fetch or write it again") from None


def _count_row_groups(file: Path) -> int:
    with _open_parquet(file) as table:
        return table.num_row_groups


def _read_parquet_rows(
    file: Path, name: str, requested: str | None, part: tuple[int, int] | None
) -> Iterator[tuple[bytes, str]]:
    import pyarrow

    texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary())
    with _open_parquet(file) as table:
        schema = table.schema_arrow
        column = _find_text_column(schema.names, requested, file)
        kind = schema.field(column).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if kind not in texts:
            raise UserError(f'{file}: column "{column}" is {kind}; expected text, name another column')
        first, last = part or (0, table.num_row_groups)
        row = sum(table.metadata.row_group(group).num_rows for group in range(first))
        groups = list(range(first, last))
        for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=[column]):
            # As bytes, so that one row that is not UTF-8 costs one row and not the batch.
            for value in batch.column(0).cast(kind).cast(pyarrow.large_binary()).to_pylist():
                row += 1
                yield value or b"", f"{name}:{row}"
