"""From text to token shards: what a stage reads, prepared once into the run directory.

One idea: a mixture's names are of three kinds. Generated tasks become conversations without end, all in one shard;
public sets and the user's own files become conversations too, a shard each; both are packed whole. Everything else is
a source of documents ("embedded", a public set or a path), packed by cropping. A finished shard is found again by the
fingerprint of what it was made from, so running again prepares nothing twice.
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
from fledgling.tasks import SKILLS, is_file_source, make_mixture_example
from fledgling.tasks import load_source as read_source
from fledgling.tasks.task import ConversationSource
from fledgling.text.conversation import render_conversations
from fledgling.text.tokenizer import Tokenizer

Log = Callable[[str], None]
CONVERSATIONS_PER_BATCH = 2000  # conversations rendered at a time, on all cores
MAX_IN_MEMORY_BYTES = (
    300_000_000  # bytes up to which a set of conversations is written whole, and documents are held in memory
)
ROWS_PER_BAD_ROW = 100  # one row in so many of a public set may be no conversation
TOKENIZER_CONVERSATIONS = 4000  # conversations shown to the tokenizer, so that their words are its words


@dataclass(frozen=True)
class MixtureParts:
    """A mixture's weights by kind: document sources, generated tasks, and conversations read from files."""

    documents: dict[str, float]
    tasks: dict[str, float]
    conversations: dict[str, float]


def split_mixture(mixture: dict[str, float]) -> MixtureParts:
    """Sort a mixture's names; weights of zero are left out. Raises UserError when nothing is left."""
    used = {name: weight for name, weight in mixture.items() if weight > 0}
    if not used:
        raise UserError("the stage's mixture is empty: name at least one source, such as {embedded = 1.0}")
    tasks = {n: w for n, w in used.items() if n in SKILLS}
    rows = {n: w for n, w in used.items() if is_file_source(n)}
    documents = {n: w for n, w in used.items() if n not in tasks and n not in rows}
    return MixtureParts(documents, tasks, rows)


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


