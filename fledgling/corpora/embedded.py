"""The embedded corpus: English and Python that every installation already has.

A Python installation carries about ten megabytes of reference prose. The docstrings, language topics and comments of
the standard library, numpy and torch, and some source code, become documents in seconds, without a network. Text that
repeats is dropped, so that the held-out part (`document.split_held_out`) is not memorized from training. Start with
`harvest_embedded`.

The text varies a little with the versions of Python and torch; within one environment it is always the same, byte for
byte.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from fledgling.config import UserError
from fledgling.corpora.document import MIN_CHARACTERS, Document, normalized_sentences, split_paragraphs
from fledgling.corpora.python_text import PythonText, clean_documentation, drop_empty_headings, scan_python

VERSION = 1  # raised when the same files give other documents
KINDS = ("topics", "docstrings", "comments", "source")
MAX_CHARACTERS = 20_000  # of a document, about
DOCSTRING_DOCUMENT_SIZE = 1_000  # characters from which the next class opens a new document
CODE_DOCUMENT_SIZE = 6_000  # the same for the top-level blocks of a source file
MIN_REPEAT_LENGTH = 20  # characters; a shorter sentence that occurs twice is an idiom and no repetition
PACKAGES = ("numpy", "torch")  # installed with fledgling; the standard library comes first
SKIPPED_FOLDERS = {
    "test", "tests", "idle_test", "testing", "site-packages", "dist-packages", "__pycache__", "lib2to3",
    "idlelib", "turtledemo", "pydoc_data", "encodings", "generated", "_vendor", "ensurepip", "lib-dynload",
}  # fmt: skip

HarvestProgress = Callable[[str, int, int], None]  # (kind being read, files done, files in all)
Entry = tuple[str, list[str]]  # a heading (or ""), and the paragraphs under it


# ---- reading -------------------------------------------------------------------------------------


def list_python_files() -> list[tuple[str, Path]]:
    """Returns (module, path) of every file that is harvested: the standard library, then `PACKAGES`, each sorted."""
    roots = [("", Path(sysconfig.get_paths()["stdlib"]))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
            roots.append((name, Path(spec.origin).parent))
    files = []
    for name, root in roots:
        candidates = ((path.relative_to(root), path) for path in root.rglob("*.py"))
        kept = [(part.as_posix(), path) for part, path in candidates if SKIPPED_FOLDERS.isdisjoint(part.parts)]
        for part, path in sorted(kept):
            module = f"{name}/{part}".removesuffix(".py").removesuffix("/__init__").strip("/").replace("/", ".")
            files.append((module, path))
    return [(module, path) for module, path in files if not module.startswith("_sysconfigdata")]


def _scan_file(path: Path) -> PythonText | None:
    """Returns the text in a Python file, or None when it is not UTF-8 or cannot be read."""
    try:
        return scan_python(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError):
        return None


def _topic_entries() -> Iterator[tuple[str, list[Entry]]]:
    """Yields the pages of `pydoc_data.topics`, longest first, because short pages are repeated inside long ones."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the pages out
        return
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        yield f"topic {name}", [("", [part]) for part in clean_documentation(topics[name])]


def _docstring_entries(module: str, file: PythonText) -> list[Entry]:
    entries: list[Entry] = []
    for owner, text in file.docstrings:
        # The first entry of a module has its full name, as have all entries of the standard library (short names).
        bare = "." in owner or (entries and module.startswith(PACKAGES))
        heading = owner if bare else f"{module}.{owner}".rstrip(".")
        entries.append((heading if not text.startswith(heading) else "", clean_documentation(text)))
    return entries


def _comment_entries(module: str, file: PythonText) -> list[Entry]:
    return [
        ("", [part for part in clean_documentation(block, strict=True) if len(part) >= 60]) for block in file.comments
    ]


def _code_entries(module: str, file: PythonText) -> list[Entry]:
    """Returns the top-level blocks of a file, without data (long lines, many digits) and non-ASCII text."""
    entries: list[Entry] = []
    for part in split_paragraphs(file.code):
        digits = sum(map(str.isdigit, part))
        if not part.isascii() or digits > 0.15 * len(part) or max(map(len, part.split("\n"))) > 160:
            continue
        if entries and part[0] in " \t)]}":
            entries[-1][1].append(part)
        else:
            entries.append(("", [part]))
    return entries


# ---- dropping repetitions, and joining entries to documents ----------------------------------------


class Deduplicator:
    """Drops paragraphs whose sentences were seen before."""

    def __init__(self) -> None:
        self.seen: set[int] = set()  # hashes of sentences: a tenth of the memory of the text

    def drop_repeats(self, parts: Iterable[str]) -> list[str]:
        """Returns the paragraphs of which at most a quarter, by characters of sentences, was seen before."""
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
    """Yields entries as documents of up to about `MAX_CHARACTERS`, cut where a class or block begins."""
    parts: list[str] = []
    size = 0
    target_size = {"docstrings": DOCSTRING_DOCUMENT_SIZE, "source": CODE_DOCUMENT_SIZE}.get(kind, MAX_CHARACTERS)
    for heading, body in entries:
        text = "\n\n".join(body)
        text = f"{heading}\n{text}" if heading else text
        opens_document = kind != "docstrings" or heading.split(".")[-1][:1].isupper()
        if size and (size + len(text) > MAX_CHARACTERS or (opens_document and size >= target_size)):
            yield Document("\n\n".join(parts), kind, origin)
            parts, size = [], 0
        parts.append(text)
        size += len(text) + 2
    if parts:
        yield Document("\n\n".join(parts), kind, origin)


def _build_documents(
    kind: str, groups: Iterable[tuple[str, list[Entry]]], deduplicator: Deduplicator
) -> Iterator[Document]:
    for origin, entries in groups:
        fresh: list[Entry] = []
        for heading, parts in entries:
            parts = deduplicator.drop_repeats(parts)
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
    """Returns the documents of the embedded corpus, kind by kind in the order of `kinds`, without repetitions.

    Reads about 55 MB in about four seconds on one core. Comments and source come from the standard library and numpy
    only, because torch's internals are neither regular nor useful to a small model. Order and text depend only on the
    installed versions.

    Args:
        kinds: some of `KINDS`.
        max_bytes: stops before the document that exceeds it, and reads no more files than that takes.

    Raises:
        UserError: for a kind that does not exist.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UserError(f"corpus kind {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    files = list_python_files()
    scans: dict[Path, PythonText | None] = {}
    read_entries = {"docstrings": _docstring_entries, "comments": _comment_entries, "source": _code_entries}
    deduplicator = Deduplicator()

    def groups(kind: str) -> Iterator[tuple[str, list[Entry]]]:
        if kind == "topics":
            yield from _topic_entries()
            return
        for done, (module, path) in enumerate(files, start=1):
            if progress:
                progress(kind, done, len(files))
            if kind != "docstrings" and module.split(".")[0] == "torch":
                continue
            if path not in scans:
                scans[path] = _scan_file(path)
            if file := scans[path]:
                yield module, read_entries[kind](module, file)

    documents: list[Document] = []
    size = 0
    for kind in kinds:
        for document in _build_documents(kind, groups(kind), deduplicator):
            if max_bytes is not None and size + document.num_bytes > max_bytes:
                return documents
            documents.append(document)
            size += document.num_bytes
    return documents
