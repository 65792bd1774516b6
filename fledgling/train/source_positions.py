"""Where each source continues: one position for each source, through all stages.

A later stage reads the rows after those that earlier stages have read, and begins a source again only when all of it is
read. Positions are numbers in every checkpoint: `start`, where the stage began, from which it resumes, and `now`, from
which the next stage continues. A source is recognized by what it holds and how it is packed (`RowSource.key`), not by
its name: an edited text begins at its first row. The position in a set of
conversations that is prepared in parts is the first conversation that no stage has read ("row"), with the later
ones that some stage has read ("ahead").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fledgling.data.stream import MixtureStream, RowSource

Positions = dict[str, dict[str, Any]]  # by key: {"source": its name, "row": rows read so far}


def read_positions(state: Mapping[str, Any], resumes: bool) -> Positions:
    """Returns the positions at which a stage begins.

    Args:
        state: of the stage's own checkpoint if it resumes, else of the checkpoint it starts from.
    """
    return dict(state.get("positions", {}).get("start" if resumes else "now", {}))


@dataclass(frozen=True)
class SetPart:
    """The conversations of a large set that a stage's shard was written from: `span` of them from number `first` on.

    The shard lacks those that earlier stages have read ahead (`skipped`) and rows that are none (`left_out`).
    """

    name: str
    key: str  # of its position
    first: int
    span: int
    skipped: frozenset[int] = frozenset()
    left_out: frozenset[int] = frozenset()
    pass_length: int | None = None  # conversations of a pass; None: its rows may have conversations of two passes
    documents: tuple[int, ...] = ()  # of each conversation in the shard; (): one

    @property
    def held(self) -> list[int]:
        """The number of the conversation of each document in the shard."""
        absent = self.skipped | self.left_out
        numbers = [number for number in range(self.first, self.first + self.span) if number not in absent]
        counts = self.documents or (1,) * len(numbers)
        return [number for number, count in zip(numbers, counts, strict=True) for _ in range(count)]

    @property
    def breaks(self) -> tuple[int, ...]:
        """The documents of the shard with which a pass over the set begins, except the first: they begin a row."""
        if not self.pass_length:
            return ()
        held, begin = self.held, self.first - self.first % self.pass_length
        starts = range(begin + self.pass_length, self.first + self.span, self.pass_length)
        return tuple(sorted({bisect_left(held, start) for start in starts} - {0, len(held)}))

    def find_position(self, source: RowSource, rows: int) -> dict[str, Any]:
        """Returns the set's position once the first `rows` rows of `source`, the rows of the shard, are read."""
        held = self.held
        entry = {"source": self.name, "row": self.first + self.span}
        if rows >= len(source) or len(held) != source.num_documents:  # all is read, or an older shard
            return entry
        read = source.list_documents(rows)
        is_left = np.ones(len(held), dtype=bool)
        is_left[read] = False
        entry["row"] = first_left = held[int(is_left.argmax())]
        left = {held[document] for document in is_left.nonzero()[0].tolist()}
        ahead = {held[document] for document in read.tolist()} - left | self.skipped
        if later := sorted(number for number in ahead if number > first_left):
            entry["ahead"] = later
        return entry


@dataclass(frozen=True)
class SourcePositions:
    """The positions of a stage's sources.

    Args:
        before: of all sources that earlier stages have read.
        names: of the stage's sources that later stages may read further, by their index in its mixture.
        parts: of sets that are prepared in parts, by the source's index.
    """

    before: Positions
    names: Mapping[int, str] = field(default_factory=dict)
    parts: Mapping[int, SetPart] = field(default_factory=dict)

    def name_of(self, index: int, stage: str) -> str:
        """Returns the name of a source in what is printed and recorded."""
        part = self.parts.get(index)
        return part.name if part else self.names.get(index, f"{stage} tasks")

    def find_starts(self, sources: Sequence[RowSource]) -> list[int]:
        """Returns the row at which each source begins."""
        return [
            int(self.before.get(source.key, {}).get("row", 0)) if index in self.names else 0
            for index, source in enumerate(sources)
        ]

    def state_dict(self, stream: MixtureStream) -> dict[str, Positions]:
        """Returns `start` and `now`, as JSON values, after the steps that `stream` has given."""
        now: Positions = dict(self.before)
        for index, (source, row) in enumerate(zip(stream.builder.sources, stream.source_rows(), strict=True)):
            if index in self.names:
                now[source.key] = {"source": self.names[index], "row": row}
            elif part := self.parts.get(index):
                now[part.key] = part.find_position(source, row)
        return {"start": self.before, "now": now}

    def describe(self, stage: str, stream: MixtureStream, steps: int) -> Iterator[str]:
        """Yields a line for each source that continues after earlier stages, or that is read more than once."""
        builder = stream.builder
        ends = stream.source_rows(steps)
        changed = {entry["source"] for entry in self.before.values()}
        for index, (source, start, end) in enumerate(zip(builder.sources, builder.starts, ends, strict=True)):
            rows, name = len(source), self.name_of(index, stage)
            first, last = start // rows + 1, max(start, end - 1) // rows + 1
            passes = f"pass {first}" if first == last else f"passes {first} to {last}"
            if start:
                yield (
                    f"{stage}: {name}: continues at row {start % rows:,} of {rows:,}, after those that earlier stages "
                    f"read; {end - start:,} rows, {passes}"
                )
            elif last > 1:
                yield f"{stage}: {name}: {end:,} rows of {rows:,}: each is read {end / rows:.1f} times, {passes}"
            if not start and name in changed and index in self.names and source.key not in self.before:
                yield (
                    f"{stage}: {name}: is not what earlier stages read (text, tokenizer or context), so it begins at "
                    "its first row"
                )

    def count_reading(self, stage: str, stream: MixtureStream) -> list[dict[str, Any]]:
        """Returns what each source has given so far, as JSON values for done.json.

        Keys: source; rows (of one pass); read (rows in this stage); passes (in all stages together); remaining (rows
        that no stage has read yet). For a set that is prepared in parts, rows are those of this stage's part.
        """
        builder, found = stream.builder, []
        ends = stream.source_rows()
        for index, (source, start, end) in enumerate(zip(builder.sources, builder.starts, ends, strict=True)):
            found.append(
                {
                    "source": self.name_of(index, stage),
                    "rows": len(source),
                    "read": end - start,
                    "passes": round(end / len(source), 4),
                    "remaining": max(0, len(source) - end),
                }
            )
        return found


def describe_reading(stage: str, reading: Sequence[Mapping[str, Any]]) -> str:
    """Returns what a stage has read of its sources as one line of text; "" for a stage that reads none."""
    parts = []
    for each in reading:
        passes = f"{each['passes']:.1f} times" if each["passes"] > 1 else f"{each['remaining']:,} not read yet"
        parts.append(f"{each['source']}: {each['read']:,} rows, of {each['rows']:,} in all stages {passes}")
    return f"{stage}: has read {'; '.join(parts)}" if parts else ""


def carry_positions(positions: Positions) -> Callable[[], dict[str, Positions]]:
    """Returns the function of a stage that reads no source, such as RL: the positions pass through it."""
    return lambda: {"start": positions, "now": positions}
