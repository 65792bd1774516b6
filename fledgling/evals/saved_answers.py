"""Saved answers to the questions of an exam: their lines and files, those of older versions too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledgling.evals.chat import Exam, ExamAnswer
from fledgling.record.jsonl import read_jsonl
from fledgling.tasks.task import RIGHT_SCORE


def read_saved_answers(path: Path, key: dict[str, Any], exam: Exam) -> dict[int, ExamAnswer]:
    """Returns the answers that a file holds under the same key, by the index of their question."""
    header, *lines = read_jsonl(path) or [{}]
    if header.get("key") not in (key, _older_key(key)):
        return {}
    answers = {}
    for line in lines:
        index = line.get("index", line.get("place"))  # "place" in older versions
        if type(index) is int and 0 <= index < len(exam.questions):
            answers[index] = ExamAnswer(exam.questions[index], line["answer"], line["score"], line["cropped"])
    return answers


def read_correct_counts(path: Path) -> list[int]:
    """Returns how many of the samples of each question are right, of a file of pass@k; "right" in older versions."""
    return [line["correct"] if "correct" in line else line["right"] for line in read_jsonl(path)]


def answer_to_json(answer: ExamAnswer) -> dict[str, Any]:
    """Returns a question with its answer and score as JSON values."""
    q = answer.question
    facts = {"task": q.task, "prompt": q.prompt, "expected": q.answer, "facts": q.facts, "choices": list(q.choices)}
    return {**facts, "answer": answer.text, "score": answer.score, "cropped": answer.cropped}


def sample_to_json(answers: Sequence[ExamAnswer]) -> dict[str, Any]:
    """Returns all answers to one question, and how many are right: have the full score."""
    return {
        "prompt": answers[0].question.prompt,
        "correct": sum(answer.score >= RIGHT_SCORE for answer in answers),
        "answers": [answer.text for answer in answers],
    }


def _older_key(key: dict[str, Any]) -> dict[str, Any]:
    """Returns the key of an exam as older versions wrote it: "asked" for "questions_digest"."""
    return {"asked" if name == "questions_digest" else name: value for name, value in key.items()}


def find_answers_file(folder: Path, prefix: str, key: dict[str, Any]) -> Path:
    """Returns the file of the answers under a key; that of an older version where there is one."""
    older = folder / f"{prefix}-{_short_hash(_older_key(key))}.jsonl"
    return older if older.exists() else folder / f"{prefix}-{_short_hash(key)}.jsonl"


def _short_hash(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]


def safe_file_name(name: str) -> str:
    """Returns a name of an exam as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
