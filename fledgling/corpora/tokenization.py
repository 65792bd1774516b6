"""Tokenizes a corpus too large for memory: its files are cut into work units, and each unit becomes one shard.

A unit is about 100 MB of files. Its shard is complete or absent (`fledgling.data.shards`), so a pool of processes can
take units in any order, a killed process costs one unit, and a second run resumes. A unit is identified by the
names, sizes and times of its files and by the tokenizer. When all units are done, corpus.json lists their shards; from
then on the files are not read again. Start with `tokenize_corpus`.

    DIRECTORY/shard_00000-3f2a.../   documents of one unit: those for training first, those held out last
    DIRECTORY/corpus.json            the shards in order, and the totals

A document is held out when the hash of its own text says so (`Document.hash_fraction`), so exact duplicates are on the
same side. Near-duplicates are not removed, as `document.split_held_out` does for a source that fits in memory. The
module does not import torch: a process starts in 0.2 s.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import islice
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.corpora.document import Document
from fledgling.corpora.prepared_data import stamp_file
from fledgling.corpora.readers import SkippedDocuments, list_source_files, read_part_in_folder, split_file
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard, open_shards
from fledgling.record import write_json
from fledgling.record.durable import replace_file
from fledgling.runtime.cores import count_cores
from fledgling.text.tokenizer import Tokenizer

UNIT_BYTES = 100_000_000  # of the files of a unit, about
HELD_OUT_FRACTION = 0.002  # of all documents: 2 MB of 1 GB of web pages
CORPUS_FILE = "corpus.json"
ENCODE_BATCH = 512  # documents in a call of the tokenizer

FilePart = tuple[str, str, tuple[int, int] | None]  # path, name for origins, part of the file
TokenizeProgress = Callable[
    ["TokenizeStats", int, int], None
]  # (totals of this run, bytes of files done, bytes of all files)


@dataclass(frozen=True)
class WorkUnit:
    """Files, or a part of one, that become one shard."""

    parts: tuple[FilePart, ...]
    num_bytes: int  # of the files
    name: str  # of the shard's directory


@dataclass(frozen=True)
class TokenizeStats:
    """Totals of a tokenizing run: documents, bytes of their text, tokens, and skipped documents."""

    documents: int = 0
    num_bytes: int = 0
    tokens: int = 0
    skipped: SkippedDocuments = field(default_factory=SkippedDocuments)

    def __add__(self, other: TokenizeStats) -> TokenizeStats:
        counts = (self.documents + other.documents, self.num_bytes + other.num_bytes, self.tokens + other.tokens)
        return TokenizeStats(*counts, self.skipped + other.skipped)


@dataclass(frozen=True)
class TokenizedCorpus:
    """A tokenized corpus: shards of training documents, and shards of the held-out documents of the same files."""

    train: tuple[TokenShard, ...]
    held_out: tuple[TokenShard, ...]

    @classmethod
    def open(cls, directory: Path, tokenizer: str, digest: str | None = None) -> TokenizedCorpus | None:
        """Returns the corpus of a directory, or None if it is not finished. Raises UserError for a corrupt one.

        digest: of what it must be made from; None accepts the newest.
        """
        listing = directory / CORPUS_FILE
        if digest is not None and _listed_digest(listing) != digest:
            listing = _older_listing(directory, digest)
        if not listing.is_file():
            return None
        try:
            names = json.loads(listing.read_text(encoding="utf-8"))["shards"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{listing} cannot be read: delete it and prepare the data again") from None
        shards = open_shards([directory / name for name in names], tokenizer)
        edges = [len(shard) - shard.metadata["held_out"] for shard in shards]
        train = [shard.slice_documents(0, edge) for shard, edge in zip(shards, edges, strict=True)]
        held_out = [shard.slice_documents(edge, len(shard)) for shard, edge in zip(shards, edges, strict=True)]
        return cls(tuple(s for s in train if len(s)), tuple(s for s in held_out if len(s)))


def _listed_digest(listing: Path) -> str:
    """Returns the digest of what a listing's corpus is made from; "" if it is missing, corrupt or says nothing."""
    try:
        return str(json.loads(listing.read_text(encoding="utf-8"))["inputs"]["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _older_listing(directory: Path, digest: str) -> Path:
    """Returns where the listing of an earlier content is kept, for stages that began with it."""
    return directory / f"{Path(CORPUS_FILE).stem}-{digest}.json"


def split_into_units(source: Path, fingerprint: str, unit_bytes: int = UNIT_BYTES) -> list[WorkUnit]:
    """Returns the units of a file or folder, in order of paths: large files in parts, small files together.

    Raises UserError if there is nothing to read, or if a parquet file that has to be cut is corrupt.
    """
    units: list[WorkUnit] = []
    pending: list[FilePart] = []
    pending_bytes = 0

    def close_unit() -> None:
        nonlocal pending, pending_bytes
        if pending:
            units.append(WorkUnit(tuple(pending), pending_bytes, _unit_name(pending, fingerprint)))
        pending, pending_bytes = [], 0

    for file in list_source_files(source):
        name = file.name if file == source else file.relative_to(source).as_posix()
        parts, file_bytes = split_file(file, unit_bytes), file.stat().st_size
        if len(parts) > 1 or pending_bytes + file_bytes > unit_bytes:
            close_unit()
        for part in parts:
            pending.append((str(file), name, part))
            pending_bytes += file_bytes // len(parts)
            if len(parts) > 1:
                close_unit()
    close_unit()
    return units


def _unit_name(parts: Sequence[FilePart], fingerprint: str) -> str:
    """Returns the name of a unit's shard: its first file, and a digest of what the shard is made from."""
    facts = [(name, part, *stamp_file(Path(file))) for file, name, part in parts]
    digest = hashlib.sha256(json.dumps([facts, fingerprint, HELD_OUT_FRACTION]).encode()).hexdigest()[:12]
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(parts[0][1]).stem)
    return f"{stem[:40]}-{digest}"


def tokenize_corpus(
    source: Path,
    directory: Path,
    tokenizer: Path,
    workers: int = 0,
    column: str | None = None,
    progress: TokenizeProgress | None = None,
    unit_bytes: int = UNIT_BYTES,
    facts: Mapping[str, Any] | None = None,
) -> list[WorkUnit]:
    """Tokenizes a file or folder into `directory`, except for the shards that exist already; returns the units.

    The listing of an earlier content is kept under another name, for stages that began with it.

    Args:
        tokenizer: path of a tokenizer.json.
        workers: processes; 0 for one a core, 1 to work in this process.
        column: the column of JSON lines or parquet that holds the text.
        facts: written into the listing; facts["inputs"]["digest"] identifies the content.

    Raises:
        UserError: for files that cannot be read or that change meanwhile, a full disk, or a killed process; finished
            shards stay.
    """
    fingerprint = Tokenizer.load(tokenizer).fingerprint()
    fingerprint += f" {column}" if column else ""
    units = split_into_units(source, fingerprint, unit_bytes)
    missing = [unit for unit in units if not (directory / unit.name / MANIFEST).exists()]
    bytes_total, stats = sum(unit.num_bytes for unit in units), TokenizeStats()
    bytes_done = bytes_total - sum(unit.num_bytes for unit in missing)
    if progress:
        progress(stats, bytes_done, bytes_total)
    for unit, unit_stats in _tokenize_units(missing, directory, tokenizer, column, workers or count_cores()):
        stats, bytes_done = stats + unit_stats, bytes_done + unit.num_bytes
        if progress:
            progress(stats, bytes_done, bytes_total)
    if [unit.name for unit in units] != [unit.name for unit in split_into_units(source, fingerprint, unit_bytes)]:
        raise UserError(f"{source} was changed while it was read: run again when nothing writes to it")
    shards = open_shards([directory / unit.name for unit in units], fingerprint.split()[0])
    totals, skipped = _count_totals(shards), SkippedDocuments()
    for shard in shards:
        skipped += SkippedDocuments(**shard.metadata.get("skipped", {}))
    if not totals["train"]["documents"]:
        raise UserError(f"{source}: no document to train on; give a source with some text")
    older = _listed_digest(directory / CORPUS_FILE)
    if older and older != (facts or {}).get("inputs", {}).get("digest"):
        replace_file(directory / CORPUS_FILE, _older_listing(directory, older))
    listing = {"source": str(source), **totals, "skipped": str(skipped), "shards": [unit.name for unit in units]}
    write_json(directory / CORPUS_FILE, {**listing, **(facts or {})})
    return units


def _count_totals(shards: Iterable[TokenShard]) -> dict[str, dict[str, int]]:
    """Returns documents, tokens and bytes of text of the training part and of the held-out part."""
    keys = ("documents", "tokens", "bytes")
    train, held_out = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
    for shard in shards:
        edge = len(shard) - shard.metadata["held_out"]
        tokens = int(shard.offsets[edge])
        train_counts = (edge, tokens, shard.metadata["bytes"])
        held_out_counts = (len(shard) - edge, len(shard.tokens) - tokens, shard.metadata["held_out_bytes"])
        for total, counts in ((train, train_counts), (held_out, held_out_counts)):
            for name, count in zip(total, counts, strict=True):
                total[name] += count
    return {"train": train, "held_out": held_out}


def sample_documents(
    source: Path, max_characters: int, column: str | None = None, unit_bytes: int = UNIT_BYTES
) -> Iterator[Document]:
    """Yields training documents from the beginning of every unit, about `max_characters` in all."""
    units, characters = split_into_units(source, "", unit_bytes), 0
    for number, unit in enumerate(units, start=1):
        for document in _read_unit(unit, column, SkippedDocuments()):
            if characters >= max_characters * number // len(units):  # the next unit makes up for a short one
                break
            if document.hash_fraction() >= HELD_OUT_FRACTION:
                characters += len(document.text)
                yield document


def _read_unit(unit: WorkUnit, column: str | None, skipped: SkippedDocuments) -> Iterator[Document]:
    """Yields the documents of a unit."""
    for file, name, part in unit.parts:
        yield from read_part_in_folder(Path(file), name, column, skipped, part)


def _tokenize_units(
    units: Sequence[WorkUnit], directory: Path, tokenizer: Path, column: str | None, workers: int
) -> Iterator[tuple[WorkUnit, TokenizeStats]]:
    """Tokenizes units, in a pool of processes if more than one has work; yields each unit when it is done."""
    if min(workers, len(units)) <= 1:
        for unit in units:
            yield unit, tokenize_unit(unit, directory, tokenizer, column)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(units)), spawn, initializer=_start_worker)
    try:
        running = {pool.submit(tokenize_unit, unit, directory, tokenizer, column): unit for unit in units}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            f"{directory}: a tokenizing process was killed, perhaps for lack of memory; run again with fewer, such as "
            f"fledgling data prepare --workers {max(1, workers // 2)}. Finished shards stay"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Prepares a process of the pool: one thread, no Ctrl-C (its parent handles it), exit when the parent ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


