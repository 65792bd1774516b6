"""Opens files, decompressed as their names say, and ends a file that expands without measure."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from fledgling.config import UserError
from fledgling.files.folder import split_suffixes

CORRUPT_FILE_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)  # raised by reading a corrupt compressed file
MAX_EXPANSION = 1000  # bytes of contents per byte of a compressed file: text expands 3 to 30 times
MIN_EXPANSION_LIMIT = 1 << 28  # bytes that any compressed file may hold
COPY_BYTES = 1 << 20
STARTS = (  # first bytes of a file that is no text in UTF-8 -> what it is; UTF-32 begins as UTF-16 does
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (b"\x1f\x8b", "gzip; end its name with .gz"),
    (b"\x28\xb5\x2f\xfd", "zstandard; end its name with .zst"),
    (b"\xfd7zXZ", "xz; end its name with .xz"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or save it as CSV in UTF-8"),
    (b"PAR1", "parquet; end its name with .parquet"),
)
CONVERT = "convert it: `iconv -f {} -t UTF-8 FILE > NEW`"
IF_ENCODED = f"if the file is in another encoding, {CONVERT.format('WINDOWS-1252')}"


class NotTextError(UserError):
    """A file begins as one of another kind does, or is not in UTF-8."""


class _LimitedReader(io.RawIOBase):
    """Reads another stream of a file, and raises UserError where it expands without measure."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream, self.path, self.size, self.count = stream, path, path.stat().st_size, 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer and returns how many bytes it now holds."""
        data = self.stream.read(len(buffer))
        self.count += len(data)
        require_expansion(self.path, self.size, self.count)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Closes both streams."""
        self.stream.close()
        super().close()


def require_expansion(path: Path, size: int, expanded: int) -> None:
    """Raises UserError for a file of `size` bytes that holds more than `MAX_EXPANSION` times as many, `expanded`."""
    limit = max(MIN_EXPANSION_LIMIT, MAX_EXPANSION * size)
    if expanded > limit:
        raise UserError(
            f"{path}: expands to more than {limit:,} bytes, {MAX_EXPANSION:,} times its size, as no text does; if that "
            "is right, decompress it first"
        )


def open_file(path: Path) -> io.BufferedReader:
    """Opens a file for reading, decompressed as its name says.

    Raises OSError. Reading raises one of `CORRUPT_FILE_ERRORS`, and UserError for a file that expands more than
    `MAX_EXPANSION` times.
    """
    packed = split_suffixes(path)[1]
    if not packed:
        return path.open("rb")
    openers: dict[str, Callable[[Path], Any]] = {
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": _open_zstd,
    }
    return io.BufferedReader(_LimitedReader(openers[packed](path), path), COPY_BYTES)


def open_text(path: Path) -> io.BufferedReader:
    """Opens a file of text as `open_file` does. Raises NotTextError, which says what to do, for one of another kind."""
    handle = open_file(path)
    try:
        kind = _recognize_start(handle.peek(6))
    except BaseException:
        handle.close()
        raise
    if not kind:
        return handle
    handle.close()
    if kind.startswith("UTF"):
        kind += f"; {'unpack and ' if split_suffixes(path)[1] else ''}{CONVERT.format(kind)}"
    raise NotTextError(f"{path}: not UTF-8 text but {kind}")


def _recognize_start(start: bytes) -> str:
    """Returns what a file that is no text in UTF-8 begins as, or ""."""
    if kind := next((kind for mark, kind in STARTS if start.startswith(mark)), ""):
        return kind
    nulls = bytes(byte == 0 for byte in start[:4])
    names = {b"\0\1\0\1": "UTF-16LE", b"\1\0\1\0": "UTF-16BE", b"\1\1\1\1": "zeros; fetch or copy it again"}
    return names.get(nulls, "")


def _open_zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


def open_parquet_bytes(path: Path) -> Path | BinaryIO:
    """Returns what pyarrow reads a parquet file from: its path, or a temporary copy of what a compressed one holds.

    Raises OSError and UserError as `open_file` does.
    """
    if not split_suffixes(path)[1]:
        return path
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    with open_file(path) as handle:
        while data := handle.read(COPY_BYTES):
            copy.write(data)
    copy.seek(0)
    return cast(BinaryIO, copy)
