"""Readers of the user's own text: text files, JSON lines, parquet, and folders of them, as a stream of documents.

    .txt .md    a file of up to 1 MB is one document; a larger one is cut at blank lines into pieces of at least 8 KB,
                and at lines that read <|endoftext|>, which some data sets put between documents; of a source of
                training with few files each is cut above 100 KB, also where it has no blank lines
    .jsonl      one object a line; the text is in "text" or "content", or in the column that the caller names
    .json       an array of such objects or of texts, or one object
    .csv .tsv   the same columns, named by the first line
    .parquet    the same columns, read batch by batch
    .gz .zst    .bz2 .xz: any of these, decompressed while it is read (parquet: into a temporary file)
    a folder    all of these in it, at any depth, sorted by path; what is passed over is counted (`list_source`)

Start with `read_documents`. The order depends on names alone, and memory does not grow with the size of a file.
Documents that cannot be used (empty, not UTF-8) are skipped and counted in `SkippedDocuments`. `row_files.py` reads
rows; conversations are read by `fledgling.tasks.conversations`.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from fledgling.config import UserError
from fledgling.corpora.document import Document
from fledgling.corpora.row_files import (
    NoTextColumnError,
    SkippedDocuments,
    count_row_groups,
    decode_text,
    read_csv_rows,
    read_json_lines,
    read_json_rows,
    read_parquet_rows,
)
from fledgling.files import (
    LINE_SUFFIXES,
    TABLE_SUFFIXES,
    TEXT_SUFFIXES,
    FolderContents,
    NotTextError,
    list_folder,
    open_file,
    open_text,
    split_suffixes,
)

VERSION = 4  # raised when the same files give other documents
OTHER_SUFFIXES = (".json", *TABLE_SUFFIXES, ".parquet")
MAX_UNSPLIT_FILE = 1_000_000  # bytes; a larger text file is cut into pieces
FEW_FILES = 10  # fewer files than this are few: too few to hold one out
# The same in a source of few files, so that some of it can be held out, and bytes of the longest piece there.
MAX_UNSPLIT_SOURCE, MAX_SOURCE_PIECE = 100_000, 9_000
MIN_PIECE = 8_000  # bytes from which a piece ends at the next blank line
MAX_LINE = 1 << 20  # bytes; a longer line of text is cut
DOCUMENT_SEPARATOR = b"<|endoftext|>"
COMPRESSION_RATIO = 3  # bytes of text per byte of a compressed file, about
PROGRESS_INTERVAL = 1_000  # documents between two calls of `progress`

ReadProgress = Callable[[str, int], None]  # (file being read, documents so far)


def read_documents(
    path: str | Path,
    text_column: str | None = None,
    progress: ReadProgress | None = None,
    skipped: SkippedDocuments | None = None,
    is_source: bool = False,
) -> Iterator[Document]:
    """Returns an iterator over the documents of a file or folder, in order.

    Args:
        path: a file of a known kind, or a folder.
        text_column: the column of JSON lines or parquet that holds the text; None for the first of `TEXT_COLUMNS`.
        progress: is called with each file and the number of documents so far.
        skipped: counts the documents that are skipped.
        is_source: whether they are split for training, so that few files are cut into more pieces.

    Raises:
        UserError: at once for a path that is missing or of an unknown kind; while reading for a missing column, a
            corrupt file, or a source without any document.
    """
    root = Path(path)
    files = list_source_files(root)
    counted = SkippedDocuments() if skipped is None else skipped
    return _read_files(root, files, text_column, progress, counted, is_source and len(files) < FEW_FILES)


def list_source(path: Path) -> FolderContents:
    """Returns the readable files under `path`, sorted, and counts what is passed over.

    Raises UserError when there are none.
    """
    kinds = " ".join((*TEXT_SUFFIXES[:2], LINE_SUFFIXES[0], *OTHER_SUFFIXES))
    expected = f"expected {kinds}, also with .gz .zst .bz2 .xz"
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {expected}, or a folder of them")
    if path.is_file():
        if not is_text_file(path):
            raise UserError(f"{path}: cannot read this kind of file; {expected}")
        return FolderContents([path])
    if not path.is_dir():
        raise UserError(f"{path}: it is no file and no folder; {expected}, or a folder of them")
    contents = list_folder(path, is_text_file)
    if not contents.files:
        found = f" ({contents.describe()})" if contents.passed_over else ""
        raise UserError(f"{path}: nothing to read in this folder{found}; {expected}")
    return contents


def list_source_files(path: Path) -> list[Path]:
    """Returns the readable files under `path`, sorted. Raises UserError when there are none."""
    return list_source(path).files


def estimate_text_bytes(file: Path) -> int:
    """Returns about how many bytes of text a file holds; parquet and compression make text about a third."""
    kind, packed = split_suffixes(file)
    return file.stat().st_size * (COMPRESSION_RATIO if packed or kind == ".parquet" else 1)


def is_text_file(path: Path) -> bool:
    """Returns whether documents can be read from this kind of file, judged by its name."""
    kind = split_suffixes(path)[0]
    return kind in (*TEXT_SUFFIXES, *LINE_SUFFIXES, *OTHER_SUFFIXES)


def _read_files(
    root: Path,
    files: list[Path],
    column: str | None,
    progress: ReadProgress | None,
    skipped: SkippedDocuments,
    are_few: bool,
) -> Iterator[Document]:
    count = 0
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        if progress:
            progress(name, count)
        read = read_file_part if file == root else read_part_in_folder
        for document in read(file, name, column, skipped, are_few=are_few):
            yield document
            count += 1
            if progress and count % PROGRESS_INTERVAL == 0:
                progress(name, count)
    if not count:
        reason = f"; {skipped.explain()}" if skipped.total else ""
        raise UserError(f"{root}: no document in it{reason}; give a source with some text")


def read_file_part(
    file: Path,
    name: str,
    column: str | None,
    skipped: SkippedDocuments,
    part: tuple[int, int] | None = None,
    are_few: bool = False,
) -> Iterator[Document]:
    """Yields the documents of one file, or of a part of it.

    Args:
        name: the file's name in the origin of its documents.
        part: [first, last) row groups of a parquet file, or bytes of a JSON lines file; a line belongs to the part in
            which it begins. None for the whole file.
        are_few: whether it is of a source of few files, which are cut as `MAX_UNSPLIT_SOURCE` says.
    """
    before, count = skipped.total, 0
    for raw, origin in _read_raw(file, name, column, skipped, part, are_few):
        text, count = decode_text(raw), count + 1
        if text is None:
            skipped.add("undecodable", origin)
        elif not text.strip():
            skipped.add("empty", origin)
        else:
            yield Document(text, "file", origin)
    if not count and skipped.total == before and part is None:
        skipped.add("empty", name)  # a file without any row


def read_part_in_folder(
    file: Path,
    name: str,
    column: str | None,
    skipped: SkippedDocuments,
    part: tuple[int, int] | None = None,
    are_few: bool = False,
) -> Iterator[Document]:
    """Yields as `read_file_part` does; counts a file of rows that is not UTF-8, or has no column of text (.json, .csv).

    Args:
        file: in the folder.
        name: of the file within the folder, for the origin of a document.
        column: of the text in rows; None: the one that has it.
        skipped: counts what is left out.
        part, are_few: as in `read_file_part`.
    """
    try:
        yield from read_file_part(file, name, column, skipped, part, are_few)
    except NotTextError:
        skipped.add("undecodable", name)
    except NoTextColumnError:
        if split_suffixes(file)[0] not in (".json", *TABLE_SUFFIXES):
            raise
        skipped.add("textless", name)  # such as package.json or a list of prices next to the texts


def split_file(file: Path, size: int) -> list[tuple[int, int] | None]:
    """Returns parts of about `size` bytes that `read_file_part` reads, or [None] when the file is one part.

    Raises UserError for a corrupt parquet file.
    """
    file_bytes = file.stat().st_size
    count = round(file_bytes / size)
    if count <= 1:
        return [None]
    kind, packed = split_suffixes(file)
    splits_at_lines = kind in LINE_SUFFIXES and not packed
    last = count_row_groups(file) if kind == ".parquet" and not packed else file_bytes if splits_at_lines else 0
    edges = sorted({last * edge // count for edge in range(count + 1)})
    return list(pairwise(edges)) or [None]


def _read_raw(
    file: Path,
    name: str,
    column: str | None,
    skipped: SkippedDocuments,
    part: tuple[int, int] | None,
    are_few: bool,
) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of each document of a file; the arguments are those of `read_file_part`.

    Raises UserError for a corrupt file.
    """
    kind, packed = split_suffixes(file)
    try:
        if kind == ".parquet":
            yield from read_parquet_rows(file, name, column, part)
        elif kind in TEXT_SUFFIXES:
            yield from _read_text(file, name, are_few)
        else:
            with open_text(file) as handle:
                if kind in LINE_SUFFIXES:
                    yield from read_json_lines(handle, file, name, column, skipped, part)
                elif kind == ".json":
                    yield from read_json_rows(handle, file, name, column, skipped)
                else:
                    yield from read_csv_rows(handle, file, name, column, skipped)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{file}: corrupt or cut short ({error}); expected {packed}, fetch or pack it again") from None
    except OSError as error:
        if packed and error.errno is None:  # of the decompressor
            what = f"corrupt or cut short ({error}); expected {packed}, fetch or pack it again"
        else:
            what = f"cannot be read ({error.strerror or error}); check the file and its rights"
        raise UserError(f"{file}: {what}") from None


