"""GSM8K: grade school word problems (arXiv 2110.14168), solved in steps with a calculator.

The solutions mark every calculation, `48/2 = <<48/2=24>>24`. Each mark becomes a tool call: the model writes the
expression, and the tool returns the result; the text around it stays. The answer is the number after `####`.

The result is written as the calculator prints it (`<<30-18=12.00>>` gives 12), because that is what the model will
read. A rounded result (`<<100/3=33.3>>`) stays as it is in the solution, since the following steps use it.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

from fledgling.config import UserError
from fledgling.tasks.dataset import TEST, DatasetTask, Example, RawRow, SplitFiles, read_text_column
from fledgling.tasks.task import TRAIN, Question

CALCULATION = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
FINAL_ANSWER = re.compile(r"#### *(-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+)")


def split_solution(solution: str) -> list[dict]:
    """Returns a solution as the parts of an assistant's message: text, python, output, text, ..."""
    parts, position = [], 0
    for mark in CALCULATION.finditer(solution):
        expression, result = mark.groups()
        if mark.start() > position:
            parts.append({"type": "text", "text": solution[position : mark.start()]})
        parts.append({"type": "python", "text": expression.strip()})
        parts.append({"type": "output", "text": normalize_number(result.strip())})
        position = mark.end()
    return [*parts, {"type": "text", "text": solution[position:]}]


def normalize_number(number: str) -> str:
    """Returns a number without commas and redundant zeros, as the calculator prints it; other text unchanged."""
    try:
        value = Decimal(number.replace(",", ""))
    except InvalidOperation:
        return number
    if not value.is_finite():
        return number
    return f"{value.normalize():f}" if value else "0"


def extract_final_answer(text: str) -> str | None:
    """Returns the number after the first `####`, as `normalize_number` writes it; None where there is none."""
    match = FINAL_ANSWER.search(text)
    return normalize_number(match.group(1)) if match else None


def score_final_answer(question: Question, answer: str) -> float:
    """Returns 1.0 when the number after the answer's first `####` equals the reference, else 0.0.

    Numbers are compared by value, so that 18.00 equals 18, and 70,000 equals 70000.
    """
    return float(extract_final_answer(answer) == question.answer)


def parse_row(name: str, row: RawRow, location: str) -> Example:
    """Returns the example in a row {"question", "answer"}. Raises UserError for a solution without a final number."""
    question, solution = read_text_column(row, "question", location), read_text_column(row, "answer", location)
    answer = extract_final_answer(solution)
    if answer is None:
        raise UserError(f'{location}: "answer" has no final number; expected a solution that ends with #### NUMBER')
    source_text = f"{question}\n{CALCULATION.sub('', solution)}"
    return Example(Question(name, question, answer), split_solution(solution), source_text)


def make_task(name: str, root: Path) -> DatasetTask:
    """Returns the task: train and test as published (7,473 and 1,319 problems)."""
    patterns = {split: (f"evals/gsm8k/{split}.jsonl", f"gsm8k/main/{split}-*.parquet") for split in (TRAIN, TEST)}
    return DatasetTask(name, SplitFiles(name, root, patterns), parse_row, score_final_answer, max_new_tokens=384)
