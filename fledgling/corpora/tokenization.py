"""A large corpus tokenized: files cut into units, each unit one shard, made by a pool of processes.

The one idea: a unit is about 100 MB of files and its shard is whole or absent (`shards.py`), so a unit is what a
process takes, what a kill can cost, and what running again finds done. A unit is known by its files' names, sizes and
times and by the tokenizer. Once all are done, corpus.json lists them: from then on the files are not looked at again.

    DIRECTORY/shard_00000-3f2a.../   documents that are trained on first, those held out last
    DIRECTORY/corpus.json            the shards in order, and the totals

A document is held out when the hash of its own text says so (`Document.place`), so exact repeats stand on one side.
Near repeats are not looked for, as `split.py` does for what fits in memory.

What it is not: it trains no tokenizer and knows no recipe. No torch: a process starts in a fifth of a second.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.corpora.document import Document
from fledgling.corpora.readers import SkippedDocuments, list_source_files, read_file_part, split_file
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard, raise_open_file_limit
from fledgling.record import write_json
from fledgling.text.tokenizer import Tokenizer

UNIT_BYTES = 100_000_000  # bytes of files in a unit, about
HELD_OUT_FRACTION = 0.002  # of the documents: of 1 GB of web pages 2 MB
CORPUS_FILE = "corpus.json"
ENCODE_BATCH = 512  # documents encoded at a time

FilePart = tuple[str, str, tuple[int, int] | None]  # file, how origins call it, part of it
TokenizeProgress = Callable[
    ["TokenizeStats", int, int], None
]  # (totals of this call, bytes of files done, bytes of files in all)


@dataclass(frozen=True)
class WorkUnit:
    """Files, or part of one, that become one shard; size in bytes of files."""

    parts: tuple[FilePart, ...]
    num_bytes: int
    name: str  # of the shard's directory


@dataclass(frozen=True)
class TokenizeStats:
    """What tokenizing came to: documents, bytes of their text, tokens, and what was left out."""

    documents: int = 0
    num_bytes: int = 0
    tokens: int = 0
    skipped: SkippedDocuments = field(default_factory=SkippedDocuments)

    def __add__(self, other: TokenizeStats) -> TokenizeStats:
        counts = (self.documents + other.documents, self.num_bytes + other.num_bytes, self.tokens + other.tokens)
        return TokenizeStats(*counts, self.skipped + other.skipped)


@dataclass(frozen=True)
class TokenizedCorpus:
    """A tokenized corpus: shards of training documents, and the held-out documents of the same files."""

    train: tuple[TokenShard, ...]
    held_out: tuple[TokenShard, ...]

    @classmethod
    def open(cls, directory: Path, tokenizer: str) -> TokenizedCorpus | None:
        """The corpus that stands in a directory, None where it was not finished. Raises UserError for a damaged one."""
        listing = directory / CORPUS_FILE
        if not listing.is_file():
            return None
        try:
            names = json.loads(listing.read_text(encoding="utf-8"))["shards"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{listing} cannot be read: delete it and prepare the data again") from None
        raise_open_file_limit(2 * len(names))
        shards = [TokenShard.open(directory / name, tokenizer) for name in names]
        edges = [len(shard) - shard.metadata["held_out"] for shard in shards]
        train = [shard.slice_documents(0, edge) for shard, edge in zip(shards, edges, strict=True)]
        held = [shard.slice_documents(edge, len(shard)) for shard, edge in zip(shards, edges, strict=True)]
        return cls(tuple(s for s in train if len(s)), tuple(s for s in held if len(s)))


def split_into_units(source: Path, fingerprint: str, unit_bytes: int = UNIT_BYTES) -> list[WorkUnit]:
    """The units of a file or folder, in order of paths: large files in parts, small ones together.

    Raises UserError where there is nothing to read, or a parquet file is damaged that had to be cut.
    """
    units: list[WorkUnit] = []
    waiting: list[FilePart] = []
    held = 0

    def close() -> None:
        nonlocal waiting, held
        if waiting:
            units.append(WorkUnit(tuple(waiting), held, _unit_name(waiting, fingerprint)))
        waiting, held = [], 0

    for file in list_source_files(source):
        name = file.name if file == source else file.relative_to(source).as_posix()
        pieces, whole = split_file(file, unit_bytes), file.stat().st_size
        if len(pieces) > 1 or held + whole > unit_bytes:
            close()
        for piece in pieces:
            waiting.append((str(file), name, piece))
            held += whole // len(pieces)
            if len(pieces) > 1:
                close()
    close()
    return units


def _unit_name(taken: Sequence[FilePart], fingerprint: str) -> str:
    facts = [(name, part, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file, name, part in taken]
    digest = hashlib.sha256(json.dumps([facts, fingerprint, HELD_OUT_FRACTION]).encode()).hexdigest()[:12]
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(taken[0][1]).stem)
    return f"{stem[:40]}-{digest}"


def tokenize_corpus(
    source: Path,
    directory: Path,
    tokenizer: Path,
    workers: int = 0,
    column: str | None = None,
    progress: TokenizeProgress | None = None,
    unit_bytes: int = UNIT_BYTES,
) -> list[WorkUnit]:
    """Bring the corpus of a file or folder to `directory`; returns its units. What stands there is not made again.

    tokenizer: its tokenizer.json. workers: processes; 0 is one a core, and one works in this process. Raises UserError
    for files that cannot be read, a full disk, or a process that was killed; what was finished stays.
    """
    fingerprint = Tokenizer.load(tokenizer).fingerprint()
    units = split_into_units(source, fingerprint, unit_bytes)
    waiting = [unit for unit in units if not (directory / unit.name / MANIFEST).exists()]
    whole, total = sum(unit.num_bytes for unit in units), TokenizeStats()
    ready = whole - sum(unit.num_bytes for unit in waiting)
    if progress:
        progress(total, ready, whole)
    for unit, done in _tokenize_units(waiting, directory, tokenizer, column, workers or count_cores()):
        total, ready = total + done, ready + unit.num_bytes
        if progress:
            progress(total, ready, whole)
    totals = _count_totals(TokenShard.open(directory / unit.name, fingerprint) for unit in units)
    if not totals["train"]["documents"]:
        raise UserError(f"{source}: no document to train on; give a source with some text")
    write_json(directory / CORPUS_FILE, {"source": str(source), **totals, "shards": [unit.name for unit in units]})
    return units


def _count_totals(shards: Iterable[TokenShard]) -> dict[str, dict[str, int]]:
    """Documents, tokens and bytes of text, of what is trained on and of what is held out."""
    train, held = dict.fromkeys(("documents", "tokens", "bytes"), 0), dict.fromkeys(("documents", "tokens", "bytes"), 0)
    for shard in shards:
        edge = len(shard) - shard.metadata["held_out"]
        first = int(shard.offsets[edge])
        of_train = (edge, first, shard.metadata["bytes"])
        of_held = (len(shard) - edge, len(shard.tokens) - first, shard.metadata["held_out_bytes"])
        for total, counts in ((train, of_train), (held, of_held)):
            for name, count in zip(total, counts, strict=True):
                total[name] += count
    return {"train": train, "held_out": held}


def sample_documents(
    source: Path, max_characters: int, column: str | None = None, unit_bytes: int = UNIT_BYTES
) -> Iterator[Document]:
    """Documents for training a tokenizer, none of them held out: of each unit its beginning, `characters` in all."""
    units, taken = split_into_units(source, "", unit_bytes), 0
    for number, unit in enumerate(units, start=1):
        for document in _read_unit(unit, column, SkippedDocuments()):
            if taken >= max_characters * number // len(units):  # what a short unit lacks, the next one gives
                break
            if document.hash_fraction() >= HELD_OUT_FRACTION:
                taken += len(document.text)
                yield document


def _read_unit(unit: WorkUnit, column: str | None, skipped: SkippedDocuments) -> Iterator[Document]:
    for file, name, part in unit.parts:
        yield from read_file_part(Path(file), name, column, skipped, part)


def count_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tokenize_units(
    units: Sequence[WorkUnit], directory: Path, tokenizer: Path, column: str | None, workers: int
) -> Iterator[tuple[WorkUnit, TokenizeStats]]:
    """Make each unit's shard, in a pool where that pays; yields them as they are done."""
    if min(workers, len(units)) <= 1:
        for unit in units:
            yield unit, tokenize_unit(unit, directory, tokenizer, column)
        return
    start = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(units)), start, initializer=_start_worker)
    try:
        running = {pool.submit(tokenize_unit, unit, directory, tokenizer, column): unit for unit in units}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            f"{directory}: a tokenizing process was killed, perhaps for memory; run again with fewer of them, such as "
            f"fledgling data prepare --workers {max(1, workers // 2)}. What was finished stays"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """A process of the pool: one thread, Ctrl-C is its parent's affair, and it does not outlive its parent."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def tokenize_unit(unit: WorkUnit, directory: Path, tokenizer: Path, column: str | None = None) -> TokenizeStats:
    """Tokenize a unit into its shard. Raises UserError as `sources.read_part` and `ShardWriter` do."""
    encoder, skipped = _load_tokenizer(tokenizer), SkippedDocuments()
    documents = _read_unit(unit, column, skipped)
    held: list[str] = []
    size = [0, 0]  # bytes of text: trained on, held out
    facts: dict[str, Any] = {"files": [[name, part] for _, name, part in unit.parts]}
    with ShardWriter(
        directory / unit.name, encoder.vocab_size, tokenizer=encoder.fingerprint(), metadata=facts
    ) as writer:
        while group := list(islice(documents, ENCODE_BATCH)):
            chosen: list[str] = []
            for document in group:
                out = document.hash_fraction() < HELD_OUT_FRACTION
                (held if out else chosen).append(document.text)
                size[out] += document.num_bytes
            writer.add_documents(encoder.encode_batch(chosen))
        trained = writer.documents
        writer.add_documents(encoder.encode_batch(held))
        counts = {"held_out": writer.documents - trained, "bytes": size[0], "held_out_bytes": size[1]}
        writer.metadata |= counts
    return TokenizeStats(writer.documents, sum(size), writer.tokens, skipped)
