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
from fledgling.files import KINDS
from fledgling.tasks import multiple_choice
from fledgling.tasks.filed import TEST, Filed, Item, Places, Row, text_of
from fledgling.tasks.task import TRAIN, Question, same_text


def read(name: str, row: Row, where: str) -> Item:
    """Return a row as an item. Raises UserError naming its place for one without a question or an answer."""
    if "choices" in row:
        return multiple_choice.read(name, row, where)
    question, answer = text_of(row, "question", where), text_of(row, "answer", where)
    return Item(Question(name, question, answer), answer, f"{question}\n{answer}")


def score(question: Question, answer: str) -> float:
    """Return 1.0 for the right letter, or for the same text."""
    return multiple_choice.score(question, answer) if question.choices else same_text(question, answer)


def load(path: Path, name: str) -> Filed:
    """Return the task in a file, whose rows are both its splits. Raises UserError for no file or a bad row."""
    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file; expected {' or '.join(KINDS)} of questions with answers")
    task = Filed(name, Places(name, path.parent, {TRAIN: (path.name,), TEST: (path.name,)}), read, score)
    task.items(TEST)
    return task
