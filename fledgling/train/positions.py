"""Where each source goes on: one position a source runs through all stages.

A later stage reads the rows after those that earlier stages have read, and begins a source again only when all of it is
read. Positions are numbers in every checkpoint: `start`, where the stage began, from which it resumes, and `now`, from
which the next stage goes on. A source is recognized by what it holds and how it is packed (`RowSource.key`), not by its
name: an edited text begins at its first row. Of a set of conversations that is prepared in parts, the position is the
number of conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fledgling.data.stream import MixtureStream, RowSource

Positions = dict[str, dict[str, Any]]  # by key: {"source": its name, "row": rows read so far}


def read_positions(state: Mapping[str, Any], resumes: bool) -> Positions:
    """Returns the positions at which a stage begins.

    Args:
        state: of the stage's own checkpoint if it resumes, else of the checkpoint it starts from.
    """
    return dict(state.get("positions", {}).get("start" if resumes else "now", {}))


@dataclass(frozen=True)
class SourcePositions:
    """The positions of a stage's sources.

    Args:
        before: of all sources that earlier stages have read.
        names: of the stage's sources that later stages may go on reading, by their index in its mixture.
        parts: entries of sets that are prepared in parts, as they are after the stage.
    """

    before: Positions
    names: Mapping[int, str] = field(default_factory=dict)
    parts: Positions = field(default_factory=dict)

    def find_starts(self, sources: Sequence[RowSource]) -> list[int]:
        """Returns the row at which each source begins."""
        return [
            int(self.before.get(source.key, {}).get("row", 0)) if index in self.names else 0
            for index, source in enumerate(sources)
        ]

    def state_dict(self, stream: MixtureStream) -> dict[str, Positions]:
        """Returns `start` and `now`, as JSON values, after the steps that `stream` has given."""
        now: Positions = {**self.before, **self.parts}
        for index, (source, row) in enumerate(zip(stream.builder.sources, stream.source_rows(), strict=True)):
            if index in self.names:
                now[source.key] = {"source": self.names[index], "row": row}
        return {"start": self.before, "now": now}

    def describe(self, stage: str, stream: MixtureStream, steps: int) -> Iterator[str]:
        """Yields a line for each source that goes on after earlier stages, or that is read more than once."""
        builder = stream.builder
        ends = stream.source_rows(steps)
        changed = {entry["source"] for entry in self.before.values()}
        for index, (source, start, end) in enumerate(zip(builder.sources, builder.starts, ends, strict=True)):
            rows, name = len(source), self.names.get(index, f"{stage} tasks")
            first, last = start // rows + 1, max(start, end - 1) // rows + 1
            passes = f"pass {first}" if first == last else f"passes {first} to {last}"
            if start:
                yield (
                    f"{stage}: {name}: goes on at row {start % rows:,} of {rows:,}, after those that earlier stages "
                    f"read; {end - start:,} rows, {passes}"
                )
            elif last > 1:
                yield f"{stage}: {name}: {end:,} rows of {rows:,}: each is read {end / rows:.1f} times, {passes}"
            if not start and name in changed and index in self.names and source.key not in self.before:
                yield (
                    f"{stage}: {name}: is not what earlier stages read (text, tokenizer or context), so it begins at "
                    "its first row"
                )


def carry_positions(positions: Positions) -> Callable[[], dict[str, Positions]]:
    """Returns the function of a stage that reads no source, such as RL: the positions pass through it."""
    return lambda: {"start": positions, "now": positions}
