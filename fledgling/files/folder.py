"""The data folder, and what a folder holds: the files that are read and those that are passed over, with the reason."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fledgling.config.errors import show_name

COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
TEXT_SUFFIXES = (".txt", ".md", ".text", ".markdown")  # of files that are prose; others hold rows
CARDS = ("README.md", "readme.md")


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


def split_suffixes(path: Path) -> tuple[str, str]:
    """Returns the suffix of a file's kind and that of its compression, in lower case: a.JSONL.gz is (.jsonl, .gz)."""
    name = path.name.lower()
    packed = next((suffix for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), "")
    return Path(name.removesuffix(packed)).suffix, packed


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
        others = [
            f"{n:,} {reason} (first: {show_name(self.examples[reason], sys.maxsize)})"
            for reason, n in sorted(self.passed_over.items())
        ]
        return text + (f"; passed over {self.passed_over.total():,}: {', '.join(others)}" if others else "")


def list_folder(folder: Path, is_known: Callable[[Path], bool]) -> FolderContents:
    """Returns the files in a folder at any depth that `is_known` and can be read, and counts all others by reason.

    Hidden folders, folders that may not be opened and links to folders count as one each. The README.md of a folder of
    rows, as a dataset hub gives it, describes them and is no document.
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
    holds_rows = any(split_suffixes(file)[0] not in TEXT_SUFFIXES for file in contents.files)
    for card in [file for file in contents.files if holds_rows and file.parent == folder and file.name in CARDS]:
        contents.files.remove(card)
        contents.pass_over("card of the data", card.name)
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
