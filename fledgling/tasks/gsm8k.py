"""GSM8K: word problems of grade school (arXiv 2110.14168), worked out in steps with a calculator.

The one idea: the solutions mark every calculation, `48/2 = <<48/2=24>>24`. A mark becomes what the model
does in its place: it writes the expression to the tool, and the tool answers; the text around it stays. The
answer is the number behind `####`.

The tool's answer is written as the calculator would print it (`<<30-18=12.00>>` gives 12), because that is
what the model will read. A rounded result (`<<100/3=33.3>>`) is kept as the solution has it: what follows was
reckoned with it.

What it is not: it does not calculate.
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
    """Return a solution as the parts of an assistant's message: text, python, output, text, ..."""
    made, place = [], 0
    for mark in CALCULATION.finditer(solution):
        expression, result = mark.groups()
        if mark.start() > place:
            made.append({"type": "text", "text": solution[place : mark.start()]})
        made.append({"type": "python", "text": expression.strip()})
        made.append({"type": "output", "text": normalize_number(result.strip())})
        place = mark.end()
    return [*made, {"type": "text", "text": solution[place:]}]


def normalize_number(number: str) -> str:
    """Return a number without commas and needless zeros, as the calculator prints it; other text as it is."""
    try:
        value = Decimal(number.replace(",", ""))
    except InvalidOperation:
        return number
    return f"{value.normalize():f}" if value.is_finite() and value else number if not value.is_finite() else "0"


def extract_final_answer(text: str) -> str | None:
    """Return the number behind the first `####`, as `plain` writes it; None where there is none."""
    found = FINAL_ANSWER.search(text)
    return normalize_number(found.group(1)) if found else None


def score_final_answer(question: Question, answer: str) -> float:
    """Return 1.0 when the number behind the answer's first `####` is the reference's.

    Numbers are compared by value, so that 18.00 and 18, or 70,000 and 70000, are the same.
    """
    return float(extract_final_answer(answer) == question.answer)


def parse_row(name: str, row: RawRow, where: str) -> Example:
    """Return a row {"question", "answer"} as an item. Raises UserError for a solution without a final number."""
    question, solution = read_text_column(row, "question", where), read_text_column(row, "answer", where)
    answer = extract_final_answer(solution)
    if answer is None:
        raise UserError(f'{where}: "answer" has no final number; expected a solution that ends with #### NUMBER')
    return Example(
        Question(name, question, answer), split_solution(solution), f"{question}\n{CALCULATION.sub('', solution)}"
    )


def make_task(name: str, root: Path) -> DatasetTask:
    """Return the task: train and test as published (7,473 and 1,319 problems)."""
    patterns = {split: (f"evals/gsm8k/{split}.jsonl", f"gsm8k/main/{split}-*.parquet") for split in (TRAIN, TEST)}
    return DatasetTask(name, SplitFiles(name, root, patterns), parse_row, score_final_answer, max_new_tokens=384)
