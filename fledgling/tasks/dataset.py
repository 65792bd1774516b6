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
from fledgling.files import read_rows, stat_files
from fledgling.tasks.task import PRACTICE, TRAIN, Question, make_conversation, shuffle_indices

TEST = "test"
RawRow = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A row understood: its question, the reference reply (a text or parts), and its own words.

    `words` are the row's, without what a prompt adds: what must not stand in training text.
    """

    question: Question
    reply: str | list[dict]
    source_text: str


@dataclass(frozen=True)
class SplitFiles:
    """Where a set's splits lie under the data root: for each, glob patterns, of which the first that matches counts."""

    name: str
    root: Path
    patterns: dict[str, tuple[str, ...]]

    def find_files(self, split: str) -> list[Path]:
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
class DatasetTask:
    """A task of finite splits.

    places  where its files lie.
    read    (task's name, row, "FILE:LINE") -> Item; raises UserError for a row it cannot understand.
    score   (question, answer) -> 1.0 or 0.0.
    judge   the same for many at once, where that is quicker.
    longest tokens that an answer may take.
    """

    name: str
    split_files: SplitFiles
    parse_row: Callable[[str, RawRow, str], Example]
    score: Callable[[Question, str], float]
    batch_scorer: Callable[[Sequence[tuple[Question, str]]], list[float]] | None = None
    max_new_tokens: int = 96

    def __len__(self) -> int:
        """Return the rows of the training split."""
        return len(self.examples(TRAIN))

    def files(self) -> list[Path]:
        """Return the files of the training split."""
        return self.split_files.find_files(TRAIN)

    def examples(self, split: str) -> tuple[Example, ...]:
        """Return all rows of a split, in the order of its files. Raises UserError for a bad row, naming its place."""
        return self._train_examples if split == TRAIN else self._test_examples

    @cached_property
    def _train_examples(self) -> tuple[Example, ...]:
        return _read_examples(self.name, stat_files(self.split_files.find_files(TRAIN)), self.parse_row)

    @cached_property
    def _test_examples(self) -> tuple[Example, ...]:
        return _read_examples(self.name, stat_files(self.split_files.find_files(TEST)), self.parse_row)

    def get_train_example(self, index: int, seed: int) -> dict:
        """Return conversation `index` of `seed`, from the training split."""
        item = self._get_shuffled_example(TRAIN, index, seed)
        return make_conversation(item.question.prompt, item.reply)

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Return practice prompt `index` of `seed`, from the training split in another order."""
        return self._get_shuffled_example(PRACTICE, index, seed).question

    def get_test_question(self, index: int) -> Question:
        """Return question `index` of the test split, which is shuffled once and for all."""
        items = self.examples(TEST)
        return items[shuffle_indices(len(items), self.name, TEST)[index]].question

    def list_exam_questions(self, count: int, include_practice: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Return one exam: the first `count` questions of the test split, all of them where it has fewer."""
        return [
            (self.name, tuple(self.get_test_question(index) for index in range(min(count, len(self.examples(TEST))))))
        ]

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return the score of each (question, answer)."""
        return (
            self.batch_scorer(pairs)
            if self.batch_scorer
            else [self.score(question, answer) for question, answer in pairs]
        )

    def _get_shuffled_example(self, purpose: str, index: int, seed: int) -> Example:
        items = self.examples(TRAIN)
        epoch, position = divmod(index, len(items))
        return items[shuffle_indices(len(items), self.name, purpose, seed, epoch)[position]]


@lru_cache(maxsize=16)
def _read_examples(
    name: str, files: tuple[tuple[Path, int, int], ...], read: Callable[[str, RawRow, str], Example]
) -> tuple[Example, ...]:
    found = tuple(read(name, row, where) for path, *_ in files for row, where in read_rows(path))
    if not found:
        raise UserError(f"{name}: {files[0][0]} holds no row; it was cut off, fetch or copy it again")
    return found


def read_text_column(row: RawRow, column: str, where: str) -> str:
    """Return the text in a column. Raises UserError naming the place, the column and those there are."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        got = "is empty" if isinstance(value, str) else f"is {type(value).__name__}" if column in row else "is missing"
        there = ", ".join(map(str, row)) or "none"
        raise UserError(f'{where}: column "{column}" {got}, expected text; the row has {there}')
    return value
