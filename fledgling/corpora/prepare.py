"""Prepares documents for training: reads and splits a source, trains the tokenizer, writes token shards.

Start with `DocumentPreparer`. Everything lands in the run directory, and finished work is found again by a digest of
what it was made from, so a second run prepares nothing twice:

    RUN/tokenizer/                   tokenizer.json and training.json
    RUN/data/NAME-train-DIGEST/      one shard of training documents, and one of held-out documents: a source that
    RUN/data/NAME-validation-DIGEST/ fits in memory
    RUN/data/NAME-DIGEST/            many shards and corpus.json (`tokenization.py`): a larger source

Conversations of tasks are prepared by `fledgling.train.prepare`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fledgling.config import TokenizerConfig, UserError
from fledgling.corpora.document import Document, count_bytes_by_kind, measure_line_overlap, split_held_out
from fledgling.corpora.embedded import harvest_embedded
from fledgling.corpora.public_sets import PUBLIC_SETS
from fledgling.corpora.readers import SkippedDocuments, estimate_text_bytes, list_source_files, read_documents
from fledgling.corpora.tokenization import (
    TokenizedCorpus,
    TokenizeStats,
    sample_documents,
    tokenize_corpus,
)
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard, tokenize_documents
from fledgling.files import resolve_data_root
from fledgling.record import write_json
from fledgling.record.progress_bar import ProgressBar
from fledgling.runtime.cores import count_cores
from fledgling.text.tokenizer import Tokenizer

Log = Callable[[str], None]
MAX_IN_MEMORY_BYTES = 300_000_000  # a larger source is tokenized file by file
EMBEDDED = "embedded"


def short_digest(*values: object) -> str:
    """Returns 12 hexadecimal digits that identify some JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def find_source(source: str, data_dir: str | Path | None = None) -> Path:
    """Returns the path of a source of documents: as given where it exists, else under the data root.

    Raises UserError, saying how to get it, where neither exists.
    """
    path, under_root = Path(source), resolve_data_root(data_dir) / source
    if path.exists() or under_root.exists():
        return path if path.exists() else under_root
    fetch = f"; get it with `fledgling data fetch {source}`" if source in PUBLIC_SETS else ""
    also = f", and no {under_root}" if under_root != path else ""
    raise UserError(f'{source}: no such file or folder{also}; expected "{EMBEDDED}", a task, a file or a folder{fetch}')


def read_source(
    source: str,
    data_dir: str | Path | None = None,
    text_column: str | None = None,
    skipped: SkippedDocuments | None = None,
) -> Iterable[Document]:
    """Returns the documents of a source: "embedded", a path, or the name of a public set that was fetched.

    Raises UserError as `find_source` and `read_documents` do.
    """
    if source == EMBEDDED:
        return harvest_embedded()
    return read_documents(find_source(source, data_dir), text_column, skipped=skipped)


def read_training_texts(sources: Iterable[str], data_dir: str | Path | None, log: Log) -> Iterator[str]:
    """Yields the texts of some sources in turn; of the embedded corpus those that are not held out."""
    for source in sources:
        log(f"reading {source}")
        documents = read_source(source, data_dir)
        for document in split_held_out(documents)[0] if source == EMBEDDED else documents:
            yield document.text


def summarize_split(documents: list[Document], training: list[Document], validation: list[Document]) -> dict[str, Any]:
    """Returns counts of documents and of their two parts, in documents and bytes.

    line_overlap is the share of validation bytes in lines that the training part has too.
    """
    return {
        "documents": len(documents),
        "bytes": count_bytes_by_kind(documents),
        "training_bytes": sum(document.num_bytes for document in training),
        "validation_bytes": sum(document.num_bytes for document in validation),
        "validation_documents": len(validation),
        "line_overlap": measure_line_overlap(training, validation),
    }


