"""Prepares what a stage reads: the shards of its documents and of its conversations, in the run directory.

A mixture names sources of three kinds (`split_mixture`). Generated tasks have no end and share one shard; public sets
and the user's own conversations are one shard each; both are packed whole. All other names are documents, packed by
cropping; `fledgling.corpora.prepare` writes their shards and the tokenizer. A finished shard is found again by a
digest of what it was made from, so a second run prepares nothing twice and an edited file is prepared again; a resumed
stage keeps what it began with (`fledgling.corpora.prepared_data`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import fledgling
from fledgling.config import DEFAULT_STAGES, Recipe, StageConfig, UserError
from fledgling.corpora import prepare
from fledgling.corpora.prepare import DocumentPreparer
from fledgling.corpora.prepared_data import Log, PreparationInputs, digest_code, digest_files, short_digest
from fledgling.data.shards import MANIFEST, ShardWriter, TokenShard
from fledgling.plan.stage_length import SourceSize
from fledgling.tasks import is_file_source, is_generated_source, load_source, make_mixture_example
from fledgling.tasks.epoch_reader import EpochReader, sample_conversations
from fledgling.tasks.task import ConversationSource
from fledgling.text.conversation import RenderedConversation, render_conversations
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.source_positions import Positions, SetPart

CONVERSATIONS_PER_BATCH = 2000  # rendered at a time, on all cores
SAMPLED_CONVERSATIONS = 256  # from which the mean length of a source is measured
# Conversations of the skills that the tokenizer is trained on too, besides the text. With 1,536 entries those of the
# quickstart are 4 % (arithmetic) to 15 % (identity) shorter than with 4,000, and its text is 1 % longer.
TOKENIZER_CONVERSATIONS = 30_000


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
    tasks = {name: weight for name, weight in used.items() if is_generated_source(name)}
    conversations = {name: weight for name, weight in used.items() if is_file_source(name)}
    documents = {name: weight for name, weight in used.items() if name not in tasks and name not in conversations}
    return MixtureParts(documents, tasks, conversations)


def find_held_out_source(pretrain: StageConfig) -> str | None:
    """Returns the source on whose held-out documents later stages measure bits per byte too; None if there is none."""
    documents = split_mixture(pretrain.mixture).documents if pretrain.mixture else {}
    return next(iter(documents), None)


def list_document_sources(recipe: Recipe) -> list[str]:
    """Returns the sources of documents that the stages of a recipe read, without repetitions."""
    mixtures = [recipe.stage_config(stage).mixture for stage in recipe.stages]
    return list(dict.fromkeys(name for mixture in mixtures if mixture for name in split_mixture(mixture).documents))


class DataPreparer:
    """Prepares the tokenizer and the shards of one recipe under RUN. `documents` prepares those of documents."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, log: Log = lambda text: None, workers: int = 0, show_progress: bool = False
    ) -> None:
        """Prepares nothing yet.

        Args:
            recipe: tokenizer, seed, data root and mixtures.
            run_dir: where tokenizer and shards are written.
            log: receives a line when something begins, or is left out.
            workers: processes that tokenize a source of documents too large for memory; 0: one a core.
            show_progress: whether a progress line is written to stderr.
        """
        self.config, self.seed, self.data_dir = recipe.tokenizer, recipe.seed, recipe.run.data_dir
        self.sft_mixture = recipe.sft.mixture  # its generated tasks are part of the tokenizer's training text
        self.run_dir, self.log = run_dir, log
        self.documents = DocumentPreparer(run_dir, self.data_dir, log, workers, show_progress)

    @property
    def shard_digests(self) -> list[str]:
        """A digest of every shard that was handed out."""
        return self.documents.shard_digests

    def require_sources(self, documents: Iterable[str], conversations: Iterable[str]) -> None:
        """Raises UserError, saying how to get it, for a source that does not exist and whose tokens are not kept."""
        self.documents.require_sources(documents)
        for name in conversations:
            try:
                self.conversation_source(name).files()
            except UserError as error:
                if self.documents.prepared.find_tokens(name) is None:
                    raise UserError(f"{error}{self.documents.prepared.explain_unused(name)}") from None

    def conversation_source(self, name: str) -> ConversationSource:
        """Returns the conversations of that name, read from files under the recipe's data root."""
        return load_source(name, self.data_dir)

    def count_source_bytes(self, name: str) -> int:
        """Returns the size of the files of a source of conversations; without them, that of its kept tokens."""
        try:
            files = self.conversation_source(name).files()
        except UserError:
            prepared = self.documents.prepared
            facts = prepared.find_tokens(name)
            if facts is None:
                raise
            files = [file for folder in facts["directories"] for file in (prepared.directory / folder).iterdir()]
        return sum(file.stat().st_size for file in files)

    def measure_source(self, name: str, tokenizer: Tokenizer, context: int) -> SourceSize:
        """Returns the size of a source of conversations; the rows of an example are the mean of its first ones.

        What a stage began with is measured on its tokens, which have the same conversations in the same order.
        """
        kept = self.documents.prepared.get_kept(name, tokenizer.fingerprint())
        shard, source = self._open_whole_set(kept, tokenizer), None
        if shard is None:
            try:
                source = load_source(name, self.data_dir)
                source.files()
            except UserError:
                shard = self._open_whole_set(self.documents.prepared.find_tokens(name), tokenizer)
                if shard is None:
                    raise
        if shard:
            lengths, count = shard.lengths[:SAMPLED_CONVERSATIONS].tolist(), float(shard.metadata["read"])
        else:
            assert source is not None
            sample = sample_conversations(source, self.seed, SAMPLED_CONVERSATIONS)
            rendered = render_conversations(tokenizer, sample)
            lengths = [len(row.tokens) for rows in rendered for row in rows]
            count = (len(source) or math.inf) * len(lengths) / max(1, len(rendered))
        rows = sum(min(length, context + 1) for length in lengths) / (context + 1) / max(1, len(lengths))
        return SourceSize(count, rows)

    def load_or_train_tokenizer(self, may_replace: bool = False) -> Tokenizer:
        """Returns the run's tokenizer, trained first if RUN/tokenizer does not exist.

        may_replace: whether one that was made from other text or settings is trained again.
        """
        tasks = split_mixture(self.sft_mixture).tasks if self.sft_mixture else {}
        key = short_digest(tasks, self.seed, TOKENIZER_CONVERSATIONS, _digest_tasks()) if tasks else ""
        return self.documents.load_or_train_tokenizer(self.config, self._skill_texts(), key, may_replace)

    def _skill_texts(self) -> Iterator[str]:
        """Yields the texts of some conversations of SFT's skills, so that the tokenizer has their words."""
        tasks = split_mixture(self.sft_mixture).tasks if self.sft_mixture else {}
        for index in range(TOKENIZER_CONVERSATIONS if tasks else 0):
            for message in make_mixture_example(tasks, index, self.seed)["messages"]:
                content = message["content"]
                yield from [content] if isinstance(content, str) else [part["text"] for part in content]

    def task_shard(self, stage: str, tasks: dict[str, float], tokens: int, tokenizer: Tokenizer) -> TokenShard:
        """Returns a shard of at least `tokens` tokens of generated conversations."""
        seed = self.seed * len(DEFAULT_STAGES) + DEFAULT_STAGES.index(stage)  # no two stages see the same examples
        examples = _generate_examples(tasks, seed)
        try:
            first = [make_mixture_example(tasks, index, seed) for index in range(64)]  # also of what the code reads
        except UserError as error:  # an environment's file is gone
            if facts := self.documents.prepared.get_kept(f"{stage} tasks", tokenizer.fingerprint()):
                return self._open_kept(f"{stage} tasks", facts, error)
            raise
        content = short_digest(_digest_tasks(), tasks, seed, first)
        inputs = PreparationInputs(content, tokenizer.fingerprint(), short_digest(tokens))
        return self._open_or_write_shard(f"{stage} tasks", f"{stage}-tasks", inputs, examples, tokens, tokenizer)

    def conversation_shard(
        self, name: str, tokens: int | None, tokenizer: Tokenizer, positions: Positions | None = None
    ) -> tuple[TokenShard, SetPart | None]:
        """Returns a shard of a set's conversations, and which part of the set it is if it is prepared in parts.

        A set whose files are larger than `MAX_IN_MEMORY_BYTES` is prepared in parts: from its position on, as many
        conversations as have `tokens` tokens, to the next whole batch (None: one epoch). A smaller set is always
        written completely, and its position is one of rows.
        """
        prepared = self.documents.prepared
        try:
            source = self.conversation_source(name)
            source.files()
        except UserError as error:
            facts = prepared.find_tokens(name)
            if facts is None or facts.get("tokenizer") != tokenizer.fingerprint():
                raise UserError(f"{error}{prepared.explain_unused(name, tokenizer.fingerprint())}") from None
            shard = self._open_kept(name, facts, error)
            described = shard.metadata
            if "in_parts" not in described or (described["in_parts"] and name not in prepared.pinned):
                # of an earlier version, or a part of which is not known where it begins
                raise UserError(f"{error}{prepared.explain_unused(name, tokenizer.fingerprint())}") from None
        else:
            shard, is_large = self._prepare_conversations(name, source, tokens, tokenizer, positions or {})
            described = {"in_parts": is_large, "read": len(source), **shard.metadata}
        if not described["in_parts"]:
            return shard, None
        key, first, skipped = self._find_position(name, prepared.used_inputs[name]["content"], positions or {})
        of = f" of {described['conversations']:,} a pass" if "conversations" in described else ""
        self.log(f"{name}: conversations {first:,} to {first + described['read'] - 1:,}{of}")
        left_out = frozenset(described.get("left_out_rows", ()))
        pass_length = int(described["pass_length"]) if "pass_length" in described else None
        documents = tuple(described.get("documents_by_row", ()))
        return shard, SetPart(name, key, first, int(described["read"]), skipped, left_out, pass_length, documents)

    def _find_position(self, name: str, content: str, positions: Positions) -> tuple[str, int, frozenset[int]]:
        """Returns the key of a set's position, its first conversation that no stage has read, and those read ahead."""
        key = short_digest(content, name, self.seed, "conversations")
        position = positions.get(key, {})
        return key, int(position.get("row", 0)), frozenset(map(int, position.get("ahead", ())))

    def _prepare_conversations(
        self, name: str, source: ConversationSource, tokens: int | None, tokenizer: Tokenizer, positions: Positions
    ) -> tuple[TokenShard, bool]:
        """Returns the shard of `conversation_shard`, for a set whose files are here, and whether they are large."""
        is_large = self.count_source_bytes(name) > prepare.MAX_IN_MEMORY_BYTES
        files, cap = source.files(), tokens if is_large else None
        content = digest_files(common_folder(files), files, whole=not is_large)
        _, first, skipped = self._find_position(name, content, positions if is_large else {})
        ahead = [sorted(skipped)] if skipped else []
        settings = short_digest(source.name, cap, self.seed, _digest_tasks(), first, *ahead)
        stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(name).stem)
        inputs = PreparationInputs(content, tokenizer.fingerprint(), settings)
        reader = EpochReader(source, self.seed, first, skipped=skipped)
        contents = getattr(source, "contents", "")
        facts = {"contents": contents, "in_parts": is_large, "conversations": len(source)}
        facts |= {"pass_length": len(source)} if is_large else {}  # shards of earlier versions are packed without it
        return self._open_or_write_shard(name, f"{stem}-rows", inputs, reader, cap, tokenizer, facts), is_large

    def _open_or_write_shard(
        self,
        source: str,
        stem: str,
        inputs: PreparationInputs,
        examples: Iterable[dict],
        tokens: int | None,
        tokenizer: Tokenizer,
        described: Mapping[str, object] | None = None,
    ) -> TokenShard:
        """Returns the shard RUN/data/STEM-DIGEST, written first if it does not exist; logs which, and why.

        The conversations are rendered in batches until the shard has `tokens` tokens (None: until they end).

        Args:
            described: more metadata, such as the files of a folder that are read and passed over ("contents").
        """
        prepared = self.documents.prepared
        directory = prepared.directory / f"{stem}-{inputs.digest}"
        facts: dict[str, str] = inputs.to_json()
        if pinned := prepared.get_pinned(source, inputs):
            facts, directory = pinned, prepared.directory / pinned["directories"][0]
        if (directory / MANIFEST).exists():
            prepared.require_whole(source, [directory])
            self.log(f"{source}: tokens found again in {directory}")
        else:
            prepared.explain(source, stem, inputs)
            self.log(f"writing conversations ({stem})")
            metadata: dict[str, object] = {"kind": directory.name, "source": source, "inputs": inputs.to_json()}
            with ShardWriter(
                directory,
                tokenizer.vocab_size,
                with_mask=True,
                tokenizer=tokenizer.fingerprint(),
                metadata=metadata,
            ) as writer:
                iterator, documents, dropped_thoughts = iter(examples), [], 0
                while tokens is None or writer.tokens < tokens:
                    if not (group := list(islice(iterator, CONVERSATIONS_PER_BATCH))):
                        break
                    for rows in _render_group(tokenizer, group, source):
                        documents.append(len(rows))
                        for rendered in rows:
                            writer.add_document(rendered.tokens, rendered.mask)
                            dropped_thoughts += rendered.dropped_thoughts
                if isinstance(examples, EpochReader):
                    writer.metadata |= {"left_out": examples.describe(), "read": examples.read, **(described or {})}
                    writer.metadata |= {"left_out_rows": examples.left_out} if examples.left_out else {}
                writer.metadata |= _describe_documents(documents, dropped_thoughts)
        shard = TokenShard.open(directory, tokenizer.fingerprint())
        if report := "; ".join(filter(None, map(shard.metadata.get, ("contents", "left_out", "by_template")))):
            self.log(f"{source}: {report}")
        prepared.record_used(source, facts, [directory])
        self.documents.record_digest((shard,))
        return shard

    def _open_whole_set(self, facts: Mapping[str, Any] | None, tokenizer: Tokenizer) -> TokenShard | None:
        """Returns the tokens that `facts` describe, if they are of this tokenizer and of a whole set of conversations.

        They say too little of a set that is prepared in parts. A shard of an earlier version does not say which it is.
        """
        if facts is None or facts.get("tokenizer") != tokenizer.fingerprint():
            return None
        shard = TokenShard.open(self.documents.prepared.directory / facts["directories"][0], tokenizer.fingerprint())
        return shard if shard.metadata.get("in_parts") is False else None

    def _open_kept(self, source: str, facts: Mapping[str, Any], error: UserError) -> TokenShard:
        """Returns the tokens that the run has of a source that cannot be read; logs its error."""
        prepared = self.documents.prepared
        directories = [prepared.directory / name for name in facts["directories"]]
        prepared.require_whole(source, directories)
        shard = TokenShard.open(directories[0], facts["tokenizer"])
        self.log(f"{error}; the tokens that the run has of it are read, {directories[0]}")
        prepared.record_used(source, facts, directories)
        self.documents.record_digest((shard,))
        return shard


