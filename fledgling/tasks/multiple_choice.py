"""Multiple choice: ARC-Easy, ARC-Challenge, MMLU, and a user's own file; the answer is a letter.

The prompt shows each letter right after its choice and without a space, so that it is the exact token of the reply
("A" and " A" are two tokens). Prompt layout and splits are those of nanochat's chat evaluation (October 2025), so that
scores are comparable.

ARC: arXiv 1803.05457; train, validation and test as published. MMLU: arXiv 2009.03300; 57 subjects, exams from its test
split, training from its auxiliary training set (99,842 questions of other exams). A row is {"question", "choices":
[text, ...], "answer": index} or the hub's form, {"choices": {"text", "label"}, "answerKey"}; MMLU's auxiliary rows are
wrapped as {"train": row}.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from string import ascii_uppercase

from fledgling.config import UserError
from fledgling.tasks.dataset import TEST, DatasetTask, Example, RawRow, SplitFiles, read_text_column
from fledgling.tasks.task import TRAIN, Question, normalize_text

MIN_PASSAGE_CHARACTERS = 100  # of the lines before the last: a text that several questions may be about
EXPECTED = '{"question": "...", "choices": ["...", "..."], "answer": 0}'


def format_prompt(question: str, choices: list[str]) -> str:
    """Returns the question with its choices and their letters."""
    listed = "".join(f"- {choice}={letter}\n" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."


def parse_row(name: str, row: RawRow, location: str) -> Example:
    """Returns the example in a row. Raises UserError for a row that is no multiple-choice question."""
    row = row["train"] if isinstance(row.get("train"), dict) else row
    text = read_text_column(row, "question", location)
    choices, labels = _read_choices(row, location)
    index = _read_answer_index(row, labels, location)
    letters = tuple(ascii_uppercase[: len(choices)])
    facts = {"choice": choices[index], **({"subject": row["subject"]} if row.get("subject") else {})}
    passage = text.rstrip().rpartition("\n")[0].strip()
    if len(passage) >= MIN_PASSAGE_CHARACTERS:
        facts["passage"] = blake2b(passage.encode(), digest_size=8).hexdigest()
    question = Question(name, format_prompt(text, choices), letters[index], facts, letters)
    return Example(question, letters[index], "\n".join([text, *choices]))


def _read_choices(row: RawRow, location: str) -> tuple[list[str], list[str]]:
    """Returns the texts of the choices, and their labels in the row."""
    value = row.get("choices")
    texts = value.get("text") if isinstance(value, dict) else value
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(ascii_uppercase):
        columns = ", ".join(map(str, row)) or "none"
        raise UserError(
            f'{location}: column "choices" holds no list of 2 to 26 choices ({columns}); expected {EXPECTED}'
        )
    labels = value.get("label") if isinstance(value, dict) else None
    return [str(text) for text in texts], list(map(str, labels or ascii_uppercase[: len(texts)]))


def _read_answer_index(row: RawRow, labels: list[str], location: str) -> int:
    """Returns the index of the right choice: "answer", an index or a label, or "answerKey", a label."""
    value = row.get("answer", row.get("answerKey"))
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    if type(value) is int and 0 <= value < len(labels):
        return value
    expected = ", ".join(labels)
    raise UserError(f'{location}: "answer" is {value!r}; expected 0 to {len(labels) - 1}, or one of {expected}')


def score_letter(question: Question, answer: str) -> float:
    """Returns 1.0 when the answer is the right letter and nothing else but closing punctuation, else 0.0."""
    return float(normalize_text(answer).strip("()") == question.answer.casefold())


def make_arc_task(name: str, root: Path) -> DatasetTask:
    """Returns ARC-Easy or ARC-Challenge, by the task's name."""
    patterns = {split: (f"evals/arc/{name}_{split}.jsonl", f"{name}/*/{split}-*.parquet") for split in (TRAIN, TEST)}
    return DatasetTask(name, SplitFiles(name, root, patterns), parse_row, score_letter, max_new_tokens=8)


def make_mmlu_task(name: str, root: Path) -> DatasetTask:
    """Returns MMLU: exams from its 57 subjects, training from the auxiliary set."""
    patterns = {
        TRAIN: ("evals/mmlu/mmlu_auxiliary_train.jsonl", "mmlu/all/auxiliary_train-*.parquet"),
        TEST: ("evals/mmlu/mmlu_test.jsonl", "mmlu/all/test-*.parquet"),
    }
    return DatasetTask(name, SplitFiles(name, root, patterns), parse_row, score_letter, max_new_tokens=8)
