"""Multiple choice: ARC-Easy, ARC-Challenge, MMLU, and a file of the user's own; a letter is the answer.

The one idea: the letters stand in the prompt exactly as the model is to say them, right behind their choice
and without a space, so that they are the very token of the reply ("A" and " A" are two tokens). Prompt layout
and splits are those of nanochat's chat evaluation (October 2025), so that scores can be compared with its.

ARC: arXiv 1803.05457; train, validation and test as published. MMLU: arXiv 2009.03300; 57 subjects, exams
from its test split, training from its auxiliary training set (99,842 questions of other exams). A row is
{"question", "choices": [text, ...], "answer": index} or the hub's spelling of the same, {"choices": {"text",
"label"}, "answerKey"}; MMLU's auxiliary rows come wrapped as {"train": row}.

What it is not: no few-shot scoring by likelihood; that is `fledgling eval core`.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_uppercase

from fledgling.config import UserError
from fledgling.tasks.dataset import TEST, DatasetTask, Example, RawRow, SplitFiles, read_text_column
from fledgling.tasks.task import TRAIN, Question, normalize_text

EXPECTED = '{"question": "...", "choices": ["...", "..."], "answer": 0}'


def format_prompt(question: str, choices: list[str]) -> str:
    """Return the question with its choices and their letters."""
    listed = "".join(f"- {choice}={letter}\n" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return f"Multiple Choice question: {question}\n{listed}\nRespond only with the letter of the correct answer."


def parse_row(name: str, row: RawRow, where: str) -> Example:
    """Return a row as an item. Raises UserError for a row that is no multiple-choice question."""
    row = row["train"] if isinstance(row.get("train"), dict) else row
    question = read_text_column(row, "question", where)
    choices, labels = _read_choices(row, where)
    index = _read_answer_index(row, labels, where)
    letters = tuple(ascii_uppercase[: len(choices)])
    facts = {"choice": choices[index], **({"subject": row["subject"]} if row.get("subject") else {})}
    asked = Question(name, format_prompt(question, choices), letters[index], facts, letters)
    return Example(asked, letters[index], "\n".join([question, *choices]))


def _read_choices(row: RawRow, where: str) -> tuple[list[str], list[str]]:
    """Return the choices' texts, and the labels by which the row calls them."""
    value = row.get("choices")
    texts = value.get("text") if isinstance(value, dict) else value
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(ascii_uppercase):
        there = ", ".join(map(str, row)) or "none"
        raise UserError(f'{where}: column "choices" holds no list of 2 to 26 choices ({there}); expected {EXPECTED}')
    labels = value.get("label") if isinstance(value, dict) else None
    return [str(text) for text in texts], list(map(str, labels or ascii_uppercase[: len(texts)]))


def _read_answer_index(row: RawRow, labels: list[str], where: str) -> int:
    """Return which choice is right: "answer", an index or a label, or "answerKey", a label."""
    value = row.get("answer", row.get("answerKey"))
    if isinstance(value, str) and value in labels:
        return labels.index(value)
    if type(value) is int and 0 <= value < len(labels):
        return value
    known = ", ".join(labels)
    raise UserError(f'{where}: "answer" is {value!r}; expected 0 to {len(labels) - 1}, or one of {known}')


def score_letter(question: Question, answer: str) -> float:
    """Return 1.0 when the answer is the right letter and nothing else but closing punctuation."""
    return float(normalize_text(answer).strip("()") == question.answer.casefold())


def make_arc_task(name: str, root: Path) -> DatasetTask:
    """Return ARC-Easy or ARC-Challenge, by the task's name."""
    hub = {TRAIN: "train", TEST: TEST}
    patterns = {split: (f"evals/arc/{name}_{split}.jsonl", f"{name}/*/{word}-*.parquet") for split, word in hub.items()}
    return DatasetTask(name, SplitFiles(name, root, patterns), parse_row, score_letter, max_new_tokens=8)


def make_mmlu_task(name: str, root: Path) -> DatasetTask:
    """Return MMLU: exams from its 57 subjects, training from the auxiliary set."""
    patterns = {
        TRAIN: (
            "evals/mmlu/mmlu_auxiliary_train.jsonl",
            "mmlu/all/auxiliary_train-*.parquet",
        ),
        TEST: ("evals/mmlu/mmlu_test.jsonl", "mmlu/all/test-*.parquet"),
    }
    return DatasetTask(name, SplitFiles(name, root, patterns), parse_row, score_letter, max_new_tokens=8)
