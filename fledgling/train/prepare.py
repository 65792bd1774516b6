"""From text to token shards: the data of a stage, prepared once into the run directory.

A mixture names sources of three kinds. Generated tasks become conversations without end, all in one shard; public sets
and files of conversations become a shard each; both are packed whole. All other names are sources of documents
("embedded", a public set or a path), which are packed by cropping. A finished shard is found by the digest of its
inputs, so nothing is prepared twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from fledgling.config import DEFAULT_STAGES, Recipe, UserError
from fledgling.corpora.document import Document
from fledgling.corpora.embedded import harvest_embedded
from fledgling.corpora.public_sets import PUBLIC_SETS
from fledgling.corpora.readers import SkippedDocuments, estimate_text_bytes, list_source_files, read_documents
from fledgling.corpora.split import split_held_out
from fledgling.corpora.tokenization import (
    TokenizedCorpus,
    TokenizeStats,
    count_cores,
    sample_documents,
    tokenize_corpus,
)
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard, tokenize_documents
from fledgling.files import resolve_data_root, stat_files
from fledgling.record import write_json
from fledgling.record.progress_bar import ProgressBar
from fledgling.tasks import SKILLS, is_file_source, load_source, make_mixture_example
from fledgling.tasks.task import ConversationSource
from fledgling.text.conversation import render_conversations
from fledgling.text.tokenizer import Tokenizer

Log = Callable[[str], None]
CONVERSATIONS_PER_BATCH = 2000  # rendered at a time, on all cores
MAX_IN_MEMORY_BYTES = 300_000_000  # of documents held in memory, and of a set of conversations written whole
ROWS_PER_BAD_ROW = 100  # one row in 100 of a public set may be no conversation
TOKENIZER_CONVERSATIONS = 4000  # generated conversations in the tokenizer's training text


@dataclass(frozen=True)
class MixtureParts:
    """A mixture's names and weights by kind."""

    documents: dict[str, float]
    tasks: dict[str, float]  # generated conversations
    conversations: dict[str, float]  # read from files


def split_mixture(mixture: dict[str, float]) -> MixtureParts:
    """Splits a mixture by kind of source, without weights of 0. Raises UserError if nothing is left."""
    used = {name: weight for name, weight in mixture.items() if weight > 0}
    if not used:
        raise UserError("the stage's mixture is empty: name at least one source, such as {embedded = 1.0}")
    tasks = {name: weight for name, weight in used.items() if name in SKILLS}
    conversations = {name: weight for name, weight in used.items() if is_file_source(name)}
    documents = {name: weight for name, weight in used.items() if name not in tasks and name not in conversations}
    return MixtureParts(documents, tasks, conversations)


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


