"""A user's measurements of this machine: files in FLEDGLING_CACHE, or ~/.cache/fledgling, shared by all runs.

Nothing depends on them: where the folder cannot be written, as in a container, no run and no benchmark stops.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fledgling.record.durable import write_file
from fledgling.record.jsonl import encode_json_file


def find_cache_folder() -> Path:
    """Returns the folder in which a user's measurements of this machine are kept."""
    given = os.environ.get("FLEDGLING_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fledgling"


def write_cache_file(name: str, value: Any) -> str:
    """Writes a file of the folder as JSON in one rename; returns why it cannot be written, or ""."""
    path = find_cache_folder() / name
    try:
        write_file(path, encode_json_file(value))
    except OSError as error:
        return describe_unwritable(path, error)
    return ""


def describe_unwritable(path: Path, error: OSError) -> str:
    """Returns why a file of the folder cannot be written, and what to do, without a full stop."""
    reason = error.strerror or error
    return f"{path} cannot be written ({reason}); set FLEDGLING_CACHE to a folder that can be"
