"""Prepares documents for training: reads and splits a source, trains the tokenizer, writes token shards.

Start with `DocumentPreparer`. Everything lands in the run directory, and finished work is found again by a digest of
what it was made from (`prepared_data.py`), so a second run prepares nothing twice and an edited text is prepared again:

    RUN/tokenizer/                   tokenizer.json and training.json
    RUN/data/NAME-train-DIGEST/      one shard of training documents, and one of held-out documents: a source that
    RUN/data/NAME-validation-DIGEST/ fits in memory
    RUN/data/NAME-DIGEST/            shards of a larger source (`tokenization.py`); DIGEST leaves out the content

Conversations of tasks are prepared by `fledgling.train.data_preparer`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fledgling.config import TokenizerConfig, UserError
from fledgling.corpora import document as splits
from fledgling.corpora import embedded, readers, tokenization
from fledgling.corpora.document import Document, split_held_out
from fledgling.corpora.embedded import harvest_embedded
from fledgling.corpora.prepared_data import (
    Log,
    PreparationInputs,
    PreparedData,
    digest_files,
    digest_installed_python,
    read_facts,
    short_digest,
)
from fledgling.corpora.public_sets import PUBLIC_SETS
from fledgling.corpora.readers import SkippedDocuments, estimate_text_bytes, list_source, read_documents
from fledgling.corpora.tokenization import (
    TokenizedCorpus,
    TokenizeStats,
    sample_documents,
    tokenize_corpus,
)
from fledgling.corpora.trained_tokenizer import read_training_facts, save_trained_tokenizer
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard, tokenize_documents
from fledgling.files import require_names, resolve_data_root, split_columns
from fledgling.files.columns import DOCUMENT_COLUMNS
from fledgling.record.jsonl import format_bytes
from fledgling.record.progress_bar import ProgressBar
from fledgling.runtime.cores import count_cores
from fledgling.text.tokenizer import Tokenizer

MAX_IN_MEMORY_BYTES = 300_000_000  # a larger source is tokenized file by file
EMBEDDED = "embedded"
SPLITS = ("train", "validation")


def list_settings(large: bool) -> list[object]:
    """Returns every setting of this program that shapes the documents of a source; names do not matter, values do."""
    reading = [readers.VERSION, readers.MAX_UNSPLIT_FILE, readers.MIN_PIECE, readers.MAX_LINE, readers.TEXT_SUFFIXES]
    if large:
        return [*reading, tokenization.HELD_OUT_FRACTION]
    splitting = [splits.HELD_OUT_FRACTION, splits.MIN_CHARACTERS, splits.MIN_SHARED_LINE, splits.MIN_DOCUMENTS]
    splitting += [splits.MAX_SHARE, readers.FEW_FILES, readers.MAX_UNSPLIT_SOURCE, readers.MAX_SOURCE_PIECE]
    harvest = [embedded.VERSION, embedded.KINDS, embedded.MAX_CHARACTERS, embedded.DOCSTRING_DOCUMENT_SIZE]
    harvest += [splits.MIN_SHARED_FILE_LINE, embedded.CODE_DOCUMENT_SIZE, embedded.MIN_REPEAT_LENGTH]
    return [*reading, *splitting, *harvest, sorted(embedded.SKIPPED_FOLDERS)]


def find_source(source: str, data_dir: str | Path | None = None) -> Path:
    """Returns the path of a source of documents: as given where it exists, else under the data root.

    Raises UserError, saying how to get it, where neither exists.
    """
    source, columns = split_columns(source)
    require_names(source, columns, DOCUMENT_COLUMNS, "a document")
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
    text_column = text_column or split_columns(source)[1].get("text")
    return read_documents(find_source(source, data_dir), text_column, skipped=skipped, is_source=True)


def read_training_texts(sources: Iterable[str], data_dir: str | Path | None, log: Log) -> Iterator[str]:
    """Yields the texts of some sources in turn; of the embedded corpus those that are not held out."""
    for source in sources:
        log(f"reading {source}")
        skipped = SkippedDocuments()
        documents = read_source(source, data_dir, skipped=skipped)
        for document in split_held_out(documents)[0] if source == EMBEDDED else documents:
            yield document.text
        contents = "" if source == EMBEDDED else list_source(find_source(source, data_dir)).describe()
        if report := "; ".join(filter(None, (contents, str(skipped)))):
            log(f"{source}: {report}")


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
        self.prepared = PreparedData(run_dir / "data", log)
        self._documents: dict[str, tuple[list[Document], list[Document]]] = {}
        self._skipped: dict[str, SkippedDocuments] = {}
        self._content_digests: dict[str, str] = {}  # taken before a source is read

    @property
    def tokenizer_file(self) -> Path:
        """The path of the run's tokenizer, whether it exists or not."""
        return self.run_dir / "tokenizer" / "tokenizer.json"

    def require_sources(self, sources: Iterable[str]) -> None:
        """Raises UserError, saying how to get it, for a source that does not exist."""
        for source in sources:
            try:
                if source != EMBEDDED:
                    find_source(source, self.data_dir)
            except UserError as error:
                if self.prepared.find_tokens(source) is None:
                    raise UserError(f"{error}{self.prepared.explain_unused(source)}") from None

    def is_large(self, source: str) -> bool:
        """Whether a source is tokenized file by file instead of being held in memory."""
        if source == EMBEDDED:
            return False
        files = list_source(find_source(source, self.data_dir)).files
        return sum(map(estimate_text_bytes, files)) > MAX_IN_MEMORY_BYTES

    def digest_source(self, source: str) -> str:
        """Returns a digest of a source's content; of a large one, of sizes, times and samples."""
        if source == EMBEDDED:
            return digest_installed_python()
        path = find_source(source, self.data_dir)
        return digest_files(path, list_source(path).files, whole=not self.is_large(source))

    def collect_inputs(self, source: str, tokenizer: Tokenizer) -> PreparationInputs:
        """Returns what the shards of a source are made from."""
        settings = short_digest(*list_settings(self.is_large(source)), *split_columns(source)[1].items())
        return PreparationInputs(self._content_digest(source), tokenizer.fingerprint(), settings)

    def _content_digest(self, source: str) -> str:
        """Returns the digest of a source as it was when this preparer first met it."""
        if source not in self._content_digests:
            self._content_digests[source] = self.digest_source(source)
        return self._content_digests[source]

    def describe_contents(self, source: str) -> str:
        """Returns which files of a folder are read and which are passed over; "" for another source."""
        path = Path() if source == EMBEDDED else find_source(source, self.data_dir)
        return list_source(path).describe() if source != EMBEDDED and path.is_dir() else ""

    def read_split(self, source: str) -> tuple[list[Document], list[Document]]:
        """Returns the (training, validation) documents of a source; each source is read once."""
        if source not in self._documents:
            if source == EMBEDDED:
                self.log("reading the documentation and source of the installed Python")
            before = self._content_digest(source)
            skipped = self._skipped[source] = SkippedDocuments()
            documents = split_held_out(read_source(source, self.data_dir, skipped=skipped))
            if self.digest_source(source) != before:
                raise UserError(f"{source} was changed while it was read: run again when nothing writes to it")
            if not documents[0]:
                raise UserError(
                    f"{source}: no document is left to train on; {len(documents[1]):,} are held out, and the others "
                    "repeat their lines; give a source with more text"
                )
            self._documents[source] = documents
            self._log_contents(source, self.describe_contents(source), skipped)
            if not documents[1]:
                self.log(f"{source}: too few documents, or too alike, to hold one out: it has no bits per byte")
        return self._documents[source]

    def load_or_train_tokenizer(
        self, config: TokenizerConfig, more_texts: Iterable[str] = (), more_key: str = "", may_replace: bool = False
    ) -> Tokenizer:
        """Returns the tokenizer in RUN/tokenizer; if absent, trains it on `config.sources` and then `more_texts`.

        Args:
            more_key: identifies `more_texts`, which are not read if the tokenizer is found again.
            may_replace: whether one that was made from other texts or settings is trained again, because no weights
                depend on it. Otherwise it is kept, and a line says so; one of unknown origin is always kept.
        """
        try:
            inputs = self._tokenizer_inputs(config, more_key)
        except UserError as error:
            if may_replace or not self.tokenizer_file.exists():
                raise
            self.log(f"tokenizer: kept; {error}")
            return Tokenizer.load(self.tokenizer_file)
        if self.tokenizer_file.exists():
            older = read_training_facts(self.tokenizer_file).get("inputs")
            if older is None or older == inputs:
                return Tokenizer.load(self.tokenizer_file)
            changed = " and ".join(name for name in inputs if inputs[name] != older.get(name))
            if not may_replace or self.tokenizer_file.parent.is_symlink():
                self.log(f"tokenizer: kept, although its {changed} changed: only a new run trains another")
                return Tokenizer.load(self.tokenizer_file)
            self.log(f"tokenizer: its {changed} changed, so it is trained again")
        source_bytes: dict[str, int] = {}
        self.log(f"training a tokenizer of {config.vocab_size:,} entries")
        tokenizer = Tokenizer.train(
            self._tokenizer_texts(config, more_texts, source_bytes),
            config.vocab_size,
            max_digits=config.max_digits,
            letter_tokens=config.letter_tokens,
        )
        facts = {**asdict(config), "bytes": source_bytes, "inputs": inputs}
        _, facts = save_trained_tokenizer(tokenizer, self.tokenizer_file, facts)
        self.log(
            f"tokenizer: trained by {facts.get('trainer')} in {facts.get('seconds')} s, "
            f"encodes by {tokenizer.batch_library}"
        )
        return tokenizer

    def _tokenizer_inputs(self, config: TokenizerConfig, more_key: str) -> dict[str, str]:
        """Returns digests of what a tokenizer is a function of, by what a message calls them."""
        content = [self._content_digest(source) for source in config.sources]
        settings = [list_settings(self.is_large(source)) for source in config.sources]
        table = {name: value for name, value in asdict(config).items() if name != "sources"}
        return {"text": short_digest(content), "settings": short_digest(table, settings), "conversations": more_key}

    def _tokenizer_texts(
        self, config: TokenizerConfig, more_texts: Iterable[str], source_bytes: dict[str, int]
    ) -> Iterator[str]:
        """Yields the training texts of the tokenizer and counts the bytes of each source in `source_bytes`."""
        left = config.max_characters
        for source in config.sources:
            source_bytes[source] = 0
            large = self.is_large(source)
            path = find_source(source, self.data_dir) if large else Path()
            column = split_columns(source)[1].get("text")
            for document in sample_documents(path, left, column) if large else self.read_split(source)[0]:
                if left <= 0:
                    return
                left -= len(document.text)
                source_bytes[source] += document.num_bytes
                yield document.text
        yield from more_texts

    def _log_contents(self, source: str, contents: str, skipped: object) -> None:
        """Logs which files were read and passed over, and which documents were skipped."""
        if text := "; ".join(filter(None, (contents, str(skipped)))):
            self.log(f"{source}: {text}")

    def prepare_shards(self, source: str, tokenizer: Tokenizer) -> TokenizedCorpus:
        """Returns the token shards of a source, writing those that do not exist yet; logs which, and why."""
        if kept := self._open_kept(source, tokenizer):
            return kept
        inputs, corpus = self.collect_inputs(source, tokenizer), None
        facts: Mapping[str, Any] = inputs.to_json()
        if pinned := self.prepared.get_pinned(source, inputs):
            facts, directories = pinned, [self.prepared.directory / name for name in pinned["directories"]]
            corpus = self._open_corpus(directories, inputs.tokenizer, facts["digest"])
        if corpus is None:
            facts, stem = inputs.to_json(), Path(split_columns(source)[0]).stem or "text"
            find = self._large_directories if self.is_large(source) else self._small_directories
            directories = find(stem, inputs)
            corpus = self._open_corpus(directories, inputs.tokenizer, inputs.digest)
            if corpus is None:
                self.prepared.explain(source, directories[0].name.rpartition("-")[0], inputs)
                if self.is_large(source):
                    self._tokenize_large(source, directories[0], inputs)
                else:
                    for split, part, directory in zip(SPLITS, self.read_split(source), directories, strict=True):
                        if not (directory / MANIFEST).exists():
                            self._write_shard(source, split, part, directory, tokenizer, inputs)
                corpus = self._open_corpus(directories, inputs.tokenizer, inputs.digest)
                assert corpus is not None, "the listing of a large source is written last"
            else:
                self.prepared.require_whole(source, directories)
                self.log(f"{source}: tokens found again in {directories[0]}")
                earlier = read_facts(directories[0], inputs.digest)
                self._log_contents(source, earlier.get("contents", ""), earlier.get("skipped", ""))
        self.prepared.record_used(source, facts, directories)
        self.record_digest((*corpus.train, *corpus.held_out))
        return corpus

    def _open_kept(self, source: str, tokenizer: Tokenizer) -> TokenizedCorpus | None:
        """Returns the tokens that the run has of a text that is gone; None for one that is here, or without tokens."""
        if source == EMBEDDED:
            return None
        try:
            find_source(source, self.data_dir)
        except UserError as error:
            kept = self.prepared.find_tokens(source)
            if kept is None or kept.get("tokenizer") != tokenizer.fingerprint():
                reason = self.prepared.explain_unused(source, tokenizer.fingerprint())
                raise UserError(f"{error}{reason}") from None
            directories = [self.prepared.directory / name for name in kept["directories"]]
            corpus = self._open_corpus(directories, kept["tokenizer"], kept["digest"])
            if corpus is None:
                return None
            self.log(f"{error}; the tokens that the run has of it are read, {directories[0]}")
            self.prepared.record_used(source, kept, directories)
            self.record_digest((*corpus.train, *corpus.held_out))
            return corpus
        return None

    def _small_directories(self, stem: str, inputs: PreparationInputs) -> list[Path]:
        return [self.prepared.directory / f"{stem}-{split}-{inputs.digest}" for split in SPLITS]

    def _large_directories(self, stem: str, inputs: PreparationInputs) -> list[Path]:
        return [self.prepared.directory / f"{stem}-{short_digest(inputs.tokenizer, inputs.settings)}"]

    def _open_corpus(self, directories: list[Path], tokenizer: str, digest: str) -> TokenizedCorpus | None:
        """Returns the corpus in the two directories of a small source or the one of a large one; None: unfinished."""
        if len(directories) == 1:
            return TokenizedCorpus.open(directories[0], tokenizer, digest)
        if not all((directory / MANIFEST).exists() for directory in directories):
            return None
        train, held_out = (TokenShard.open(directory, tokenizer) for directory in directories)
        return TokenizedCorpus((train,), (held_out,) if len(held_out) else ())

    def record_digest(self, shards: Iterable[TokenShard]) -> None:
        """Adds the digest of some shards to `shard_digests`, by which ranks compare what they read."""
        self.shard_digests.append(short_digest([shard.manifest["files"] for shard in shards]))

    def _write_shard(
        self,
        source: str,
        split: str,
        documents: list[Document],
        directory: Path,
        tokenizer: Tokenizer,
        inputs: PreparationInputs,
    ) -> None:
        self.log(f"tokenizing {source} ({split})")
        size = sum(document.num_bytes for document in documents)
        metadata = {
            **{"source": source, "split": split, "bytes": size, "documents": len(documents)},
            **{"inputs": inputs.to_json(), "contents": self.describe_contents(source)},
            "skipped": str(self._skipped.get(source, "")),
        }
        with ShardWriter(
            directory, tokenizer.vocab_size, tokenizer=tokenizer.fingerprint(), metadata=metadata
        ) as writer:
            tokenize_documents((document.text for document in documents), tokenizer, writer)

    def _tokenize_large(self, source: str, folder: Path, inputs: PreparationInputs) -> None:
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
            contents, path = self.describe_contents(source), find_source(source, self.data_dir)
            facts = {"inputs": inputs.to_json(), "contents": contents}
            column = split_columns(source)[1].get("text")
            tokenize_corpus(path, folder, self.tokenizer_file, workers, column, progress=update, facts=facts)
        finally:
            if bar:
                bar.close()
        seconds = time.perf_counter() - start
        self._log_contents(source, contents, read_facts(folder, inputs.digest).get("skipped", ""))
        speed = f"{stats.documents / seconds:,.0f} documents/s, {format_bytes(stats.num_bytes / seconds)}/s"
        self.log(
            f"{source}: {stats.documents:,} documents, {format_bytes(stats.num_bytes)} of text, {stats.tokens:,} "
            f"tokens in {seconds:,.0f} s ({speed})"
        )
