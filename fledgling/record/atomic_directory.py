"""Directories that appear complete or not at all: checkpoints, token shards, exports.

The files are written to a temporary neighbour and flushed to the disk, the manifest (size and SHA-256 of every file)
last; then one rename gives the directory its name. A process killed at any moment, or a full disk, leaves the previous
directory as it was. A temporary directory that a killed process left is deleted when the same name is written again.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    final.parent.mkdir(parents=True, exist_ok=True)
    leftover = re.compile(rf"\.tmp-{re.escape(final.name)}-\d+")
    for path in [path for path in final.parent.iterdir() if leftover.fullmatch(path.name)]:
        shutil.rmtree(path, ignore_errors=True)
    temporary.mkdir()
    return temporary


def write_manifest(directory: Path, text: str) -> None:
    """Flushes every file of `directory` to the disk, then writes and flushes the manifest."""
    for path in sorted(directory.iterdir()):
        fsync_path(path)
    manifest = directory / MANIFEST
    manifest.write_text(text, encoding="utf-8")
    fsync_path(manifest)
    fsync_path(directory)


def publish_directory(temporary: Path, final: Path, replace: bool = True, backup: Path | None = None) -> None:
    """Renames `temporary` to `final`.

    replace: whether a `final` that is not empty is replaced; else OSError is raised. backup: the path of the replaced
    directory between the two renames, where readers still find it after a kill; by default a hidden name.
    """
    backup = backup or final.with_name(f".tmp-replaced-{final.name}")
    if replace and final.exists():
        remove_directory(backup)
        os.replace(final, backup)
    os.replace(temporary, final)
    fsync_path(final.parent)
    if replace:
        remove_directory(backup)


def remove_directory(directory: Path) -> None:
    """Deletes a directory; renames it first, so that a kill leaves no half of it under its name."""
    if directory.exists():
        renamed = directory.with_name(f".tmp-removed-{directory.name}")
        shutil.rmtree(renamed, ignore_errors=True)
        os.replace(directory, renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def describe_files(directory: Path) -> dict[str, dict[str, int | str]]:
    """Returns {file name: {"bytes", "sha256"}} of a directory, in order of name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in sorted(directory.iterdir())
    }


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on the disk; else a power cut may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