def save_trained_tokenizer(tokenizer: Tokenizer, path: Path, facts: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Writes tokenizer.json, and training.json in the same folder; returns the first file and the facts of the second.

    training.json has `facts`, the tokenizer's `training_info` and its fingerprint.
    """
    file = tokenizer.save(path)
    written = {**facts, **(tokenizer.training_info or {}), "fingerprint": tokenizer.fingerprint()}
    write_json(file.with_name("training.json"), written)
    return file, written


class DocumentPreparer:
    """Prepares the tokenizer and the shards of documents of one run, and keeps the texts it has read.

    Args:
        run_dir: where tokenizer and shards are written.
        data_dir: the data root; None for FLEDGLING_DATA or its default.
        log: receives a line when something begins, or is left out.
        workers: processes that tokenize a source too large for memory; 0 for one a core.
        show_progress: whether a moving line on stderr shows their progress.
    """

    def __init__(
        self,
        run_dir: Path,
        data_dir: str | Path | None = None,
        log: Log = lambda text: None,
        workers: int = 0,
        show_progress: bool = False,
    ) -> None:
        self.run_dir, self.data_dir, self.log = run_dir, data_dir, log
        self.workers, self.show_progress = workers, show_progress
        self.shard_digests: list[str] = []  # of every shard that was handed out
        self._documents: dict[str, tuple[list[Document], list[Document]]] = {}

    @property
    def tokenizer_file(self) -> Path:
        """The path of the run's tokenizer, whether it exists or not."""
        return self.run_dir / "tokenizer" / "tokenizer.json"

    def require_sources(self, sources: Iterable[str]) -> None:
        """Raises UserError, saying how to get it, for a source that does not exist."""
        for source in sources:
            if source != EMBEDDED:
                find_source(source, self.data_dir)

    def is_large(self, source: str) -> bool:
        """Whether a source is tokenized file by file instead of being held in memory."""
        if source == EMBEDDED:
            return False
        files = list_source_files(find_source(source, self.data_dir))
        return sum(map(estimate_text_bytes, files)) > MAX_IN_MEMORY_BYTES

    def read_split(self, source: str) -> tuple[list[Document], list[Document]]:
        """Returns the (training, validation) documents of a source; each source is read once."""
        if source not in self._documents:
            if source == EMBEDDED:
                self.log("reading the documentation and source of the installed Python")
            skipped = SkippedDocuments()
            self._documents[source] = split_held_out(read_source(source, self.data_dir, skipped=skipped))
            if skipped.total:
                self.log(str(skipped))
            if not self._documents[source][1]:
                self.log(f"{source} is too small to hold anything out: no bits per byte will be measured on it")
        return self._documents[source]

    def load_or_train_tokenizer(self, config: TokenizerConfig, more_texts: Iterable[str] = ()) -> Tokenizer:
        """Returns the tokenizer in RUN/tokenizer; if absent, trains it on `config.sources` and then `more_texts`."""
        if self.tokenizer_file.exists():
            return Tokenizer.load(self.tokenizer_file)
        source_bytes: dict[str, int] = {}
        self.log(f"training a tokenizer of {config.vocab_size:,} entries")
        tokenizer = Tokenizer.train(
            self._tokenizer_texts(config, more_texts, source_bytes),
            config.vocab_size,
            max_digits=config.max_digits,
            letter_tokens=config.letter_tokens,
        )
        _, facts = save_trained_tokenizer(tokenizer, self.tokenizer_file, {**asdict(config), "bytes": source_bytes})
        self.log(
            f"tokenizer: trained by {facts.get('trainer')} in {facts.get('seconds')} s, "
            f"encodes by {tokenizer.batch_library}"
        )
        return tokenizer

    def _tokenizer_texts(
        self, config: TokenizerConfig, more_texts: Iterable[str], source_bytes: dict[str, int]
    ) -> Iterator[str]:
        """Yields the training texts of the tokenizer and counts the bytes of each source in `source_bytes`."""
        left = config.max_characters
        for source in config.sources:
            source_bytes[source] = 0
            large = self.is_large(source)
            path = find_source(source, self.data_dir) if large else Path()
            for document in sample_documents(path, left) if large else self.read_split(source)[0]:
                if left <= 0:
                    return
                left -= len(document.text)
                source_bytes[source] += document.num_bytes
                yield document.text
        yield from more_texts

    def prepare_shards(self, source: str, tokenizer: Tokenizer) -> TokenizedCorpus:
        """Returns the token shards of a source, writing those that do not exist yet."""
        fingerprint = tokenizer.fingerprint()
        digest = short_digest(source, fingerprint)
        folder = self.run_dir / "data" / f"{Path(source).stem}-{digest}"
        names = ("train", "validation")
        directories = [folder.with_name(f"{Path(source).stem}-{name}-{digest}") for name in names]
        corpus = TokenizedCorpus.open(folder, fingerprint)
        if corpus is None and not all((directory / MANIFEST).exists() for directory in directories):
            if self.is_large(source):
                self._tokenize_large(source, folder)
                corpus = TokenizedCorpus.open(folder, fingerprint)
                assert corpus is not None, "tokenize_corpus writes corpus.json last"
            else:
                for name, documents, directory in zip(names, self.read_split(source), directories, strict=True):
                    if not (directory / MANIFEST).exists():
                        self._write_shard(source, name, documents, directory, tokenizer)
        if corpus is None:
            train, held_out = (TokenShard.open(directory, fingerprint) for directory in directories)
            corpus = TokenizedCorpus((train,), (held_out,) if len(held_out) else ())
        self.record_digest((*corpus.train, *corpus.held_out))
        return corpus

    def record_digest(self, shards: Iterable[TokenShard]) -> None:
        """Adds the digest of some shards to `shard_digests`, by which ranks compare what they read."""
        self.shard_digests.append(short_digest([shard.manifest["files"] for shard in shards]))

    def _write_shard(
        self, source: str, split: str, documents: list[Document], directory: Path, tokenizer: Tokenizer
    ) -> None:
        self.log(f"tokenizing {source} ({split})")
        size = sum(document.num_bytes for document in documents)
        metadata = {"source": source, "split": split, "bytes": size, "documents": len(documents)}
        with ShardWriter(
            directory, tokenizer.vocab_size, tokenizer=tokenizer.fingerprint(), metadata=metadata
        ) as writer:
            tokenize_documents((document.text for document in documents), tokenizer, writer)

    def _tokenize_large(self, source: str, folder: Path) -> None:
        workers, start = self.workers or count_cores(), time.perf_counter()
        self.log(f"tokenizing {source} into {folder} with {workers} process{'es' * (workers > 1)}")
        stats = TokenizeStats()
        bar = ProgressBar("tokenize") if self.show_progress else None

        def update(totals: TokenizeStats, bytes_done: int, bytes_total: int) -> None:
            nonlocal stats
            stats, seconds = totals, max(1e-3, time.perf_counter() - start)
            if bar:
                speed = {"documents/s": round(stats.documents / seconds), "MB/s": stats.num_bytes / 1e6 / seconds}
                bar.update(bytes_done // 1_000_000, bytes_total // 1_000_000, speed, seconds)

        try:
            tokenize_corpus(find_source(source, self.data_dir), folder, self.tokenizer_file, workers, progress=update)
        finally:
            if bar:
                bar.close()
        seconds, megabytes = time.perf_counter() - start, stats.num_bytes / 1e6
        if stats.skipped.total:
            self.log(str(stats.skipped))
        self.log(
            f"{source}: {stats.documents:,} documents, {megabytes:,.0f} MB of text, {stats.tokens:,} tokens in "
            f"{seconds:,.0f} s ({stats.documents / seconds:,.0f} documents/s, {megabytes / seconds:,.1f} MB/s)"
        )
