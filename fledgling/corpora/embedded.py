"""The embedded corpus: English and Python that everyone who can run fledgling already has.

The one idea: a Python installation carries about ten megabytes of reference prose. Docstrings, language
topics and comments of the standard library, numpy and torch become documents here in seconds, with no
network; what repeats is dropped, so that the part held out for validation (`split.py`) is not already known
by heart.

What it is not: a general reader of files (`sources.py`) or a download (`public.py`). Its text varies a
little with the versions of Python and torch; within one environment it is the same, byte for byte, every
time.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from fledgling.config import UserError
from fledgling.corpora.document import Document
from fledgling.corpora.prose import clean_documentation, drop_empty_headings, normalized_sentences, split_paragraphs
from fledgling.corpora.python_text import PythonText, scan_python

KINDS = ("topics", "docstrings", "comments", "source")
MIN_CHARACTERS, MAX_CHARACTERS = 200, 20_000  # characters of a document
DOCSTRING_DOCUMENT_SIZE = 1_000  # a class opens a new document once the current one is this long
CODE_DOCUMENT_SIZE = 6_000  # the same for the blocks of a source file
MIN_REPEAT_LENGTH = 20  # characters from which a repeated sentence is a repeat and not a form of words
PACKAGES = ("numpy", "torch")  # installed anyway; the standard library comes first
SKIPPED_FOLDERS = {
    "test", "tests", "idle_test", "testing", "site-packages", "dist-packages", "__pycache__", "lib2to3",
    "idlelib", "turtledemo", "pydoc_data", "encodings", "generated", "_vendor", "ensurepip", "lib-dynload",
}  # fmt: skip

HarvestProgress = Callable[[str, int, int], None]  # (what is being read, files done, files in all)
Entry = tuple[str, list[str]]  # a heading (or ""), and the paragraphs under it


# ---- reading -------------------------------------------------------------------------------------


def list_python_files() -> list[tuple[str, Path]]:
    """Return (module, path) of every file harvested: standard library first, then `PACKAGES`, sorted."""
    roots = [("", Path(sysconfig.get_paths()["stdlib"]))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
            roots.append((name, Path(spec.origin).parent))
    found = []
    for name, root in roots:
        inside = ((path.relative_to(root), path) for path in root.rglob("*.py"))
        kept = [(part.as_posix(), path) for part, path in inside if SKIPPED_FOLDERS.isdisjoint(part.parts)]
        for part, path in sorted(kept):
            dotted = f"{name}/{part}".removesuffix(".py").removesuffix("/__init__").strip("/").replace("/", ".")
            found.append((dotted, path))
    return [(module, path) for module, path in found if not module.startswith("_sysconfigdata")]


def _scan_file(path: Path) -> PythonText | None:
    """Return what a file says, or None when it is not UTF-8 Python text."""
    try:
        return scan_python(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError):
        return None


def _topic_entries() -> Iterator[tuple[str, list[Entry]]]:
    """Yield the pages of `pydoc_data.topics`, longest first: short pages are repeated inside long ones."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the pages out
        return
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        yield f"topic {name}", [("", [part]) for part in clean_documentation(topics[name])]


def _docstring_entries(module: str, found: PythonText) -> list[Entry]:
    entries: list[Entry] = []
    for owner, text in found.docstrings:
        # The first entry of a module bears its full name; so do all of the standard library (short names).
        bare = "." in owner or (entries and module.startswith(PACKAGES))
        heading = owner if bare else f"{module}.{owner}".rstrip(".")
        entries.append((heading if not text.startswith(heading) else "", clean_documentation(text)))
    return entries


def _comment_entries(module: str, found: PythonText) -> list[Entry]:
    return [
        ("", [part for part in clean_documentation(block, strict=True) if len(part) >= 60]) for block in found.comments
    ]


def _code_entries(module: str, found: PythonText) -> list[Entry]:
    """Return the top-level blocks of a file without data (long lines, many digits) and foreign scripts."""
    entries: list[Entry] = []
    for part in split_paragraphs(found.code):
        digits = sum(map(str.isdigit, part))
        if not part.isascii() or digits > 0.15 * len(part) or max(map(len, part.split("\n"))) > 160:
            continue
        if entries and part[0] in " \t)]}":
            entries[-1][1].append(part)
        else:
            entries.append(("", [part]))
    return entries


