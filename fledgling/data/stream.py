"""The micro-batches of each step: a pure function of sources, weights, seed and step.

The data is one endless sequence of rows, and row g is a pure function of (sources, weights, seed, g). Step n takes
rows n * R to (n + 1) * R, cut into micro-batches that the ranks take in turn. So the order does not depend on the
number of ranks (nor do the micro-batches, if they have the same size), and the state of the stream is one number.
Start with `MixtureStream`; `packing.py` fills a row, and `mixture.py` chooses its source.

B rows of a micro-batch, T positions (context), R rows of a step over all ranks, K sections of a source.
"""

from __future__ import annotations

import hashlib
import json
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.batch_warmup import BatchWarmup
from fledgling.data.mixture import SourceOrder
from fledgling.data.multi_token_prediction import NEXT_TOKEN_ONLY, MultiTokenTargets
from fledgling.data.packing import (
    PackingPlan,
    count_without_targets,
    fill_row,
    pack_best_fit,
    pack_between,
    pack_cropped,
    truncate_lengths,
)
from fledgling.data.prefetch import Prefetcher
from fledgling.data.shards import TokenShard

TrainOn = Literal["all", "assistant"]
MAX_SECTION_DOCUMENTS = 1 << 18  # documents shuffled and packed as one


def permutation(seed: int, key: int, size: int, section: int = 0) -> np.ndarray:
    """Returns a permutation (size,) int64 of 0 to size - 1, a pure function of (seed, key, section).

    It sorts the raw words of a counter-based generator, whose stream numpy guarantees; numpy does not guarantee that
    of `Generator.permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, key, *([section] if section else [])]))
    return np.argsort(bits.random_raw(size), kind="stable")


def keep_order(seed: int, key: int, size: int, section: int = 0) -> np.ndarray:
    """Returns 0 to size - 1, (size,) int64: `permutation` for a source that keeps its order."""
    return np.arange(size, dtype=np.int64)


class RowSource:
    """An endless sequence of rows from one or more shards; each epoch gives every row once, in another order.

    A source of many documents has K sections: section k has the k-th of K parts of every shard. Each section is packed
    by itself, an epoch reads the sections in another order, and only the current section has a plan in memory.

    Args:
        shards: one shard, or several as one.
        kind: "crop" for documents stored without BOS, which fill every row; "whole" for conversations stored as
            rendered, which do not cross rows.
        context: T; a row has T + 1 tokens, for T inputs and T targets.
        seed: decides which documents share a row, and the order of rows in each epoch.
        bos: id that begins a document or conversation; it is the padding too, so that padding is one document.
        turn_end: id that ends an assistant's turn; conversations longer than the row are truncated there.
        max_section_documents: documents of a section, which bounds the memory of a plan.
        shuffled: False keeps the order of documents and rows, of a part of a set that was shuffled before.
        breaks: documents that begin a row, of a source that is not shuffled: no earlier row has a later document.

    Raises:
        UserError: if the shards have no tokens.
    """

    def __init__(
        self,
        shards: TokenShard | Sequence[TokenShard],
        kind: Literal["crop", "whole"],
        context: int,
        seed: int,
        bos: int,
        turn_end: int | None = None,
        max_section_documents: int = MAX_SECTION_DOCUMENTS,
        shuffled: bool = True,
        breaks: Sequence[int] = (),
    ) -> None:
        self._permute, self._breaks = permutation if shuffled else keep_order, tuple(breaks)
        self.shards = (shards,) if isinstance(shards, TokenShard) else tuple(shards)
        assert self.shards, "a source needs a shard"
        self.kind, self.context, self.seed, self.bos, self.turn_end = kind, context, seed, bos, turn_end
        self._first_document = np.cumsum([0] + [len(shard) for shard in self.shards])
        self._num_sections = max(1, math.ceil(int(self._first_document[-1]) / max_section_documents))
        rows, used, self.num_truncated, self.num_without_targets = [], 0.0, 0, 0
        for section in range(self._num_sections):
            plan, truncated, without_targets = self._pack_section(section)
            rows.append(plan.num_rows)
            used += plan.efficiency * plan.num_rows
            self.num_truncated += truncated
            self.num_without_targets += without_targets
        self._section_rows = np.array(rows, dtype=np.int64)  # (K,)
        if not self._section_rows.any():
            raise UserError(f"{self.shards[0].directory} has no tokens: prepare it with some text")
        self.efficiency = used / int(self._section_rows.sum())  # share of row positions without padding
        # Two threads may read these tuples, so each is replaced as one value.
        self._current_epoch = (0, *self._section_order(0))  # epoch, its order of sections, rows before each
        no_rows = np.empty(0, dtype=np.int64)
        self._current_section = (-1, section, plan, no_rows)  # epoch, section, its plan, its order of rows

    def __len__(self) -> int:
        """Rows of one epoch."""
        return int(self._section_rows.sum())

    @property
    def num_documents(self) -> int:
        """Documents or conversations of one epoch."""
        return int(self._first_document[-1])

    @cached_property
    def key(self) -> str:
        """Identifies the endless sequence of rows: what the shards hold, and how their documents are packed."""
        held = [
            (shard.manifest["files"]["tokens.bin"]["sha256"], int(shard.offsets[0]), int(shard.offsets[-1]), len(shard))
            for shard in self.shards
        ]
        packing: list[object] = [self.kind, self.context, self.seed, self.bos, self.turn_end, self._num_sections]
        packing += ([] if self._permute is permutation else ["in order"]) + list(self._breaks)
        return hashlib.sha256(json.dumps([held, packing]).encode()).hexdigest()[:16]

    def _pack_section(self, section: int) -> tuple[PackingPlan, int, int]:
        """Returns the plan of a section, with documents numbered across shards.

        Also returns how many were truncated, and how many of these have no target of their mask left.
        """
        numbers, lengths, truncated, without_targets = [], [], 0, 0
        for first, shard in zip(self._first_document.tolist(), self.shards, strict=False):
            start, stop = (len(shard) * edge // self._num_sections for edge in (section, section + 1))
            offsets = shard.offsets[start : stop + 1]
            if self.kind == "whole":
                shard_lengths, count = truncate_lengths(shard.tokens, offsets, self.context + 1, self.turn_end)
                truncated += count
                without_targets += count_without_targets(shard.mask, offsets, shard_lengths)
            else:
                shard_lengths = np.diff(offsets)
            lengths.append(shard_lengths)
            numbers.append(np.arange(first + start, first + stop))
        order = self._permute(self.seed, 0, sum(map(len, lengths)), section)
        ordered, documents = np.concatenate(lengths)[order], np.concatenate(numbers)[order]
        pack = pack_cropped if self.kind == "crop" else pack_best_fit
        plan = pack_between(pack, ordered, np.searchsorted(documents, self._breaks).tolist(), self.context + 1)
        plan = replace(plan, piece_documents=documents[plan.piece_documents])
        return plan, truncated, without_targets

    def _section_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sections in the order of an epoch (K,), and the rows before each (K + 1,)."""
        sections = self._permute(self.seed, epoch + 1, self._num_sections, self._num_sections)
        return sections, np.cumsum([0, *self._section_rows[sections]])

    def read_tokens(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns a part of a document, numbered across shards: tokens (length,), and mask (length,) or None."""
        shard = int(np.searchsorted(self._first_document, document, side="right")) - 1
        return self.shards[shard].read_tokens(document - int(self._first_document[shard]), start, length)

    def read_row(self, index: int, train_on: TrainOn = "all") -> tuple[np.ndarray, np.ndarray]:
        """Returns row `index` of the endless sequence: tokens (T + 1,) int64, and mask (T + 1,) bool.

        The mask is True where a token is a target. With train_on "all", everything but padding is; in cropped rows
        that includes the BOS after a document, from which the model learns that documents end. With "assistant", the
        shard's own mask decides, and the BOS between conversations is no target; documents without a mask are targets.
        """
        plan, row = self._locate_row(index)
        return fill_row(plan, self, row, self.bos, pad=self.bos, use_mask=train_on == "assistant")

    def list_documents(self, rows: int) -> np.ndarray:
        """Returns the documents of which the first `rows` rows of the first epoch have a part, ascending, each once.

        Only of a source that is not shuffled: it packs every section that the rows reach.
        """
        found = [np.empty(0, dtype=np.int64)]
        for section, count in enumerate(self._section_rows.tolist()):
            if rows <= 0:
                break
            plan = self._current_section[2] if self._current_section[1] == section else self._pack_section(section)[0]
            found.append(plan.piece_documents[: plan.row_starts[min(rows, count)]])
            rows -= count
        return np.unique(np.concatenate(found))

    def read_row_documents(self, index: int) -> np.ndarray:
        """Returns the number of the document that each token of row `index` is of, (T + 1,) int64; padding is -1."""
        plan, row = self._locate_row(index)
        documents = plan.piece_documents[plan.row_starts[row] : plan.row_starts[row + 1]]
        return np.append(documents, -1)[self.number_row_pieces(index) - 1]

    def number_row_pieces(self, index: int) -> np.ndarray:
        """Returns the number in its row, from 1, of the piece that each token of row `index` is of, (T + 1,) int64.

        Padding is one more piece. What separates documents is where they begin, and no token: the chat templates of
        some models write no BOS.
        """
        plan, row = self._locate_row(index)
        lengths = plan.piece_lengths[plan.row_starts[row] : plan.row_starts[row + 1]] + plan.adds_bos
        return np.repeat(np.arange(1, len(lengths) + 2), np.append(lengths, plan.row_length - lengths.sum()))

    def _locate_row(self, index: int) -> tuple[PackingPlan, int]:
        """Returns the plan of the section that row `index` of the endless sequence is in, and its row there."""
        epoch, position = divmod(index, len(self))
        current_epoch, sections, count_rows_before = self._current_epoch
        if current_epoch != epoch:
            sections, count_rows_before = self._section_order(epoch)
            self._current_epoch = (epoch, sections, count_rows_before)
        place = int(np.searchsorted(count_rows_before, position, side="right")) - 1
        section = int(sections[place])
        current_epoch, current_section, plan, order = self._current_section
        if (current_epoch, current_section) != (epoch, section):
            plan = plan if current_section == section else self._pack_section(section)[0]
            order = self._permute(self.seed, epoch + 1, plan.num_rows, section)  # key 0 is the order of documents
            self._current_section = (epoch, section, plan, order)
        return plan, int(order[position - int(count_rows_before[place])])


@dataclass(frozen=True)
class BatchBuilder:
    """Builds the micro-batches of a rank and step: a pure function, used by the stream and its thread."""

    sources: tuple[RowSource, ...]
    source_order: SourceOrder
    micro_batch_size: int
    train_on: TrainOn
    rank: int
    world_size: int
    starts: tuple[int, ...]  # the first row of each source
    warmup: BatchWarmup
    multi_token: MultiTokenTargets

    def build_batches(self, step: int, skipped: int = 0) -> list[Batch]:
        """Returns micro-batches rank, rank + world_size, ... of ceil(R / micro_batch_size). skipped: earlier steps."""
        first, count = self.warmup.count_rows_before(step), self.warmup.count_rows_at(step)
        located = (self.source_order.locate(first + k) for k in range(count))
        rows = [(source, self.starts[source] + index) for source, index in located]
        starts = range(0, count, self.micro_batch_size)
        return [
            self.multi_token.add(
                self.warmup.cut(self._build_batch(rows[start : start + self.micro_batch_size]), step), step - skipped
            )
            for start in starts[self.rank :: self.world_size]
        ]  # the weights of further targets fall with the steps that were made

    def _build_batch(self, rows: list[tuple[int, int]]) -> Batch:
        pairs = [self.sources[source].read_row(index, self.train_on) for source, index in rows]
        tokens = np.stack([tokens for tokens, _ in pairs])  # (B, T + 1)
        is_target = np.stack([mask for _, mask in pairs])[:, 1:]  # (B, T)
        inputs = tokens[:, :-1]
        pieces = np.stack([self.sources[source].number_row_pieces(index) for source, index in rows])
        return Batch(
            tokens=torch.from_numpy(np.ascontiguousarray(inputs)),
            targets=torch.from_numpy(np.where(is_target, tokens[:, 1:], IGNORE_INDEX)),
            document_ids=torch.from_numpy(pieces[:, :-1].astype(np.int32)),
        )


class MixtureStream:
    """An iterator over steps, which gives this rank's micro-batches, with rows of several sources mixed by weight.

    The state is the number of steps consumed; steps that were prefetched and not consumed are built again after a
    resume. Closing the stream, or deleting it, stops its thread.

    Args:
        sources: (source, weight) pairs; weights in any unit, sources of one context and one BOS.
        rows_per_step: R, over all ranks and micro-batches; ranks beyond its micro-batches have none.
        micro_batch_size: rows of a micro-batch, at most.
        steps: steps of the stage, then StopIteration; None for a stream without end.
        seed: rotates the cycle of sources; the rows of a source have the source's own seed.
        prefetch: whether a thread builds the next steps during this one.
        starts: the first row of each source; None for 0.
        batch_warmup_steps, context_warmup_steps: steps of `BatchWarmup`.
        multi_token: the tokens after the next one that a position predicts too.
    """

    def __init__(
        self,
        sources: Sequence[tuple[RowSource, float]],
        rows_per_step: int,
        micro_batch_size: int,
        steps: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: bool = True,
        train_on: TrainOn = "all",
        starts: Sequence[int] | None = None,
        batch_warmup_steps: int = 0,
        context_warmup_steps: int = 0,
        multi_token: MultiTokenTargets = NEXT_TOKEN_ONLY,
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        assert micro_batch_size >= 1, f"micro-batches of {micro_batch_size} rows"
        firsts = [0] * len(sources) if starts is None else starts
        used = [(source, weight, first) for (source, weight), first in zip(sources, firsts, strict=True) if weight != 0]
        order = SourceOrder.from_weights([weight for _, weight, _ in used], offset=seed)
        row_sources = tuple(source for source, *_ in used)
        assert len({(source.context, source.bos) for source in row_sources}) == 1, "contexts or BOS differ"
        self.steps = steps
        self.step = self.skipped = 0
        self.builder = BatchBuilder(
            row_sources,
            order,
            micro_batch_size,
            train_on,
            rank,
            world_size,
            starts=tuple(first for *_, first in used),
            warmup=BatchWarmup(rows_per_step, batch_warmup_steps, context_warmup_steps),
            multi_token=multi_token,
        )
        self._prefetch = prefetch
        self._prefetcher: Prefetcher | None = None

    def next(self) -> list[Batch]:
        """Returns the micro-batches of the next step.

        Raises StopIteration after the last step, and any exception of the prefetching thread.
        """
        last = None if self.steps is None else self.steps + self.skipped
        if last is not None and self.step >= last:
            self.close()
            raise StopIteration
        build = partial(self.builder.build_batches, skipped=self.skipped)
        if self._prefetch and self._prefetcher is None:
            self._prefetcher = Prefetcher(build, self.step, last)
            self._release = weakref.finalize(self, self._prefetcher.close)
        try:
            batches = self._prefetcher.get() if self._prefetcher else build(self.step)
        except BaseException:
            self.close()
            raise
        self.step += 1
        return batches

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        return self.next()

    def state_dict(self) -> dict[str, int]:
        """Returns the number of steps consumed, and how many of them were skipped, if any."""
        return {"step": self.step} | ({"skipped": self.skipped} if self.skipped else {})

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after `state["step"]` steps, forwards or backwards, without replay."""
        self.close()
        self.step, self.skipped = int(state["step"]), int(state.get("skipped", 0))

    def skip(self, steps: int) -> None:
        """Skips the next `steps` steps, and gives as many more at the end."""
        self.close()
        self.step += steps
        self.skipped += steps

    def source_rows(self, steps: int | None = None) -> list[int]:
        """Returns the row at which each source continues after `steps` steps (None: after those given so far)."""
        counts = self.builder.source_order.count_rows(
            self.builder.warmup.count_rows_before(self.step if steps is None else steps)
        )
        return [first + int(count) for first, count in zip(self.builder.starts, counts, strict=True)]

    def summary(self, steps: int | None = None) -> list[dict[str, object]]:
        """Returns one dict for each source, of what it gives in `steps` steps (None for those of the stage).

        Keys: directory of its first shard, kind, rows of one epoch, rows_taken, epochs (rows_taken / rows),
        efficiency (share of positions without padding), num_truncated (conversations longer than a row).
        """
        steps = self.steps if steps is None else steps
        assert steps is not None, "a stream without end has no summary"
        taken = self.builder.source_order.count_rows(self.builder.warmup.count_rows_before(steps)).tolist()
        return [
            {
                "directory": str(source.shards[0].directory),
                "kind": source.kind,
                "rows": len(source),
                "rows_taken": rows,
                "epochs": rows / len(source),
                "efficiency": source.efficiency,
                "num_truncated": source.num_truncated,
            }
            for source, rows in zip(self.builder.sources, taken, strict=True)
        ]

    def close(self) -> None:
        """Stops the thread, if there is one; the stream can be used afterwards."""
        if self._prefetcher is not None:
            self._release()
            self._prefetcher = None