# ---- text ----------------------------------------------------------------------------------------


def _read_lines(handle: BinaryIO, longest: int) -> Iterator[bytes]:
    """Yields lines of at most about `longest` bytes, cut only between UTF-8 characters."""
    rest = b""
    while line := handle.readline(longest):
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


def _read_text(file: Path, name: str, are_few: bool) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of a small text file, or of the pieces of a large one.

    Raises NotTextError for a file that begins as one of another kind.
    """
    unsplit, longest = (MAX_UNSPLIT_SOURCE, MAX_SOURCE_PIECE) if are_few else (MAX_UNSPLIT_FILE, MAX_UNSPLIT_FILE)
    with open_text(file) as handle:
        start = handle.read(unsplit + 1)
    if len(start) <= unsplit and DOCUMENT_SEPARATOR not in start:
        yield start, name
        return
    with open_file(file) as handle:  # again: not every compressed file can be searched
        yield from _read_text_pieces(handle, name, longest)


def _read_text_pieces(handle: BinaryIO, name: str, longest: int) -> Iterator[tuple[bytes, str]]:
    """Yields (bytes, origin) of the pieces of a text file, which end at a blank line or after `longest` bytes."""
    piece: list[bytes] = []
    size, first = 0, 1
    for number, line in enumerate(_read_lines(handle, MAX_LINE if longest >= MAX_UNSPLIT_FILE else longest), 1):
        blank = not line.strip()
        separates = line.strip() == DOCUMENT_SEPARATOR
        if not separates:
            piece.append(line)
            size += len(line)
        if size and (separates or (blank and size >= MIN_PIECE) or size >= longest):
            yield b"".join(piece).strip(b"\n"), f"{name}:{first}"
            piece, size, first = [], 0, number + 1
    if size:
        yield b"".join(piece).strip(b"\n"), f"{name}:{first}"