class DataPreparer:
    """Prepares tokenizer and shards of one recipe under RUN, and remembers the texts it had to read for that."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, log: Log = lambda text: None, workers: int = 0, show_progress: bool = False
    ) -> None:
        """say: told what begins and what was left out. workers: processes that tokenize a large corpus, 0 for one a
        core; shown: with a line on stderr that moves."""
        self.recipe, self.run_dir, self.log, self.workers, self.show_progress = (
            recipe,
            run_dir,
            log,
            workers,
            show_progress,
        )
        self._texts: dict[str, tuple[list[Document], list[Document]]] = {}
        self.shard_digests: list[str] = []  # digests of the corpora and shards that were handed out

    def read_documents(self, source: str) -> tuple[list[Document], list[Document]]:
        """(training, validation) documents of a source; validation is chosen by content alone."""
        if source not in self._texts:
            if source == "embedded":
                self.log("reading the documentation and source of the installed Python")
                found = harvest_embedded()
            else:
                skipped = SkippedDocuments()
                found = list(read_documents(self._path(source), skipped=skipped))
                if str(skipped):
                    self.log(str(skipped))
            self._texts[source] = split_held_out(found)
            if not self._texts[source][1]:
                self.log(f"{source} is too small to hold anything out: no bits per byte will be measured on it")
        return self._texts[source]

    def _path(self, source: str) -> Path:
        here, there = Path(source), resolve_data_root(self.recipe.run.data_dir) / source
        if here.exists() or there.exists():
            return here if here.exists() else there
        expected = 'expected "embedded", a task, a file or a folder'
        fetch = f"; get it with `fledgling data fetch {source}`" if source in PUBLIC_SETS else ""
        raise UserError(f'source "{source}": {expected}; neither {here} nor {there} exists{fetch}')

    def require_sources(self, documents: Iterable[str], rows: Iterable[str]) -> None:
        """Raise UserError, saying how to get it, for a source of documents or rows that is not there."""
        for source in documents:
            if source != "embedded":
                self._path(source)
        for name in rows:
            self.conversation_source(name).files()

    def conversation_source(self, name: str) -> ConversationSource:
        """Conversations by name, read from files under the recipe's data root."""
        return read_source(name, self.recipe.run.data_dir)

    @property
    def tokenizer_file(self) -> Path:
        """Where the run's tokenizer stands, or will."""
        return self.run_dir / "tokenizer" / "tokenizer.json"

    def load_or_train_tokenizer(self) -> Tokenizer:
        """The run's tokenizer: loaded when it stands in RUN/tokenizer, else trained there."""
        table, path = self.recipe.tokenizer, self.tokenizer_file
        if path.exists():
            return Tokenizer.load(path)
        read: dict[str, int] = {}  # bytes of each source
        self.log(f"training a tokenizer of {table.vocab_size:,} entries")
        tokenizer = Tokenizer.train(
            self._tokenizer_texts(read),
            table.vocab_size,
            max_digits=table.max_digits,
            letter_tokens=table.letter_tokens,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
        facts = {
            **asdict(table),
            **(tokenizer.training_info or {}),
            "bytes": read,
            "fingerprint": tokenizer.fingerprint(),
        }
        write_json(path.parent / "training.json", facts)
        self.log(
            f"tokenizer: trained by {facts.get('trainer')} in {facts.get('seconds')} s, encodes by {tokenizer.batch_library}"
        )
        return tokenizer

    def _tokenizer_texts(self, read: dict[str, int]) -> Iterator[str]:
        """What the tokenizer learns from; counts in `read` the bytes of each source."""
        left = self.recipe.tokenizer.max_characters
        for source in self.recipe.tokenizer.sources:
            read[source] = 0
            for document in (
                sample_documents(self._path(source), left) if self.is_large(source) else self.read_documents(source)[0]
            ):
                if left <= 0:
                    return
                left -= len(document.text)
                read[source] += document.num_bytes
                yield document.text
        tasks = split_mixture(self.recipe.sft.mixture).tasks if self.recipe.sft.mixture else {}
        if tasks:
            for index in range(TOKENIZER_CONVERSATIONS):
                example = make_mixture_example(tasks, index, self.recipe.seed)
                yield from (text for message in example["messages"] for text in _texts_of(message["content"]))

    def is_large(self, source: str) -> bool:
        """Whether a source is tokenized file by file (`data.pool`) instead of being held in memory."""
        return (
            source != "embedded"
            and sum(map(estimate_text_bytes, list_source_files(self._path(source)))) > MAX_IN_MEMORY_BYTES
        )

    def document_shards(self, source: str, tokenizer: Tokenizer) -> TokenizedCorpus:
        """Token shards of a document source: training and held-out documents."""
        fingerprint = tokenizer.fingerprint()
        key = _digest(source, fingerprint)
        folder = self.run_dir / "data" / f"{Path(source).stem}-{key}"
        if found := TokenizedCorpus.open(folder, fingerprint):
            return self._opened(found)
        directories = [self.run_dir / "data" / f"{Path(source).stem}-{name}-{key}" for name in ("train", "validation")]
        if all((directory / MANIFEST).exists() for directory in directories) or not self.is_large(source):
            for directory, name, index in zip(directories, ("train", "validation"), (0, 1), strict=True):
                if not (directory / MANIFEST).exists():
                    self._tokenize(source, name, self.read_documents(source)[index], directory, tokenizer)
            train, held_out = (TokenShard.open(directory, fingerprint) for directory in directories)
            return self._opened(TokenizedCorpus((train,), (held_out,) if len(held_out) else ()))
        self._tokenize_large(source, folder)
        found = TokenizedCorpus.open(folder, fingerprint)
        assert found is not None, "listed by the pool"
        return self._opened(found)

    def _opened(self, corpus: TokenizedCorpus) -> TokenizedCorpus:
        self.shard_digests.append(_digest([shard.manifest["files"] for shard in (*corpus.train, *corpus.held_out)]))
        return corpus

    def _tokenize(self, source: str, split: str, chosen: list[Document], directory: Path, tokenizer: Tokenizer) -> None:
        self.log(f"tokenizing {source} ({split})")
        size = sum(document.num_bytes for document in chosen)
        meta = {"source": source, "split": split, "bytes": size, "documents": len(chosen)}
        with ShardWriter(directory, tokenizer.vocab_size, tokenizer=tokenizer.fingerprint(), metadata=meta) as writer:
            tokenize_documents((document.text for document in chosen), tokenizer, writer)

    def _tokenize_large(self, source: str, folder: Path) -> None:
        path, began = self._path(source), time.perf_counter()
        workers = self.workers or count_cores()
        self.log(f"tokenizing {source} into {folder} with {workers} process{'es' * (workers > 1)}")
        last = TokenizeStats()
        display = ProgressBar("tokenize") if self.show_progress else None

        def told(done: TokenizeStats, ready: int, whole: int) -> None:
            nonlocal last
            last, seconds = done, max(1e-3, time.perf_counter() - began)
            if display:
                speed = {"documents/s": round(done.documents / seconds), "MB/s": done.num_bytes / 1e6 / seconds}
                display.update(ready // 1_000_000, whole // 1_000_000, speed, seconds)

        try:
            tokenize_corpus(path, folder, self.tokenizer_file, workers, progress=told)
        finally:
            if display:
                display.close()
        seconds = time.perf_counter() - began
        if last.skipped.total:
            self.log(str(last.skipped))
        self.log(
            f"{source}: {last.documents:,} documents, {last.num_bytes / 1e6:,.0f} MB of text, {last.tokens:,} tokens in "
            f"{seconds:,.0f} s ({last.documents / seconds:,.0f} documents/s, {last.num_bytes / 1e6 / seconds:,.1f} MB/s)"
        )

    def task_shard(self, stage: str, tasks: dict[str, float], tokens: int, tokenizer: Tokenizer) -> TokenShard:
        """A shard of at least `tokens` tokens of generated conversations."""
        seed = self.recipe.seed * len(DEFAULT_STAGES) + DEFAULT_STAGES.index(
            stage
        )  # no two stages of a run see the same examples
        examples = _examples(tasks, seed)
        grammar = [make_mixture_example(tasks, index, seed) for index in range(64)]  # another grammar, another shard
        key = _digest(stage, tasks, tokens, grammar, tokenizer.fingerprint())
        return self._rendered(f"{stage}-tasks-{key}", examples, tokens, tokenizer)

    def conversation_shard(self, name: str, tokens: int | None, tokenizer: Tokenizer) -> TokenShard:
        """A shard of one epoch of a set's conversations; of a large set no more than about `tokens` tokens."""
        source = self.conversation_source(name)
        files = stat_files(source.files())
        cap = tokens if sum(size for *_, size in files) > MAX_IN_MEMORY_BYTES else None
        key = _digest(name, files, cap, self.recipe.seed, tokenizer.fingerprint())
        stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(name).stem)
        return self._rendered(f"{stem}-rows-{key}", self._epoch(source), cap, tokenizer)

    def _epoch(self, source: ConversationSource) -> Iterator[dict]:
        """Every conversation of a source once. Rows that are none are left out and told, if they are few.

        Raises the first one's UserError when more than one row in TOLERATED is no conversation.
        """
        left_out, first = 0, None
        for index in range(len(source)):
            try:
                yield source.get_train_example(index, self.recipe.seed)
            except UserError as error:
                left_out, first = left_out + 1, first or error
                if left_out * ROWS_PER_BAD_ROW > len(source):
                    raise first from None
        if first:
            self.log(f"{source.name}: {left_out:,} of {len(source):,} rows left out (first: {first})")

    def _rendered(self, name: str, examples: Iterable[dict], tokens: int | None, tokenizer: Tokenizer) -> TokenShard:
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
                remaining = iter(examples)
                while (tokens is None or writer.tokens < tokens) and (
                    group := list(islice(remaining, CONVERSATIONS_PER_BATCH))
                ):
                    for rendered in render_conversations(tokenizer, group):
                        writer.add_document(rendered.tokens, rendered.mask)
        shard = TokenShard.open(directory, tokenizer.fingerprint())
        self._opened(TokenizedCorpus((shard,), ()))
        return shard


def _examples(tasks: dict[str, float], seed: int) -> Iterator[dict]:
    index = 0
    while True:
        yield make_mixture_example(tasks, index, seed)
        index += 1


def _texts_of(content: str | list[dict]) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]
