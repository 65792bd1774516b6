"""HumanEval (arXiv 2107.03374): 164 functions to write, judged by running their tests in the sandbox.

The one idea: what a model says becomes a program by three rules, each looked at in this order. A fenced block
is the code, the prose around it is not. Code that defines the asked function stands for itself, below the
prompt's own beginning (its imports and helpers). Anything else goes on where the prompt stops.

What it is not: it runs nothing. `fledgling.sandbox` does, and says whether the tests passed in a way that
the program cannot forge. There is no training split: the set is for evaluation only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fledgling.tasks.dataset import TEST, DatasetTask, Example, RawRow, SplitFiles, read_text_column
from fledgling.tasks.task import Question

CODE_FENCE = re.compile(r"```[A-Za-z0-9]*[ \t]*\r?\n(.*?)(?:\r?\n[ \t]*```|\Z)", re.DOTALL)


def build_program(question: Question, answer: str) -> str:
    """Return the program that an answer means: the prompt's beginning and the code, or the prompt gone on with."""
    fenced = CODE_FENCE.search(answer)
    code = fenced.group(1) if fenced else answer
    head, tail = question.prompt, question.facts["entry_point"]
    defines = re.search(rf"^(?:async )?def {re.escape(tail)}\b", code, re.MULTILINE)
    if not defines:
        return f"{head}{code}\n"
    before = re.search(rf"^def {re.escape(tail)}\b", head, re.MULTILINE)
    return f"{head[: before.start()] if before else ''}{code}\n"


def score_programs(pairs: Sequence[tuple[Question, str]]) -> list[float]:
    """Return 1.0 for each (question, answer) whose program passes its tests, else 0.0."""
    from fledgling.sandbox.verdict import ProgramCheck, check_programs

    checks = [
        ProgramCheck(build_program(q, answer), q.facts["test"], q.facts["entry_point"], q.prompt) for q, answer in pairs
    ]
    return [float(verdict.passed) for verdict in check_programs(checks)]


def score_program(question: Question, answer: str) -> float:
    """Return 1.0 when the answer's program passes the question's tests, else 0.0."""
    return score_programs([(question, answer)])[0]


def parse_row(name: str, row: RawRow, where: str) -> Example:
    """Return a row {"task_id", "prompt", "canonical_solution", "test", "entry_point"} as an item."""
    prompt = read_text_column(row, "prompt", where)
    solution = read_text_column(row, "canonical_solution", where)
    facts = {key: read_text_column(row, key, where) for key in ("task_id", "test", "entry_point")}
    return Example(Question(name, prompt, solution, facts), f"```python\n{prompt}{solution}```", prompt + solution)


def make_task(name: str, root: Path) -> DatasetTask:
    """Return the task."""
    patterns = {TEST: ("evals/humaneval/HumanEval.jsonl.gz", "humaneval/openai_humaneval/test-*.parquet")}
    return DatasetTask(
        name,
        SplitFiles(name, root, patterns),
        parse_row,
        score_program,
        batch_scorer=score_programs,
        max_new_tokens=384,
    )
