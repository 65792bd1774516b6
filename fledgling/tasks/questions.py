"""Questions of the user's own: a file to be examined on, to practise on, or to learn from.

The one idea: a row is a question and its answer; with `choices` the answer is one of them, by letter, as in
the public sets. Which rows are for training and which for an exam is a matter of which file is named where: one file is
one split.

    {"question": "...", "answer": "..."}                       written freely, compared without case and spacing
    {"question": "...", "choices": ["...", "..."], "answer": 0}  a letter

What it is not: conversations without a right answer are `chat:PATH` (conversations.py).
"""

from __future__ import annotations

from pathlib import Path

from fledgling.config import UserError
from fledgling.files import ROW_FILE_SUFFIXES
from fledgling.tasks import multiple_choice
from fledgling.tasks.dataset import TEST, DatasetTask, Example, RawRow, SplitFiles, read_text_column
from fledgling.tasks.task import TRAIN, Question, score_exact_match


def parse_row(name: str, row: RawRow, where: str) -> Example:
    """Return a row as an item. Raises UserError naming its place for one without a question or an answer."""
    if "choices" in row:
        return multiple_choice.parse_row(name, row, where)
    question, answer = read_text_column(row, "question", where), read_text_column(row, "answer", where)
    return Example(Question(name, question, answer), answer, f"{question}\n{answer}")


def score_answer(question: Question, answer: str) -> float:
    """Return 1.0 for the right letter, or for the same text."""
    return multiple_choice.score_letter(question, answer) if question.choices else score_exact_match(question, answer)


def load_questions(path: Path, name: str) -> DatasetTask:
    """Return the task in a file, whose rows are both its splits. Raises UserError for no file or a bad row."""
    if not path.is_file():
        raise UserError(
            f"cannot read {path}: no such file; expected {' or '.join(ROW_FILE_SUFFIXES)} of questions with answers"
        )
    task = DatasetTask(
        name, SplitFiles(name, path.parent, {TRAIN: (path.name,), TEST: (path.name,)}), parse_row, score_answer
    )
    task.examples(TEST)
    return task
