"""Directories that appear complete or not at all: checkpoints, token shards, exports.

The files are written to a temporary directory, the manifest (size and SHA-256 of every file) last, and flushed to the
disk; then one rename gives the directory its name, and is flushed too. A process killed at any moment, a power cut or a
full disk leaves the previous directory as it was. A temporary directory that a killed process left is deleted when the
same name is written again.
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fledgling.record.durable import fsync_path, fsync_tree, make_directory, remove_directory

MANIFEST = "manifest.json"


@contextmanager
def atomic_directory(final: Path, replace: bool = True, backup: Path | None = None) -> Iterator[Path]:
    """Yields a temporary directory that becomes `final` in one rename when the block ends without an exception.

    The block writes the manifest last, where the directory has one (`write_manifest`). After an exception nothing
    remains, and `final` is as it was. replace, backup: see `publish_directory`.
    """
    temporary = make_temporary_directory(final)
    try:
        yield temporary
        publish_directory(temporary, final, replace, backup)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_temporary_directory(final: Path) -> Path:
    """Makes the directory in which `final` is written, and deletes what killed processes left there."""
    temporary = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    make_directory(final.parent)
    leftover = re.compile(rf"\.tmp-{re.escape(final.name)}-\d+")
    for path in [path for path in final.parent.iterdir() if leftover.fullmatch(path.name)]:
        shutil.rmtree(path, ignore_errors=True)
    temporary.mkdir()
    return temporary


def write_manifest(directory: Path, text: str) -> None:
    """Writes the manifest of a temporary directory, which `publish_directory` flushes with everything else."""
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def publish_directory(temporary: Path, final: Path, replace: bool = True, backup: Path | None = None) -> None:
    """Flushes everything in `temporary`, then renames it to `final`.

    replace: whether a `final` that is not empty is replaced; else OSError is raised. backup: the path of the replaced
    directory between the two renames, where readers still find it after a kill; by default a hidden name.
    """
    fsync_tree(temporary)
    backup = backup or final.with_name(f".tmp-replaced-{final.name}")
    if replace and final.exists():
        remove_directory(backup)
        os.replace(final, backup)
    os.replace(temporary, final)
    fsync_path(final.parent)
    if replace:
        remove_directory(backup)


def describe_files(directory: Path) -> dict[str, dict[str, int | str]]:
    """Returns {file name: {"bytes", "sha256"}} of a directory, in order of name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in sorted(directory.iterdir())
    }


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_corruption(file: Path, expected: dict, check_hashes: bool) -> str:
    """Returns how a file differs from its manifest entry, "" where it does not.

    Raises OSError for a file that is there and cannot be read: it may be whole.
    """
    try:
        status = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        return f"of {MANIFEST} is missing or not a plain file"
    size = status.st_size
    if size != expected["bytes"]:
        return f"has {size} bytes, {MANIFEST} says {expected['bytes']}"
    if check_hashes and hash_file(file) != expected["sha256"]:
        return f"does not match its SHA-256 in {MANIFEST}"
    return ""
