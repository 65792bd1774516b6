"""Tasks that stand in files: a training split to learn and practise from, a test split to be examined in.

The one idea: an epoch is a shuffle. Training example i of a seed is row (i mod N) of a permutation that
(seed, i div N) names, so every row comes once an epoch, in an order that any process can recompute; the test split has
one order for ever, so that a smaller exam is the beginning of a larger one.

What it is not: it knows no set. `multiple_choice.py`, `gsm8k.py` and `humaneval.py` say where theirs lie and
what a row means. Training never reads the test split, and an exam never reads the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.files import rows, stamps
from fledgling.tasks.task import PRACTICE, TRAIN, Question, conversation, order

TEST = "test"
Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A row understood: its question, the reference reply (a text or parts), and its own words.

    `words` are the row's, without what a prompt adds: what must not stand in training text.
    """

    question: Question
    reply: str | list[dict]
    words: str


@dataclass(frozen=True)
class Places:
    """Where a set's splits lie under the data root: for each, glob patterns, of which the first that matches counts."""

    name: str
    root: Path
    patterns: dict[str, tuple[str, ...]]

    def find(self, split: str) -> list[Path]:
        """Return the split's files, sorted. Raises UserError that says where they were looked for and how to get them.

        A set without a training split is for evaluation only.
        """
        if split not in self.patterns:
            raise UserError(f"{self.name} has no {split} split; it is for evaluation only: take it out of the mixture")
        for pattern in self.patterns[split]:
            if found := sorted(self.root.glob(pattern)):
                return found
        looked = " or ".join(self.patterns[split])
        raise UserError(
            f"{self.name}: no {split} split under {self.root} (looked for {looked}); "
            f"get it with `fledgling data fetch {self.name}`, or point --data-dir or FLEDGLING_DATA at it"
        )


@dataclass(frozen=True)
class Filed:
    """A task of finite splits.

    places  where its files lie.
    read    (task's name, row, "FILE:LINE") -> Item; raises UserError for a row it cannot understand.
    score   (question, answer) -> 1.0 or 0.0.
    judge   the same for many at once, where that is quicker.
    longest tokens that an answer may take.
    """

    name: str
    places: Places
    read: Callable[[str, Row, str], Item]
    score: Callable[[Question, str], float]
    judge: Callable[[Sequence[tuple[Question, str]]], list[float]] | None = None
    longest: int = 96

    def __len__(self) -> int:
        """Return the rows of the training split."""
        return len(self.items(TRAIN))

    def files(self) -> list[Path]:
        """Return the files of the training split."""
        return self.places.find(TRAIN)

    def items(self, split: str) -> tuple[Item, ...]:
        """Return all rows of a split, in the order of its files. Raises UserError for a bad row, naming its place."""
        return self._train if split == TRAIN else self._test

    @cached_property
    def _train(self) -> tuple[Item, ...]:
        return _items(self.name, stamps(self.places.find(TRAIN)), self.read)

    @cached_property
    def _test(self) -> tuple[Item, ...]:
        return _items(self.name, stamps(self.places.find(TEST)), self.read)

    def train(self, index: int, seed: int) -> dict:
        """Return conversation `index` of `seed`, from the training split."""
        item = self._row(TRAIN, index, seed)
        return conversation(item.question.prompt, item.reply)

    def practice(self, index: int, seed: int) -> Question:
        """Return practice prompt `index` of `seed`, from the training split in another order."""
        return self._row(PRACTICE, index, seed).question

    def question(self, index: int) -> Question:
        """Return question `index` of the test split, which is shuffled once and for all."""
        items = self.items(TEST)
        return items[order(len(items), self.name, TEST)[index]].question

    def exams(self, count: int, practised: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Return one exam: the first `count` questions of the test split, all of them where it has fewer."""
        return [(self.name, tuple(self.question(index) for index in range(min(count, len(self.items(TEST))))))]

    def scores(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return the score of each (question, answer)."""
        return self.judge(pairs) if self.judge else [self.score(question, answer) for question, answer in pairs]

    def _row(self, purpose: str, index: int, seed: int) -> Item:
        items = self.items(TRAIN)
        epoch, position = divmod(index, len(items))
        return items[order(len(items), self.name, purpose, seed, epoch)[position]]


@lru_cache(maxsize=16)
def _items(
    name: str, files: tuple[tuple[Path, int, int], ...], read: Callable[[str, Row, str], Item]
) -> tuple[Item, ...]:
    found = tuple(read(name, row, where) for path, *_ in files for row, where in rows(path))
    if not found:
        raise UserError(f"{name}: {files[0][0]} holds no row; it was cut off, fetch or copy it again")
    return found


def text_of(row: Row, column: str, where: str) -> str:
    """Return the text in a column. Raises UserError naming the place, the column and those there are."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        got = "is empty" if isinstance(value, str) else f"is {type(value).__name__}" if column in row else "is missing"
        there = ", ".join(map(str, row)) or "none"
        raise UserError(f'{where}: column "{column}" {got}, expected text; the row has {there}')
    return value
