"""Chat tasks: questions answered by the engine, scored by their task, all tasks in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fledgling.evals.measurement import Measurement, wilson
from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.infer.stream import final_text
from fledgling.tasks import get
from fledgling.tasks.task import Question, constant_baseline
from fledgling.text.conversation import render_prompt

UNSEEN_ALWAYS = ("stdlib", "identity")  # their facts are those of training; only new wordings make a test


@dataclass(frozen=True)
class Exam:
    """A named list of questions of one task."""

    name: str
    questions: tuple[Question, ...]


def exams(tasks: Sequence[str], count: int, practised: Sequence[str] = ()) -> list[Exam]:
    """The project's exams: held-out words and numbers in known wordings, and `_unseen` in new wordings.

    For the tasks in `practised` also `_practised`: held-out words and numbers in the wordings that RL's prompts use and
    no demonstration does.
    """
    made = []
    for name in tasks:
        task = get(name)
        if name not in UNSEEN_ALWAYS:
            made.append(Exam(name, tuple(task.question(i, unseen=False) for i in range(count))))
        label = name if name in UNSEEN_ALWAYS else f"{name}_unseen"
        made.append(Exam(label, tuple(task.question(i, unseen=True) for i in range(count))))
        if name in practised:
            made.append(Exam(f"{name}_practised", tuple(task.practised(i) for i in range(count))))
    return made


def take(
    engine: Engine,
    papers: Sequence[Exam],
    max_tokens: int = 96,
    log: Callable[[Question, str, float], None] | None = None,
) -> list[Measurement]:
    """Greedy answers to all questions of all exams, and for each exam its accuracy with a Wilson interval.

    log(question, answer, score) sees every answer.
    """
    questions = [q for exam in papers for q in exam.questions]
    prompts = [prompt_ids(engine.tokenizer, q) for q in questions]
    completions = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=max_tokens))
    answers = iter(zip(questions, completions, strict=True))
    measured = []
    for exam in papers:
        right = 0.0
        for _ in exam.questions:
            question, completion = next(answers)
            text = final_text(engine.tokenizer, completion.tokens)
            score = get(question.task).score(question, text)
            right += score
            if log:
                log(question, text, score)
        n = len(exam.questions)
        low, high = wilson(right, n)
        measured.append(Measurement(exam.name, right / n, low, high, n, constant_baseline(exam.questions)[1]))
    return measured


def prompt_ids(tokenizer, question: Question) -> list[int]:
    """The question as a user's turn, ending where the assistant begins."""
    return render_prompt(tokenizer, {"messages": [{"role": "user", "content": question.prompt}]})