class DataPreparer:
    """Prepares tokenizer and shards of one recipe under RUN, and caches the documents that it reads for them.

    Args:
        log: receives notices: what starts, and what is left out.
        workers: processes that tokenize a large corpus; 0: one per core.
        show_progress: shows a progress line on stderr.
    """

    def __init__(
        self, recipe: Recipe, run_dir: Path, log: Log = lambda text: None, workers: int = 0, show_progress: bool = False
    ) -> None:
        self.config, self.seed, self.data_dir = recipe.tokenizer, recipe.seed, recipe.run.data_dir
        self.sft_mixture = recipe.sft.mixture  # its generated tasks are part of the tokenizer's training text
        self.run_dir, self.log, self.workers, self.show_progress = run_dir, log, workers, show_progress
        self._texts: dict[str, tuple[list[Document], list[Document]]] = {}
        self.shard_digests: list[str] = []  # of the corpora and shards that were opened

    def read_documents(self, source: str) -> tuple[list[Document], list[Document]]:
        """Returns the training and the held-out documents of a source; a document's content decides which it is."""
        if source not in self._texts:
            if source == "embedded":
                self.log("reading the documentation and source of the installed Python")
                documents = harvest_embedded()
            else:
                skipped = SkippedDocuments()
                documents = list(read_documents(self._path(source), skipped=skipped))
                if str(skipped):
                    self.log(str(skipped))
            self._texts[source] = split_held_out(documents)
            if not self._texts[source][1]:
                self.log(f"{source} is too small to hold anything out: no bits per byte will be measured on it")
        return self._texts[source]

    def _path(self, source: str) -> Path:
        path, in_data_root = Path(source), resolve_data_root(self.data_dir) / source
        if path.exists() or in_data_root.exists():
            return path if path.exists() else in_data_root
        expected = 'expected "embedded", a task, a file or a folder'
        fetch = f"; get it with `fledgling data fetch {source}`" if source in PUBLIC_SETS else ""
        raise UserError(f'source "{source}": {expected}; neither {path} nor {in_data_root} exists{fetch}')

    def require_sources(self, documents: Iterable[str], conversations: Iterable[str]) -> None:
        """Raises UserError if a source is missing; says how to get it."""
        for source in documents:
            if source != "embedded":
                self._path(source)
        for name in conversations:
            self.conversation_source(name).files()

    def conversation_source(self, name: str) -> ConversationSource:
        """Returns the conversations of that name, read from files under the recipe's data root."""
        return load_source(name, self.data_dir)

    def count_source_bytes(self, name: str) -> int:
        """Returns the size of the files of a source of conversations."""
        return sum(file.stat().st_size for file in self.conversation_source(name).files())

    @property
    def tokenizer_file(self) -> Path:
        """The path of the run's tokenizer, which may not exist yet."""
        return self.run_dir / "tokenizer" / "tokenizer.json"

    def load_or_train_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of RUN/tokenizer; trains it there if it does not exist."""
        config, path = self.config, self.tokenizer_file
        if path.exists():
            return Tokenizer.load(path)
        bytes_read: dict[str, int] = {}  # of each source
        self.log(f"training a tokenizer of {config.vocab_size:,} entries")
        tokenizer = Tokenizer.train(
            self._tokenizer_texts(bytes_read),
            config.vocab_size,
            max_digits=config.max_digits,
            letter_tokens=config.letter_tokens,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
        facts = {
            **asdict(config),
            **(tokenizer.training_info or {}),
            "bytes": bytes_read,
            "fingerprint": tokenizer.fingerprint(),
        }
        write_json(path.parent / "training.json", facts)
        self.log(
            f"tokenizer: trained by {facts.get('trainer')} in {facts.get('seconds')} s, "
            f"encodes by {tokenizer.batch_library}"
        )
        return tokenizer

    def _tokenizer_texts(self, bytes_read: dict[str, int]) -> Iterator[str]:
        """Yields the tokenizer's training text; counts the bytes of each source in `bytes_read`."""
        remaining = self.config.max_characters
        for source in self.config.sources:
            bytes_read[source] = 0
            if self.is_large(source):
                documents: Iterable[Document] = sample_documents(self._path(source), remaining)
            else:
                documents = self.read_documents(source)[0]
            for document in documents:
                if remaining <= 0:
                    return
                remaining -= len(document.text)
                bytes_read[source] += document.num_bytes
                yield document.text
        tasks = split_mixture(self.sft_mixture).tasks if self.sft_mixture else {}
        if tasks:
            for index in range(TOKENIZER_CONVERSATIONS):
                example = make_mixture_example(tasks, index, self.seed)
                yield from (text for message in example["messages"] for text in _texts_of(message["content"]))

    def is_large(self, source: str) -> bool:
        """Returns whether a source is tokenized file by file (`corpora.tokenization`) and not held in memory."""
        if source == "embedded":
            return False
        return sum(map(estimate_text_bytes, list_source_files(self._path(source)))) > MAX_IN_MEMORY_BYTES

    def document_shards(self, source: str, tokenizer: Tokenizer) -> TokenizedCorpus:
        """Returns the token shards of a document source, training and held-out; prepares them if they do not exist."""
        fingerprint = tokenizer.fingerprint()
        key = _digest(source, fingerprint)
        folder = self.run_dir / "data" / f"{Path(source).stem}-{key}"
        if corpus := TokenizedCorpus.open(folder, fingerprint):
            return self._record_digest(corpus)
        directories = [self.run_dir / "data" / f"{Path(source).stem}-{name}-{key}" for name in ("train", "validation")]
        if all((directory / MANIFEST).exists() for directory in directories) or not self.is_large(source):
            for directory, name, index in zip(directories, ("train", "validation"), (0, 1), strict=True):
                if not (directory / MANIFEST).exists():
                    self._tokenize(source, name, self.read_documents(source)[index], directory, tokenizer)
            train, held_out = (TokenShard.open(directory, fingerprint) for directory in directories)
            return self._record_digest(TokenizedCorpus((train,), (held_out,) if len(held_out) else ()))
        self._tokenize_large(source, folder)
        corpus = TokenizedCorpus.open(folder, fingerprint)
        assert corpus is not None, "tokenize_corpus writes the list of its shards last"
        return self._record_digest(corpus)

    def _record_digest(self, corpus: TokenizedCorpus) -> TokenizedCorpus:
        self.shard_digests.append(_digest([shard.manifest["files"] for shard in (*corpus.train, *corpus.held_out)]))
        return corpus

    def _tokenize(
        self, source: str, split: str, documents: list[Document], directory: Path, tokenizer: Tokenizer
    ) -> None:
        self.log(f"tokenizing {source} ({split})")
        num_bytes = sum(document.num_bytes for document in documents)
        meta = {"source": source, "split": split, "bytes": num_bytes, "documents": len(documents)}
        with ShardWriter(directory, tokenizer.vocab_size, tokenizer=tokenizer.fingerprint(), metadata=meta) as writer:
            tokenize_documents((document.text for document in documents), tokenizer, writer)

    def _tokenize_large(self, source: str, folder: Path) -> None:
        path, start = self._path(source), time.perf_counter()
        workers = self.workers or count_cores()
        self.log(f"tokenizing {source} into {folder} with {workers} process{'es' * (workers > 1)}")
        stats = TokenizeStats()
        progress_bar = ProgressBar("tokenize") if self.show_progress else None

        def update(so_far: TokenizeStats, done_bytes: int, total_bytes: int) -> None:
            nonlocal stats
            stats, seconds = so_far, max(1e-3, time.perf_counter() - start)
            if progress_bar:
                speed = {"documents/s": round(stats.documents / seconds), "MB/s": stats.num_bytes / 1e6 / seconds}
                progress_bar.update(done_bytes // 1_000_000, total_bytes // 1_000_000, speed, seconds)

        try:
            tokenize_corpus(path, folder, self.tokenizer_file, workers, progress=update)
        finally:
            if progress_bar:
                progress_bar.close()
        seconds = time.perf_counter() - start
        if stats.skipped.total:
            self.log(str(stats.skipped))
        self.log(
            f"{source}: {stats.documents:,} documents, {stats.num_bytes / 1e6:,.0f} MB of text, "
            f"{stats.tokens:,} tokens in {seconds:,.0f} s ({stats.documents / seconds:,.0f} documents/s, "
            f"{stats.num_bytes / 1e6 / seconds:,.1f} MB/s)"
        )

    def task_shard(self, stage: str, tasks: dict[str, float], tokens: int, tokenizer: Tokenizer) -> TokenShard:
        """Returns a shard of at least `tokens` tokens of generated conversations."""
        seed = self.seed * len(DEFAULT_STAGES) + DEFAULT_STAGES.index(stage)  # no two stages see the same examples
        examples = _examples(tasks, seed)
        first = [make_mixture_example(tasks, index, seed) for index in range(64)]  # changed generators, another shard
        key = _digest(stage, tasks, tokens, first, tokenizer.fingerprint())
        return self._render(f"{stage}-tasks-{key}", examples, tokens, tokenizer)

    def conversation_shard(self, name: str, tokens: int | None, tokenizer: Tokenizer) -> TokenShard:
        """Returns a shard of one epoch of a set's conversations, of a large set of about `tokens` tokens at most."""
        source = self.conversation_source(name)
        files = stat_files(source.files())
        cap = tokens if sum(size for *_, size in files) > MAX_IN_MEMORY_BYTES else None
        key = _digest(name, files, cap, self.seed, tokenizer.fingerprint())
        stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(name).stem)
        return self._render(f"{stem}-rows-{key}", self._epoch(source), cap, tokenizer)

    def _epoch(self, source: ConversationSource) -> Iterator[dict]:
        """Yields every conversation of a source once; leaves out rows that are no conversation, and logs their number.

        Raises the first of their errors if there are more than one in ROWS_PER_BAD_ROW.
        """
        left_out, first = 0, UserError()
        for index in range(len(source)):
            try:
                yield source.get_train_example(index, self.seed)
            except UserError as error:
                left_out, first = left_out + 1, first if left_out else error
                if left_out * ROWS_PER_BAD_ROW > len(source):
                    raise first from None
        if left_out:
            self.log(f"{source.name}: {left_out:,} of {len(source):,} rows left out (first: {first})")

    def _render(self, name: str, examples: Iterable[dict], tokens: int | None, tokenizer: Tokenizer) -> TokenShard:
        directory = self.run_dir / "data" / name
        if not (directory / "manifest.json").exists():
            self.log(f"writing conversations ({name.rsplit('-', 1)[0]})")
            with ShardWriter(
                directory,
                tokenizer.vocab_size,
                with_mask=True,
                tokenizer=tokenizer.fingerprint(),
                metadata={"kind": name},
            ) as writer:
                iterator = iter(examples)
                while tokens is None or writer.tokens < tokens:
                    if not (group := list(islice(iterator, CONVERSATIONS_PER_BATCH))):
                        break
                    for rendered in render_conversations(tokenizer, group):
                        writer.add_document(rendered.tokens, rendered.mask)
        shard = TokenShard.open(directory, tokenizer.fingerprint())
        self._record_digest(TokenizedCorpus((shard,), ()))
        return shard


def _examples(tasks: dict[str, float], seed: int) -> Iterator[dict]:
    index = 0
    while True:
        yield make_mixture_example(tasks, index, seed)
        index += 1


def _texts_of(content: str | list[dict]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]