def _render_group(
    tokenizer: Tokenizer, group: Sequence[Mapping[str, Any]], source: str
) -> list[list[RenderedConversation]]:
    """Returns the rows of training of conversations. Raises UserError that names their source."""
    try:
        return render_conversations(tokenizer, group)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _describe_documents(documents: Sequence[int], dropped_thoughts: int) -> dict[str, Any]:
    """Returns what a shard's metadata says of conversations that a model's template makes into several documents.

    Args:
        documents: of each conversation.
        dropped_thoughts: answers whose thought the template leaves out.
    """
    described: list[str] = []
    if several := sum(count > 1 for count in documents):
        described.append(f"{several:,} conversations are several rows, since the chat template rewrites their history")
    if dropped_thoughts:
        described.append(f"the chat template leaves out the thoughts of {dropped_thoughts:,} answers")
    found: dict[str, Any] = {"documents_by_row": list(documents)} if several else {}
    return found | ({"by_template": "; ".join(described)} if described else {})


def _digest_tasks() -> str:
    """Returns a digest of the code and tables that make conversations."""
    package = Path(fledgling.__file__).parent
    return short_digest(digest_code(package / "tasks"), digest_code(package / "text"))


def common_folder(files: Sequence[Path]) -> Path:
    """Returns the deepest folder that holds all files, so that their names do not depend on where it is."""
    return Path(os.path.commonpath([file.parent.absolute() for file in files]))


def _generate_examples(tasks: dict[str, float], seed: int) -> Iterator[dict]:
    """Yields conversations of the tasks in proportion to their weights, without end."""
    index = 0
    while True:
        yield make_mixture_example(tasks, index, seed)
        index += 1
