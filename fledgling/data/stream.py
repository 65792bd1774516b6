"""The micro-batches of a step, from rows, from sources, from a seed.

The one idea: the data is one endless list of rows, and row g of it is a pure function of (sources, weights,
seed, g). Step n takes rows n * R to (n + 1) * R, cut into micro-batches that are dealt to the ranks in turn. So
neither the order nor, for micro-batches of one size, any of them depends on the number of ranks, and the state
of the stream is one number: to resume is to go on counting.

Not here: how a row is filled (`pack.py`), and which source it comes from (`mixture.py`).

B rows of a micro-batch, T positions (context), R rows of a step over all ranks.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.mixture import SourceOrder
from fledgling.data.packing import PackingPlan, fill_row, pack_cropped, pack_whole, truncate_lengths
from fledgling.data.shards import TokenShard

TrainOn = Literal["all", "assistant"]
PREFETCH_STEPS = 2  # steps prepared while the one before is trained on
MAX_SECTION_DOCUMENTS = 1 << 18  # documents shuffled and packed as one


def permutation(seed: int, key: int, size: int, section: int = 0) -> np.ndarray:
    """A permutation (size,) int64 of 0 to size - 1, a pure function of (seed, key, window).

    It sorts the raw words of a counter-based generator, whose stream numpy keeps the same for ever; it does
    not promise that of `Generator.permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, key, *([section] if section else [])]))
    return np.argsort(bits.random_raw(size), kind="stable")


class RowSource:
    """An endless sequence of rows from one or more shards; each epoch gives every row once, in its own order.

    shards    one TokenShard, or several, taken as one.
    kind      "crop": documents stored without BOS, laid end to end, every row full;
              "whole": conversations stored as rendered, never crossing a row.
    context   T; a row has T + 1 tokens, so that it has T inputs and T targets.
    seed      decides which documents share a row, and the order of rows in each epoch.
    bos       id that begins a document or conversation; it is the padding too, so padding is a document by
              itself.
    turn_end  id that ends an assistant's turn: where conversations longer than the row are cut (`.cut` of
    them).
    most      documents shuffled and packed as one: what bounds the memory of a plan.

    A corpus of more documents is dealt into windows: window w of W holds the w-th of W parts of every shard. Each is
    packed by itself, an epoch goes through them in an order of its own, and only the window that is being read has a
    plan in memory.

    Raises UserError if the shards hold no token.
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
    ) -> None:
        self.shards = (shards,) if isinstance(shards, TokenShard) else tuple(shards)
        assert self.shards, "a source needs a shard"
        self.kind, self.context, self.seed, self.bos, self.turn_end = kind, context, seed, bos, turn_end
        self._first_document = np.cumsum([0] + [len(shard) for shard in self.shards])
        self._num_sections = max(1, math.ceil(int(self._first_document[-1]) / max_section_documents))
        rows, used, self.num_truncated = [], 0.0, 0
        for window in range(self._num_sections):
            plan, cut = self._pack_section(window)
            rows.append(plan.num_rows)
            used, self.num_truncated = used + plan.efficiency * plan.num_rows, self.num_truncated + cut
        self._section_rows = np.array(rows, dtype=np.int64)  # (W,)
        if not self._section_rows.any():
            raise UserError(f"{self.shards[0].directory} holds no tokens: prepare it with some text")
        self.efficiency = used / int(self._section_rows.sum())  # share of row positions that are not padding
        # Both are replaced whole, because two threads may read them.
        self._current_epoch = (0, *self._section_order(0))  # epoch, its order of windows, rows before each
        self._current_section = (
            -1,
            window,
            plan,
            np.empty(0, dtype=np.int64),
        )  # epoch, window, its plan, its order of rows

    def __len__(self) -> int:
        """Rows of one epoch."""
        return int(self._section_rows.sum())

    def _pack_section(self, section: int) -> tuple[PackingPlan, int]:
        """The plan of a window, whose documents are counted through all shards; and how many were cut."""
        numbers, lengths, cut = [], [], 0
        for first, shard in zip(self._first_document.tolist(), self.shards, strict=False):
            start, stop = (len(shard) * edge // self._num_sections for edge in (section, section + 1))
            offsets = shard.offsets[start : stop + 1]
            if self.kind == "whole":
                here, count = truncate_lengths(shard.tokens, offsets, self.context + 1, self.turn_end)
                cut += count
            else:
                here = np.diff(offsets)
            lengths.append(here)
            numbers.append(np.arange(first + start, first + stop))
        order = permutation(self.seed, 0, sum(map(len, lengths)), section)
        ordered = np.concatenate(lengths)[order]
        pack = pack_cropped if self.kind == "crop" else pack_whole
        plan = pack(ordered, self.context + 1)
        return replace(plan, piece_documents=np.concatenate(numbers)[order][plan.piece_documents]), cut

    def _section_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows in the order of an epoch (W,), and the rows before each (W + 1,)."""
        windows = permutation(self.seed, epoch + 1, self._num_sections, self._num_sections)
        return windows, np.cumsum([0, *self._section_rows[windows]])

    def read_tokens(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Part of a document, counted through all shards: tokens (length,), mask (length,) or None."""
        shard = int(np.searchsorted(self._first_document, document, side="right")) - 1
        return self.shards[shard].read_tokens(document - int(self._first_document[shard]), start, length)

    def read_row(self, index: int, train_on: TrainOn = "all") -> tuple[np.ndarray, np.ndarray]:
        """Row `index` of the endless sequence: tokens (T + 1,) int64, mask (T + 1,) bool.

        The mask is True where a token may be learned as a target. "all": everything but padding; for crop
        rows that includes the BOS after a document, which is how the model learns that documents end.
        "assistant": what the shard's own mask allows, and never the BOS between conversations; documents
        without a mask stay whole.
        """
        epoch, position = divmod(index, len(self))
        turn, windows, before = self._current_epoch
        if turn != epoch:
            windows, before = self._section_order(epoch)
            self._current_epoch = (epoch, windows, before)
        place = int(np.searchsorted(before, position, side="right")) - 1
        window = int(windows[place])
        shown, opened, plan, order = self._current_section
        if (shown, opened) != (epoch, window):
            plan = plan if opened == window else self._pack_section(window)[0]
            order = permutation(self.seed, epoch + 1, plan.num_rows, window)  # key 0 ordered the documents
            self._current_section = (epoch, window, plan, order)
        chosen = int(order[position - int(before[place])])
        return fill_row(plan, self, chosen, self.bos, pad=self.bos, use_mask=train_on == "assistant")


def assign_document_ids(tokens: np.ndarray, bos: int) -> np.ndarray:
    """Numbers the documents of rows: tokens (B, T) to (B, T) int32, growing by one at each BOS.

    BOS after BOS does not begin another document, so that padding is one document and not one for each
    position.
    """
    starts = tokens == bos
    starts[:, 1:] &= ~starts[:, :-1]
    return np.cumsum(starts, axis=1, dtype=np.int32)


@dataclass(frozen=True)
class BatchBuilder:
    """Which micro-batches a rank makes of a step: a pure function, shared by the stream and its thread."""

    sources: tuple[RowSource, ...]
    source_order: SourceOrder
    rows_per_step: int
    micro_batch_size: int
    train_on: TrainOn
    rank: int
    world_size: int

    def build_batches(self, step: int) -> list[Batch]:
        """Number rank, rank + size, ... of the step's ceil(R / micro_rows) micro-batches, the last perhaps smaller."""
        rows = [self.source_order.locate(step * self.rows_per_step + k) for k in range(self.rows_per_step)]
        starts = range(0, self.rows_per_step, self.micro_batch_size)
        return [
            self._build_batch(rows[start : start + self.micro_batch_size])
            for start in starts[self.rank :: self.world_size]
        ]

    def _build_batch(self, rows: list[tuple[int, int]]) -> Batch:
        pairs = [self.sources[source].read_row(index, self.train_on) for source, index in rows]
        tokens = np.stack([tokens for tokens, _ in pairs])  # (B, T + 1)
        learned = np.stack([mask for _, mask in pairs])[:, 1:]  # (B, T)
        inputs = tokens[:, :-1]
        return Batch(
            tokens=torch.from_numpy(np.ascontiguousarray(inputs)),
            targets=torch.from_numpy(np.where(learned, tokens[:, 1:], IGNORE_INDEX)),
            document_ids=torch.from_numpy(assign_document_ids(inputs, self.sources[0].bos)),
        )


class MixtureStream:
    """`next()` gives the micro-batches of one step for this rank, rows of several sources mixed by weight.

    sources        (source, weight) pairs; weights in any unit, all sources of one context and one BOS.
    rows_per_step  R, over all ranks and micro-batches; at least one a rank.
    micro_rows     rows of one micro-batch at most.
    steps          steps of the stage; after that StopIteration. None never ends.
    seed           where the cycle of sources begins; the rows of a source have the source's own seed.
    look_ahead     prepare the next steps in a thread while this one is trained on.

    The state is the number of steps consumed; what was prepared and not consumed is made again after a
    resume. Close it, or let it go: either stops the thread.
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
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        assert micro_batch_size >= 1, f"micro-batches of {micro_batch_size} rows"
        if rows_per_step < world_size:
            raise UserError(
                f"a step of {rows_per_step} rows cannot be dealt to {world_size} ranks: enlarge batch_tokens"
            )
        kept = [(source, weight) for source, weight in sources if weight != 0]
        cycle = SourceOrder.from_weights([weight for _, weight in kept], offset=seed)
        rows = tuple(source for source, _ in kept)
        assert len({(source.context, source.bos) for source in rows}) == 1, "sources of one context and BOS"
        self.steps = steps
        self.step = self.skipped = 0
        self.builder = BatchBuilder(rows, cycle, rows_per_step, micro_batch_size, train_on, rank, world_size)
        self._prefetch = prefetch
        self._prefetcher: Prefetcher | None = None

    def next(self) -> list[Batch]:
        """The micro-batches of the next step.

        Raises StopIteration after the last step, and whatever the look-ahead thread ran into.
        """
        last = None if self.steps is None else self.steps + self.skipped
        if last is not None and self.step >= last:
            self.close()
            raise StopIteration
        if self._prefetch and self._prefetcher is None:
            self._prefetcher = Prefetcher(self.builder.build_batches, self.step, last)
            self._release = weakref.finalize(self, self._prefetcher.close)
        try:
            batches = self._prefetcher.get() if self._prefetcher else self.builder.build_batches(self.step)
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
        """The number of steps consumed; and how many of them were left out, where some were."""
        return {"step": self.step} | ({"skipped": self.skipped} if self.skipped else {})

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after `state["step"]` steps, forwards or backwards, without replay."""
        self.close()
        self.step, self.skipped = int(state["step"]), int(state.get("skipped", 0))

    def skip(self, steps: int) -> None:
        """Leaves out the next `steps` steps, and gives as many more at the end."""
        self.close()
        self.step += steps
        self.skipped += steps

    def summary(self, steps: int | None = None) -> list[dict[str, object]]:
        """What each source gives in `steps` steps (None: those of the stage), one dict a source.

        directory of its first shard, kind, rows of one epoch, rows_taken, epochs (rows_taken / rows),
        efficiency (share of positions that are not padding), cut (conversations longer than a row).
        """
        steps = self.steps if steps is None else steps
        assert steps is not None, "a stream without an end gives no sum"
        taken = self.builder.source_order.count_rows(steps * self.builder.rows_per_step).tolist()
        return [
            {
                "directory": str(source.shards[0].directory),
                "kind": source.kind,
                "rows": len(source),
                "rows_taken": rows,
                "epochs": rows / len(source),
                "efficiency": source.efficiency,
                "cut": source.num_truncated,
            }
            for source, rows in zip(self.builder.sources, taken, strict=True)
        ]

    def close(self) -> None:
        """Stops the thread, if there is one; the stream can go on afterwards."""
        if self._prefetcher is not None:
            self._release()
            self._prefetcher = None


class Prefetcher:
    """Calls `produce(first)`, `produce(first + 1)`, ... up to `last` in one thread, at most AHEAD results
    ahead.

    An exception in `produce` is raised by the `take` that would have had its result; the thread then ends.
    The thread holds no reference to who takes, so a forgotten stream can be collected and closed.
    """

    def __init__(self, produce: Callable[[int], list[Batch]], first: int, last: int | None) -> None:
        self._produce = produce
        self._next, self._last = first, last
        self._ready: deque[tuple[list[Batch] | None, BaseException | None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fledgling-data", daemon=True)
        self._thread.start()

    def get(self) -> list[Batch]:
        """Waits for the next result; raises what `produce` raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            assert self._ready, "taken after close"
            result, error = self._ready.popleft()
            self._changed.notify_all()
        if error is not None:
            raise error
        assert result is not None
        return result

    def close(self) -> None:
        """Stops the thread after the step it is at, and waits for it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # a finalizer may run anywhere
            self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            try:
                made = (self._produce(self._next), None)
            except BaseException as error:
                made = (None, error)
            with self._changed:
                self._changed.wait_for(lambda: len(self._ready) < PREFETCH_STEPS or self._closed)
                if self._closed:
                    return
                self._ready.append(made)
                self._next += 1
                self._closed = made[1] is not None or self._next == self._last
                self._changed.notify_all()
