"""JSON files of a run: append-only JSONL that survives a kill, and files that are replaced in one rename.

A line is written with one write, so a kill leaves at most one torn line at the end. Readers skip it and the next writer
removes it. Lines are not flushed to the disk one by one: a power cut takes those since the last `JsonlWriter.flush`,
which a checkpoint calls before it appears.
"""

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from fledgling.config import UserError
from fledgling.record.durable import fsync_path, make_directory, write_file

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def to_json_value(value: Any) -> Any:
    """Converts `value` to what JSON holds: numpy and torch scalars to numbers, NaN and infinities to null."""
    if isinstance(value, dict):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return to_json_value(value.item())


def _encode_line(value: dict) -> bytes:
    return encode_text(json.dumps(to_json_value(value), ensure_ascii=False)) + b"\n"


def _parse_line(raw: bytes) -> dict | None:
    """Returns the object on one line, or None when the line is torn or holds no object."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_jsonl(path: Path | str) -> list[dict]:
    """Returns the objects of a JSONL file. A missing file is empty; torn lines and other values are skipped."""
    path = Path(path)
    if not path.is_file():
        return []
    values = (_parse_line(raw) for raw in path.read_bytes().split(b"\n") if raw.strip())
    return [value for value in values if value is not None]


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as JSON in one rename: readers see the old file or the new one. Raises UserError."""
    _write_content(Path(path), encode_json_file(value))


def encode_json_file(value: Any) -> bytes:
    """Returns `value` as the content of a JSON file, indented."""
    return encode_text(json.dumps(to_json_value(value), indent=2, ensure_ascii=False) + "\n")


def encode_text(text: str) -> bytes:
    """Returns the bytes of a text file; halves of characters, as of a name that is not UTF-8, are \\udc80."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path | str, text: str) -> None:
    """Writes a file in one rename. Raises UserError when it cannot be written."""
    _write_content(Path(path), encode_text(text))


def _write_content(path: Path, content: bytes) -> None:
    try:
        write_file(path, content)
    except OSError as error:
        raise make_write_error(path, error, len(content)) from None


def make_write_error(path: Path, error: OSError, bytes_needed: int | None = None) -> UserError:
    """Returns the one-line error for a failed write; for a full disk with the bytes needed and free."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno not in DISK_FULL_ERRNOS:
        return UserError(
            f"cannot write {path}: {reason}; choose another directory: --set run.out=DIR trains there, --out PATH "
            "evaluates and reports there, an export has its OUT"
        )
    parent = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    needed = f"{format_bytes(bytes_needed)} needed, " if bytes_needed else ""
    free = f"{format_bytes(shutil.disk_usage(parent).free)} free"
    return UserError(f"cannot write {path}: {reason} ({needed}{free}); make room, then run again to resume")


def format_bytes(count: float, binary: bool = False) -> str:
    """Returns bytes as text: 512 bytes, 3.1 MB, 42.0 GB; binary: 0.5 KiB, 3.0 MiB, 39.1 GiB, as for memory."""
    if binary:
        power = 30 if count >= 2**30 else 20 if count >= 2**20 else 10
        return f"{count / 2**power:,.1f} {'KMG'[power // 10 - 1]}iB"
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:.0f} bytes"


def append_line(path: Path, value: dict) -> None:
    """Appends one line to a JSONL file that other processes may append to. Raises OSError."""
    with _open_repaired(path, is_shared=True) as file:
        _write_whole(file, _encode_line(value))


def _open_repaired(path: Path, is_shared: bool) -> BinaryIO:
    """Opens a JSONL file to append, after its last line is completed; a torn one is removed, or ended if shared."""
    make_directory(path.parent)
    if path.exists():
        content = path.read_bytes()
        tail = content.rpartition(b"\n")[2]
        if tail and _parse_line(tail) is None and not is_shared:
            os.truncate(path, len(content) - len(tail))
        elif tail:
            with open(path, "ab") as file:
                file.write(b"\n")
    return open(path, "ab", buffering=0)  # unbuffered: one append is one write


def _write_whole(file: BinaryIO, line: bytes) -> None:
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class JsonlWriter:
    """One append-only JSONL file. The first append repairs a torn last line.

    is_shared: another process may be appending, so that an unfinished line may be its own and is not removed; readers
    skip it.
    """

    def __init__(self, path: Path, is_shared: bool = False):
        self.path, self.is_shared = path, is_shared
        self._file: BinaryIO | None = None

    def append(self, value: dict) -> None:
        """Appends one line with one write. Raises UserError when it cannot be written completely."""
        line = _encode_line(value)
        try:
            if self._file is None:
                self._file = _open_repaired(self.path, self.is_shared)
            _write_whole(self._file, line)
        except OSError as error:
            self.close()
            raise make_write_error(self.path, error, len(line)) from None

    def flush(self) -> None:
        """Waits until every line so far is on the disk. Raises UserError. Any thread may call it."""
        try:
            if self.path.exists():
                fsync_path(self.path)
                fsync_path(self.path.parent)
        except OSError as error:
            raise make_write_error(self.path, error) from None

    def rewind(self, step: int) -> None:
        """Keeps the lines up to and including `step`, in one rename."""
        lines = read_jsonl(self.path)
        kept = [line for line in lines if not isinstance(line.get("step"), int) or line["step"] <= step]
        if len(kept) != len(lines):
            self.close()
            write_text(self.path, b"".join(map(_encode_line, kept)).decode())

    def close(self) -> None:
        """Closes the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