@cache
def _load_tokenizer(path: Path) -> Tokenizer:
    """Returns a tokenizer, loaded once in each process."""
    return Tokenizer.load(path)


def tokenize_unit(unit: WorkUnit, directory: Path, tokenizer: Path, column: str | None = None) -> TokenizeStats:
    """Tokenizes a unit into its shard. Raises UserError as `read_part_in_folder` and `ShardWriter` do."""
    encoder, skipped = _load_tokenizer(tokenizer), SkippedDocuments()
    documents = _read_unit(unit, column, skipped)
    held_out: list[str] = []
    text_bytes = [0, 0]  # of training, held out
    metadata: dict[str, Any] = {"files": [[name, part] for _, name, part in unit.parts]}
    with ShardWriter(
        directory / unit.name, encoder.vocab_size, tokenizer=encoder.fingerprint(), metadata=metadata
    ) as writer:
        while group := list(islice(documents, ENCODE_BATCH)):
            training: list[str] = []
            for document in group:
                is_held_out = document.hash_fraction() < HELD_OUT_FRACTION
                (held_out if is_held_out else training).append(document.text)
                text_bytes[is_held_out] += document.num_bytes
            writer.add_documents(encoder.encode_batch(training))
        edge = writer.documents
        writer.add_documents(encoder.encode_batch(held_out))
        counts = {"held_out": writer.documents - edge, "bytes": text_bytes[0], "held_out_bytes": text_bytes[1]}
        writer.metadata |= counts | {"skipped": asdict(skipped)}
    return TokenizeStats(writer.documents, sum(text_bytes), writer.tokens, skipped)
