"""Prepares what a stage reads: the shards of its documents and of its conversations, in the run directory.

A mixture names sources of three kinds (`split_mixture`). Generated tasks have no end and share one shard; public sets
and the user's own conversations are one shard each; both are packed whole. All other names are documents, packed by
cropping; `fledgling.corpora.prepare` writes their shards and the tokenizer. A finished shard is found again by a
digest of what it was made from, so a second run prepares nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fledgling.config import DEFAULT_STAGES, Recipe, UserError
from fledgling.corpora.prepare import MAX_IN_MEMORY_BYTES, DocumentPreparer, Log, short_digest
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard
from fledgling.files import stat_files
from fledgling.tasks import SKILLS, is_file_source, load_source, make_mixture_example
from fledgling.tasks.task import ConversationSource
from fledgling.text.conversation import render_conversations
from fledgling.text.tokenizer import Tokenizer

CONVERSATIONS_PER_BATCH = 2000  # rendered at a time, on all cores
ROWS_PER_BAD_ROW = 100  # one row in so many of a public set may be no conversation
TOKENIZER_CONVERSATIONS = 4000  # conversations of the skills that the tokenizer is trained on too


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


def list_document_sources(recipe: Recipe) -> list[str]:
    """Returns the sources of documents that the stages of a recipe read, without repetitions."""
    mixtures = [recipe.stage_config(stage).mixture for stage in recipe.stages]
    return list(dict.fromkeys(name for mixture in mixtures if mixture for name in split_mixture(mixture).documents))


class DataPreparer:
    """Prepares the tokenizer and the shards of one recipe under RUN. `documents` prepares those of documents."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, log: Log = lambda text: None, workers: int = 0, show_progress: bool = False
    ) -> None:
        """Arguments as for `DocumentPreparer`."""
        self.recipe, self.run_dir, self.log = recipe, run_dir, log
        self.documents = DocumentPreparer(run_dir, recipe.run.data_dir, log, workers, show_progress)

    @property
    def shard_digests(self) -> list[str]:
        """A digest of every shard that was handed out."""
        return self.documents.shard_digests

    def require_sources(self, documents: Iterable[str], conversations: Iterable[str]) -> None:
        """Raises UserError, saying how to get it, for a source that does not exist."""
        self.documents.require_sources(documents)
        for name in conversations:
            self.conversation_source(name).files()

    def conversation_source(self, name: str) -> ConversationSource:
        """Returns the conversations that a name stands for, read from files under the recipe's data root."""
        return load_source(name, self.recipe.run.data_dir)

    def load_or_train_tokenizer(self) -> Tokenizer:
        """Returns the run's tokenizer, trained first if RUN/tokenizer does not exist."""
        return self.documents.load_or_train_tokenizer(self.recipe.tokenizer, self._skill_texts())

    def _skill_texts(self) -> Iterator[str]:
        """Yields the texts of some conversations of SFT's skills, so that the tokenizer has their words."""
        tasks = split_mixture(self.recipe.sft.mixture).tasks if self.recipe.sft.mixture else {}
        for index in range(TOKENIZER_CONVERSATIONS if tasks else 0):
            for message in make_mixture_example(tasks, index, self.recipe.seed)["messages"]:
                content = message["content"]
                yield from [content] if isinstance(content, str) else [part["text"] for part in content]

    def task_shard(self, stage: str, tasks: dict[str, float], tokens: int, tokenizer: Tokenizer) -> TokenShard:
        """A shard of at least `tokens` tokens of generated conversations."""
        seed = self.recipe.seed * len(DEFAULT_STAGES) + DEFAULT_STAGES.index(
            stage
        )  # no two stages of a run see the same examples
        examples = _examples(tasks, seed)
        grammar = [make_mixture_example(tasks, index, seed) for index in range(64)]  # another grammar, another shard
        key = short_digest(stage, tasks, tokens, grammar, tokenizer.fingerprint())
        return self._rendered(f"{stage}-tasks-{key}", examples, tokens, tokenizer)

    def conversation_shard(self, name: str, tokens: int | None, tokenizer: Tokenizer) -> TokenShard:
        """A shard of one epoch of a set's conversations; of a large set no more than about `tokens` tokens."""
        source = self.conversation_source(name)
        files = stat_files(source.files())
        cap = tokens if sum(size for *_, size in files) > MAX_IN_MEMORY_BYTES else None
        key = short_digest(name, files, cap, self.recipe.seed, tokenizer.fingerprint())
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
        if not (directory / MANIFEST).exists():
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
        self.documents.record_digest((shard,))
        return shard


def _examples(tasks: dict[str, float], seed: int) -> Iterator[dict]:
    index = 0
    while True:
        yield make_mixture_example(tasks, index, seed)
        index += 1
