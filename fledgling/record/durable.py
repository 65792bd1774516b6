"""Changes of files that a power cut does not undo: new directories, renames, deletions, files replaced in one rename.

A disk keeps what was flushed. Of anything younger it may keep every part or none, in any order: the bytes of a file
(flush the file), its name, and the disappearance of its old name (flush the directory). So content is flushed before
the rename that shows it, the directory after it, and a rename is flushed before what it replaces is deleted.
`tests/record/power_loss.py` builds every state that a cut may leave.
"""

import os
import shutil
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Waits until all files and names under a directory are on the disk; links are not followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            fsync_tree(path)
        elif path.is_file() and not path.is_symlink():
            fsync_path(path)
    fsync_path(directory)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Makes a directory and the missing ones above it, and flushes the name of each new one."""
    path = Path(path)
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(mode, exist_ok=True)
        fsync_path(directory.parent)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in one rename: after a kill or a power cut it is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    make_directory(path.parent)
    try:
        temporary.write_bytes(content)
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(temporary: Path, path: Path) -> None:
    """Flushes a finished file, renames it to `path` in the same directory, and flushes the rename."""
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


def move_directory(source: Path, target: Path) -> None:
    """Renames a directory, into another one of the same file system too, and flushes the rename on both sides."""
    make_directory(target.parent)
    os.replace(source, target)
    fsync_path(target.parent)
    fsync_path(source.parent)


def remove_directory(directory: Path) -> None:
    """Deletes a directory; renames it first, so that no kill and no power cut leaves half of it under its name."""
    if directory.exists():
        renamed = directory.with_name(f".tmp-removed-{directory.name}")
        shutil.rmtree(renamed, ignore_errors=True)
        os.replace(directory, renamed)
        fsync_path(directory.parent)
        shutil.rmtree(renamed, ignore_errors=True)
