"""HumanEval (arXiv 2107.03374): 164 functions to write, scored by running their tests in the sandbox.

An answer becomes a program by the first of three rules that applies. Only the code of a fenced block counts. Code that
defines the requested function replaces it, after the prompt's imports and helpers. Any other text continues the prompt.

`fledgling.sandbox` runs the program and reports whether the tests passed in a way that the program cannot forge. There
is no training split: the set is for evaluation only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fledgling.tasks.dataset import TEST, DatasetTask, Example, RawRow, SplitFiles, read_text_column
from fledgling.tasks.task import Question

if TYPE_CHECKING:
    from fledgling.sandbox.verdict import Verdict

CODE_FENCE = re.compile(r"```[A-Za-z0-9]*[ \t]*\r?\n(.*?)(?:\r?\n[ \t]*```|\Z)", re.DOTALL)


def build_program(question: Question, answer: str) -> str:
    """Returns the program of an answer: the prompt's beginning and the code, or the prompt continued."""
    fenced = CODE_FENCE.search(answer)
    code = fenced.group(1) if fenced else answer
    prompt, function = question.prompt, re.escape(question.facts["entry_point"])
    if not re.search(rf"^(?:async )?def {function}\b", code, re.MULTILINE):
        return f"{prompt}{code}\n"
    definition = re.search(rf"^def {function}\b", prompt, re.MULTILINE)
    return f"{prompt[: definition.start()] if definition else ''}{code}\n"


def check_answers(pairs: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Returns the verdict on each (question, answer), with the seed that its tests drew from."""
    from fledgling.sandbox.verdict import ProgramCheck, check_programs

    return check_programs(
        ProgramCheck(build_program(q, answer), q.facts["test"], q.facts["entry_point"], q.prompt) for q, answer in pairs
    )


def score_programs(pairs: Sequence[tuple[Question, str]]) -> list[float]:
    """Returns 1.0 for each (question, answer) whose program passes its tests, else 0.0."""
    return [float(verdict.passed) for verdict in check_answers(pairs)]


def score_program(question: Question, answer: str) -> float:
    """Returns 1.0 when the answer's program passes the question's tests, else 0.0."""
    return score_programs([(question, answer)])[0]


def parse_row(name: str, row: RawRow, location: str) -> Example:
    """Returns the example in a row {"task_id", "prompt", "canonical_solution", "test", "entry_point"}."""
    prompt = read_text_column(row, "prompt", location)
    solution = read_text_column(row, "canonical_solution", location)
    facts = {key: read_text_column(row, key, location) for key in ("task_id", "test", "entry_point")}
    return Example(Question(name, prompt, solution, facts), f"```python\n{prompt}{solution}```", prompt + solution)


def make_task(name: str, root: Path) -> DatasetTask:
    """Returns the task."""
    patterns = {TEST: ("evals/humaneval/HumanEval.jsonl.gz", "humaneval/openai_humaneval/test-*.parquet")}
    split_files = SplitFiles(name, root, patterns)
    return DatasetTask(name, split_files, parse_row, score_program, score_programs, max_new_tokens=384)
