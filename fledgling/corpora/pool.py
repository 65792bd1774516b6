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
from fledgling.corpora.sources import Skipped, parts, read_part, source_files
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard, allow_open_files
from fledgling.record import write_json
from fledgling.text.tokenizer import Tokenizer

UNIT = 100_000_000  # bytes of files in a unit, about
HELD_OUT = 0.002  # of the documents: of 1 GB of web pages 2 MB
CORPUS = "corpus.json"
TEXTS = 512  # documents encoded at a time

Part = tuple[str, str, tuple[int, int] | None]  # file, how origins call it, part of it
Progress = Callable[["Done", int, int], None]  # (totals of this call, bytes of files done, bytes of files in all)


@dataclass(frozen=True)
class Unit:
    """Files, or part of one, that become one shard; size in bytes of files."""

    parts: tuple[Part, ...]
    size: int
    name: str  # of the shard's directory


@dataclass(frozen=True)
class Done:
    """What tokenizing came to: documents, bytes of their text, tokens, and what was left out."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    skipped: Skipped = field(default_factory=Skipped)

    def __add__(self, other: Done) -> Done:
        counts = (self.documents + other.documents, self.bytes + other.bytes, self.tokens + other.tokens)
        return Done(*counts, self.skipped + other.skipped)


@dataclass(frozen=True)
class Corpus:
    """A tokenized corpus: shards of training documents, and the held-out documents of the same files."""

    train: tuple[TokenShard, ...]
    held_out: tuple[TokenShard, ...]

    @classmethod
    def open(cls, directory: Path, tokenizer: str) -> Corpus | None:
        """The corpus that stands in a directory, None where it was not finished. Raises UserError for a damaged one."""
        listing = directory / CORPUS
        if not listing.is_file():
            return None
        try:
            names = json.loads(listing.read_text(encoding="utf-8"))["shards"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{listing} cannot be read: delete it and prepare the data again") from None
        allow_open_files(2 * len(names))
        shards = [TokenShard.open(directory / name, tokenizer) for name in names]
        edges = [len(shard) - shard.metadata["held_out"] for shard in shards]
        train = [shard.part(0, edge) for shard, edge in zip(shards, edges, strict=True)]
        held = [shard.part(edge, len(shard)) for shard, edge in zip(shards, edges, strict=True)]
        return cls(tuple(s for s in train if len(s)), tuple(s for s in held if len(s)))


def cut(source: Path, fingerprint: str, size: int = UNIT) -> list[Unit]:
    """The units of a file or folder, in order of paths: large files in parts, small ones together.

    Raises UserError where there is nothing to read, or a parquet file is damaged that had to be cut.
    """
    units: list[Unit] = []
    waiting: list[Part] = []
    held = 0

    def close() -> None:
        nonlocal waiting, held
        if waiting:
            units.append(Unit(tuple(waiting), held, _name(waiting, fingerprint)))
        waiting, held = [], 0

    for file in source_files(source):
        name = file.name if file == source else file.relative_to(source).as_posix()
        pieces, whole = parts(file, size), file.stat().st_size
        if len(pieces) > 1 or held + whole > size:
            close()
        for piece in pieces:
            waiting.append((str(file), name, piece))
            held += whole // len(pieces)
            if len(pieces) > 1:
                close()
    close()
    return units


def _name(taken: Sequence[Part], fingerprint: str) -> str:
    facts = [(name, part, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file, name, part in taken]
    digest = hashlib.sha256(json.dumps([facts, fingerprint, HELD_OUT]).encode()).hexdigest()[:12]
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(taken[0][1]).stem)
    return f"{stem[:40]}-{digest}"


def tokenize(
    source: Path,
    directory: Path,
    tokenizer: Path,
    workers: int = 0,
    column: str | None = None,
    progress: Progress | None = None,
    size: int = UNIT,
) -> list[Unit]:
    """Bring the corpus of a file or folder to `directory`; returns its units. What stands there is not made again.

    tokenizer: its tokenizer.json. workers: processes; 0 is one a core, and one works in this process. Raises UserError
    for files that cannot be read, a full disk, or a process that was killed; what was finished stays.
    """
    fingerprint = Tokenizer.load(tokenizer).fingerprint()
    units = cut(source, fingerprint, size)
    waiting = [unit for unit in units if not (directory / unit.name / MANIFEST).exists()]
    whole, total = sum(unit.size for unit in units), Done()
    ready = whole - sum(unit.size for unit in waiting)
    if progress:
        progress(total, ready, whole)
    for unit, done in _made(waiting, directory, tokenizer, column, workers or cores()):
        total, ready = total + done, ready + unit.size
        if progress:
            progress(total, ready, whole)
    totals = _totals(TokenShard.open(directory / unit.name, fingerprint) for unit in units)
    if not totals["train"]["documents"]:
        raise UserError(f"{source}: no document to train on; give a source with some text")
    write_json(directory / CORPUS, {"source": str(source), **totals, "shards": [unit.name for unit in units]})
    return units


def _totals(shards: Iterable[TokenShard]) -> dict[str, dict[str, int]]:
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


def sample(source: Path, characters: int, column: str | None = None, size: int = UNIT) -> Iterator[Document]:
    """Documents for training a tokenizer, none of them held out: of each unit its beginning, `characters` in all."""
    units, taken = cut(source, "", size), 0
    for number, unit in enumerate(units, start=1):
        for document in _documents(unit, column, Skipped()):
            if taken >= characters * number // len(units):  # what a short unit lacks, the next one gives
                break
            if document.place() >= HELD_OUT:
                taken += len(document.text)
                yield document


def _documents(unit: Unit, column: str | None, skipped: Skipped) -> Iterator[Document]:
    for file, name, part in unit.parts:
        yield from read_part(Path(file), name, column, skipped, part)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _made(
    units: Sequence[Unit], directory: Path, tokenizer: Path, column: str | None, workers: int
) -> Iterator[tuple[Unit, Done]]:
    """Make each unit's shard, in a pool where that pays; yields them as they are done."""
    if min(workers, len(units)) <= 1:
        for unit in units:
            yield unit, make(unit, directory, tokenizer, column)
        return
    start = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(units)), start, initializer=_begin)
    try:
        running = {pool.submit(make, unit, directory, tokenizer, column): unit for unit in units}
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


def _begin() -> None:
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
def _loaded(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def make(unit: Unit, directory: Path, tokenizer: Path, column: str | None = None) -> Done:
    """Tokenize a unit into its shard. Raises UserError as `sources.read_part` and `ShardWriter` do."""
    encoder, skipped = _loaded(tokenizer), Skipped()
    documents = _documents(unit, column, skipped)
    held: list[str] = []
    size = [0, 0]  # bytes of text: trained on, held out
    facts: dict[str, Any] = {"files": [[name, part] for _, name, part in unit.parts]}
    with ShardWriter(
        directory / unit.name, encoder.vocab_size, tokenizer=encoder.fingerprint(), metadata=facts
    ) as writer:
        while group := list(islice(documents, TEXTS)):
            chosen: list[str] = []
            for document in group:
                out = document.place() < HELD_OUT
                (held if out else chosen).append(document.text)
                size[out] += document.size
            writer.add_all(encoder.encode_batch(chosen))
        trained = writer.documents
        writer.add_all(encoder.encode_batch(held))
        counts = {"held_out": writer.documents - trained, "bytes": size[0], "held_out_bytes": size[1]}
        writer.metadata |= counts
    return Done(writer.documents, sum(size), writer.tokens, skipped)
