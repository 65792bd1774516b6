"""Reads what was appended to a JSONL file since the last time, a bounded number of bytes at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MAX_READ_BYTES = 2**21  # at once
MAX_LINE_BYTES = 2**18  # a longer line is skipped
MAX_BACKLOG_BYTES = 2**25  # of a file that is read for the first time; what is before is left out


class JsonlTail:
    """A growing JSONL file. It may be replaced by a shorter one, as a resumed stage does (`JsonlWriter.rewind`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped_bytes = 0  # before the first line that was read
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._partial = b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Returns the objects of the new complete lines, and whether the file was replaced or cut before them."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                restarted = identity != self._identity or status.st_size < self._offset
                if restarted:
                    self._identity, self._partial = identity, b""
                    self._offset = self.skipped_bytes = max(0, status.st_size - MAX_BACKLOG_BYTES)
                file.seek(self._offset)
                content = file.read(MAX_READ_BYTES)
        except OSError:
            restarted = self._identity is not None
            self._identity, self._offset, self._partial = None, 0, b""
            return [], restarted
        self._offset += len(content)
        *lines, self._partial = (self._partial + content).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            self._partial = b"\0"  # its end is no JSON either
        return [value for line in lines if (value := _parse_json_line(line)) is not None], restarted


def _parse_json_line(line: bytes) -> dict[str, Any] | None:
    if not line or len(line) > MAX_LINE_BYTES:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