# ---- dropping what repeats, and joining what belongs together ----------------------------------------


class Deduplicator:
    """Remembers every long line and paragraph it has let through, and lets none through twice."""

    def __init__(self) -> None:
        self.seen: set[int] = set()  # hashes: a tenth of the memory of the text itself

    def drop_repeats(self, parts: Iterable[str]) -> list[str]:
        """Return the paragraphs of which at most a quarter, by characters of sentences, was seen before."""
        kept = []
        for part in parts:
            lines = normalized_sentences(part, MIN_REPEAT_LENGTH)
            repeated = sum(len(line) for line in lines if hash(line) in self.seen)
            if lines and repeated > 0.25 * sum(map(len, lines)):
                continue
            self.seen.update(map(hash, lines))
            kept.append(part)
        return kept


def _join_entries(kind: str, origin: str, entries: list[Entry]) -> Iterator[Document]:
    """Yield entries as documents of up to about `LARGEST` characters, cut where a class or block begins."""
    parts: list[str] = []
    size = 0
    group = {"docstrings": DOCSTRING_DOCUMENT_SIZE, "source": CODE_DOCUMENT_SIZE}.get(kind, MAX_CHARACTERS)
    for heading, body in entries:
        text = "\n\n".join(body)
        text = f"{heading}\n{text}" if heading else text
        opens = kind != "docstrings" or heading.split(".")[-1][:1].isupper()
        if size and (size + len(text) > MAX_CHARACTERS or (opens and size >= group)):
            yield Document("\n\n".join(parts), kind, origin)
            parts, size = [], 0
        parts.append(text)
        size += len(text) + 2
    if parts:
        yield Document("\n\n".join(parts), kind, origin)


def _build_documents(kind: str, groups: Iterable[tuple[str, list[Entry]]], repeats: Deduplicator) -> Iterator[Document]:
    for origin, entries in groups:
        fresh: list[Entry] = []
        for heading, parts in entries:
            parts = repeats.drop_repeats(parts)
            if kind != "source":
                parts = drop_empty_headings(parts)
            if sum(map(len, parts)) >= 40:
                fresh.append((heading, parts))
        for document in _join_entries(kind, origin, fresh):
            if len(document.text) >= MIN_CHARACTERS and document.num_bytes <= 2 * MAX_CHARACTERS:
                yield document


def harvest_embedded(
    kinds: Sequence[str] = KINDS, max_bytes: int | None = None, progress: HarvestProgress | None = None
) -> list[Document]:
    """Return the documents of the embedded corpus, kind by kind in the order given, without repeats.

    `max_bytes` stops the harvest once so much text is gathered, and only as many files are read as that
    takes. Comments and source are taken from the standard library and numpy alone: torch's internals are
    neither regular nor of use to a small model. The order and the text depend on nothing but the installed
    versions. Reads about 55 MB in about four seconds on one core.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UserError(f"corpus kind {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    files = list_python_files()
    scans: dict[Path, PythonText | None] = {}
    reader = {"docstrings": _docstring_entries, "comments": _comment_entries, "source": _code_entries}
    repeats = Deduplicator()

    def groups(kind: str) -> Iterator[tuple[str, list[Entry]]]:
        if kind == "topics":
            yield from _topic_entries()
            return
        for done, (module, path) in enumerate(files):
            if progress:
                progress(kind, done + 1, len(files))
            if kind != "docstrings" and module.split(".")[0] == "torch":
                continue
            if path not in scans:
                scans[path] = _scan_file(path)
            if found := scans[path]:
                yield module, reader[kind](module, found)

    gathered: list[Document] = []
    size = 0
    for kind in kinds:
        for document in _build_documents(kind, groups(kind), repeats):
            if max_bytes is not None and size + document.num_bytes > max_bytes:
                return gathered
            gathered.append(document)
            size += document.num_bytes
    return gathered


def count_bytes_by_kind(documents: Iterable[Document]) -> dict[str, int]:
    """Return the bytes of each kind."""
    total: dict[str, int] = {}
    for document in documents:
        total[document.kind] = total.get(document.kind, 0) + document.num_bytes
    return total
