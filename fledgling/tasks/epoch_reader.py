"""Conversations of a source in the order of training, without the few rows that are none.

Training, the checks before it and the plan read with it, so that all of them leave out the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from fledgling.config import UserError
from fledgling.files import BadRows
from fledgling.tasks.task import ConversationSource


@dataclass
class EpochReader:
    """Yields the conversations of one epoch from number `first` on; leaves out rows that are none, and lists them.

    Raises the first of their errors if there are more than one in a hundred of an epoch (`BadRows.require_few`).
    """

    source: ConversationSource
    seed: int
    first: int = 0
    read: int = 0  # rows so far, those included that were left out or passed over
    left_out: list[int] = field(default_factory=list)  # their numbers
    bad: BadRows = field(default_factory=BadRows)
    limit: int | None = None  # rows; None: one epoch, which a generated source does not have
    skipped: frozenset[int] = frozenset()  # numbers to pass over: they are read already

    def __iter__(self) -> Iterator[dict]:
        return (conversation for _, conversation in self.iterate_numbered())

    def iterate_numbered(self) -> Iterator[tuple[int, dict]]:
        """Yields the number of each conversation, and the conversation."""
        epoch = len(self.source)
        for index in range(self.first, self.first + (epoch if self.limit is None else self.limit)):
            self.read += 1
            if index in self.skipped:
                continue
            try:
                conversation = self.source.get_train_conversation(index, self.seed)
            except UserError as error:
                self.left_out.append(index)
                self.bad.add(error)
                self.bad.require_few(max(1, -(-self.read // max(1, epoch))) * epoch)  # whole epochs
                continue
            yield index, conversation

    def describe(self) -> str:
        """Returns how many rows were left out, or ""."""
        return self.bad.describe(len(self.source))


def sample_conversations(source: ConversationSource, seed: int, count: int) -> list[dict]:
    """Returns the first `count` conversations of `seed`, fewer if an epoch has fewer.

    Raises UserError as `EpochReader` does.
    """
    return list(islice(EpochReader(source, seed, limit=len(source) or count), count))
