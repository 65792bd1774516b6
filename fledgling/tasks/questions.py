"""A user's own questions with answers: a file to evaluate on, to practise on, or to learn from.

A row is a question and its answer; with `choices` the answer is one of them, by letter, as in the public sets. One file
is one split: the user decides which file is for training and which for an exam.

    {"question": "...", "answer": "..."}                         free text, compared without case and spacing
    {"question": "...", "choices": ["...", "..."], "answer": 0}  a letter

Tables and numbers are read as those of conversations are (docs/forms.md).
Conversations without a right answer are `chat:PATH` (conversations.py).
"""

from __future__ import annotations

from pathlib import Path

from fledgling.files import ROW_FILES, require_file
from fledgling.files.columns import fold_name
from fledgling.tasks import multiple_choice
from fledgling.tasks.dataset import TEST, DatasetTask, Example, RawRow, SplitFiles, read_text_column
from fledgling.tasks.task import TRAIN, Question, score_exact_match
from fledgling.text.cell_values import parse_list, read_scalar
from fledgling.text.form_columns import is_blank

COLUMNS = ("question", "answer", "choices")


def parse_row(name: str, row: RawRow, location: str) -> Example:
    """Returns the example in a row. Raises UserError with its location for one without a question or an answer."""
    row = _read_cells(row)
    if "choices" in row:
        return multiple_choice.parse_row(name, row, location)
    question, answer = read_text_column(row, "question", location), read_text_column(row, "answer", location)
    return Example(Question(name, question, answer), answer, f"{question}\n{answer}")


def _read_cells(row: RawRow) -> RawRow:
    """Returns a row with its columns in lower case, numbers as texts, and choices as the list that a text is."""
    names = {name: fold_name(name) for name in row}
    row = {folded if folded in COLUMNS and folded not in row else name: row[name] for name, folded in names.items()}
    if is_blank(row.get("choices")):
        row = {name: value for name, value in row.items() if name != "choices"}
    if "choices" not in row:
        return {name: read_scalar(value) for name, value in row.items()}
    choices, answer = parse_list(row["choices"]), row.get("answer")
    is_index = choices is not row["choices"] and isinstance(answer, str) and answer.isdecimal()  # of a table
    return {**row, "choices": choices, **({"answer": int(answer)} if is_index and answer else {})}


def score_answer(question: Question, answer: str) -> float:
    """Returns 1.0 for the right letter, or for the same text, else 0.0."""
    return multiple_choice.score_letter(question, answer) if question.choices else score_exact_match(question, answer)


def load_questions(path: Path, name: str) -> DatasetTask:
    """Returns the task in a file, whose rows are both of its splits. Raises UserError for no file or a bad row."""
    require_file(path, f"{ROW_FILES} of questions with answers")
    split_files = SplitFiles(name, path.parent, {TRAIN: (path.name,), TEST: (path.name,)})
    task = DatasetTask(name, split_files, parse_row, score_answer, is_users=True)
    task.examples(TEST)
    return task
