"""In which order starts are replayed within the time, and what was reached of them.

The weights that are used are those of the last stage: it comes first. The others follow in turns, the later ones first,
so that on a busy machine something of each is reached.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from fledgling.config import STAGES
from fledgling.verify.steps import DATA_STAGES, Replay, Start

MAX_SHARE = 0.5  # of the time that is left, for one start


def order_starts(starts: Sequence[Start], drawn: Mapping[Start, Sequence[int]], chance: random.Random) -> list[Start]:
    """Returns the starts that are taken, the most important first.

    Of the last stage one from which steps lead to its last weights, then these weights; of the others in turns their
    beginning, where the data of all steps are read, their last weights, and the rest.

    Args:
        starts: those that can be taken.
        drawn: those from which steps are replayed, with the distances.
        chance: orders starts of the same rank.
    """
    queues: list[list[Start]] = []
    for stage in sorted({start.stage for start in starts}, key=STAGES.index, reverse=True):
        own = [start for start in starts if start.stage == stage]
        ends = [start for start in own if start.path and start.step == start.last]
        beginnings = [start for start in own if start.step == 0 and stage in DATA_STAGES]
        others = [start for start in drawn if start.stage == stage and start not in beginnings]
        chance.shuffle(others)
        if queues:
            queues.append([*beginnings, *ends, *others])
            continue
        last = max((start.last for start in own), default=0)
        leading = sorted([*others, *beginnings], key=lambda start: start.last != last)
        queues.append([*leading[:1], *ends, *(start for start in [*beginnings, *others] if start not in leading[:1])])
    first, queues[:1] = (queues[0][:2], [queues[0][2:]]) if queues else ([], [])
    return [*first, *(start for turn in zip_longest(*queues) for start in turn if start is not None)]


@dataclass
class Reached:
    """What was replayed. last_steps: of the stages; stages: that have steps; drawn: starts with distances."""

    last_steps: Mapping[str, int]
    stages: set[str]
    drawn: Mapping[Start, Sequence[int]]
    left_out: list[str] = field(default_factory=list)
    _steps: dict[str, set[int]] = field(default_factory=dict)
    _compared: set[tuple[str, int]] = field(default_factory=set)
    _seconds: list[float] = field(default_factory=list)

    def has_time(self, seconds: float) -> bool:
        """Returns whether another start is begun: the limit is exceeded by half of the shortest one at most."""
        return seconds > 0 and seconds >= min(self._seconds, default=0.0) / 2

    def add(self, start: Start, result: Replay, seconds: float) -> None:
        """Adds what a start gave, within `seconds`."""
        self._seconds.append(seconds)
        self._steps.setdefault(start.stage, set()).update(result.lines)
        if result.saved is not None:
            self._compared.add((start.stage, int(result.saved.path.name.removeprefix("step-"))))
        if result.evals:
            self._compared.add((start.stage, start.step))

    def list_unseen(self) -> list[str]:
        """Returns a line that names the last weights that nothing was compared with, if there are any."""
        unseen = [
            f"{stage} step {last}" for stage, last in self.last_steps.items() if (stage, last) not in self._compared
        ]
        reason = "no start was taken so far, and no bits per byte were recorded"
        return [f"not compared: {', '.join(unseen)}: {reason}"] if unseen else []

    def count_drawn(self) -> tuple[int, int]:
        """Returns how many of the drawn steps were replayed, and how many there are."""
        drawn = {(start.stage, start.step + distance) for start in self.drawn for distance in self.drawn[start]}
        return sum(step in self._steps.get(stage, ()) for stage, step in drawn), len(drawn)

    def list_notes(self) -> list[str]:
        """Returns lines with the drawn steps, and with those that did not fit into the time."""
        notes = []
        for start, distances in self.drawn.items():
            if str(start) not in self.left_out:
                notes.append(f"drawn after {start}: {', '.join(str(start.step + d) for d in sorted({*distances}))}")
        done, total = self.count_drawn()
        if done < total:
            notes.append(f"{done} of {total} drawn steps fit into the time: give --seconds more")
        if self.left_out:
            notes.append(f"no time left for {', '.join(self.left_out)}: give --seconds more")
        return notes

    def describe_shortfall(self) -> str:
        """Returns what a verdict says of drawn steps that were not replayed, and of stages without any; "" of all."""
        done, total = self.count_drawn()
        none = [stage for stage in STAGES if stage in self.stages and not self._steps.get(stage)]
        counts = f", {done} of {total} drawn steps replayed" if done < total or none else ""
        return counts + (f", none of {', '.join(none)}" if none else "")
