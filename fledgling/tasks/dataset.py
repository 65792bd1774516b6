"""Tasks from files: a training split to learn and practise from, a test split for exams.

Training example i of a seed is row (i mod N) of the permutation keyed by (seed, i div N), so that every row comes once
an epoch, in an order that any process can recompute. The test split has one fixed order, so that a smaller exam is the
beginning of a larger one. Training never reads the test split, and an exam never reads the training split.

`multiple_choice.py`, `gsm8k.py` and `humaneval.py` define where the files of a set are and how a row is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.files import FileStamps, read_rows, stat_files
from fledgling.tasks.task import PRACTICE, TEST, TRAIN, Question, label_source, make_conversation, shuffle_indices

RawRow = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A parsed row: its question, the reference reply (a text or parts), and its text.

    `source_text` is the row's own text without the prompt's additions: what must not occur in training text.
    """

    question: Question
    reply: str | list[dict]
    source_text: str


@dataclass(frozen=True)
class SplitFiles:
    """The files of a set's splits under the data root: glob patterns by split, of which the first match counts."""

    name: str
    root: Path
    patterns: Mapping[str, tuple[str, ...]]

    def find_files(self, split: str) -> list[Path]:
        """Returns the split's files, sorted.

        Raises UserError for missing files, with the patterns and how to get them, and for the training split of a set
        that has none.
        """
        if split not in self.patterns:
            raise UserError(f"{self.name} has no {split} split; it is for evaluation only: take it out of the mixture")
        for pattern in self.patterns[split]:
            if paths := sorted(self.root.glob(pattern)):
                return paths
        patterns = " or ".join(self.patterns[split])
        raise UserError(
            f"{self.name}: no {split} split under {self.root} (looked for {patterns}); "
            f"get it with `fledgling data fetch {self.name}`, or point --data-dir or FLEDGLING_DATA at it"
        )


@dataclass(frozen=True)
class DatasetTask:
    """A task of finite splits.

    Args:
        split_files: the files of the splits.
        parse_row: (task name, row, "FILE:LINE") -> Example; raises UserError for a row that it cannot parse.
        score: (question, answer) -> 1.0 or 0.0.
        batch_scorer: the same for many pairs at once, where that is faster.
        max_new_tokens: of an answer.
        is_users: whether the files are a user's own, whose scores are labelled with a digest of them.
    """

    name: str
    split_files: SplitFiles
    parse_row: Callable[[str, RawRow, str], Example]
    score: Callable[[Question, str], float]
    batch_scorer: Callable[[Sequence[tuple[Question, str]]], list[float]] | None = None
    max_new_tokens: int = 96
    is_users: bool = False

    def __len__(self) -> int:
        """Returns the number of rows of the training split."""
        return len(self.examples(TRAIN))

    def files(self) -> list[Path]:
        """Returns the files of the training split."""
        return self.split_files.find_files(TRAIN)

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns all rows of the training split, or for any other name of the test split, in file order.

        Raises UserError for a bad row, with its file and line.
        """
        return self._train_examples if split == TRAIN else self._test_examples

    @cached_property
    def _train_examples(self) -> tuple[Example, ...]:
        return _read_examples(self.name, stat_files(self.split_files.find_files(TRAIN)), self.parse_row)

    @cached_property
    def _test_examples(self) -> tuple[Example, ...]:
        return _read_examples(self.name, stat_files(self.split_files.find_files(TEST)), self.parse_row)

    def get_train_conversation(self, index: int, seed: int) -> dict:
        """Returns conversation `index` of `seed`, from the training split."""
        example = self._get_shuffled_example(TRAIN, index, seed)
        return make_conversation(example.question.prompt, example.reply)

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Returns practice prompt `index` of `seed`, from the training split in another order."""
        return self._get_shuffled_example(PRACTICE, index, seed).question

    def get_test_question(self, index: int) -> Question:
        """Returns question `index` of the test split, whose shuffled order is fixed."""
        examples = self.examples(TEST)
        return examples[shuffle_indices(len(examples), self.name, TEST)[index]].question

    def list_exams(self, counts: Mapping[str, int]) -> list[tuple[str, tuple[Question, ...]]]:
        """Returns one exam: the first questions of the test split, as many as the largest of `counts`, at most all.

        Practice has no exam: its questions are those of training.
        """
        count = max((count for wordings, count in counts.items() if wordings != PRACTICE), default=0)
        count = min(count, len(self.examples(TEST))) if count else 0
        label = label_source(self.name, self.split_files.find_files(TEST)) if self.is_users else self.name
        return [(label, tuple(self.get_test_question(index) for index in range(count)))] if count else []

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Returns the score of each (question, answer)."""
        if self.batch_scorer:
            return self.batch_scorer(pairs)
        return [self.score(question, answer) for question, answer in pairs]

    def _get_shuffled_example(self, purpose: str, index: int, seed: int) -> Example:
        examples = self.examples(TRAIN)
        epoch, position = divmod(index, len(examples))
        return examples[shuffle_indices(len(examples), self.name, purpose, seed, epoch)[position]]


@lru_cache(maxsize=16)
def _read_examples(
    name: str, files: FileStamps, parse_row: Callable[[str, RawRow, str], Example]
) -> tuple[Example, ...]:
    examples = tuple(parse_row(name, row, location) for path, *_ in files for row, location in read_rows(path))
    if not examples:
        raise UserError(f"{name}: {files[0][0]} holds no row; it was cut off, fetch or copy it again")
    return examples


def read_text_column(row: RawRow, column: str, location: str) -> str:
    """Returns the text in a column. Raises UserError with the location, the column and the existing columns."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        got = "is empty" if isinstance(value, str) else f"is {type(value).__name__}" if column in row else "is missing"
        columns = ", ".join(map(str, row)) or "none"
        raise UserError(f'{location}: column "{column}" {got}, expected text; the row has {columns}')
    return value
