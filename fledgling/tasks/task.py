"""The interface of a task: questions, each a pure function of (seed, index), and an exact way to score an answer.

`ConversationSource` is what supervised training reads; `Task` adds prompts for reinforcement learning, exams and
scores. `GeneratedTask` (here) draws its questions from a generator; `DatasetTask` (dataset.py) reads them from files.
Nothing here knows a tokenizer, a model or a loss.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

TRAIN, PRACTICE, UNSEEN = "train", "practice", "unseen"  # three disjoint sets of prompt templates
HOLDOUT_MODULUS = 10  # one word or number pair in this many appears in evaluations only


@dataclass(frozen=True)
class Question:
    """One question: the prompt, the expected answer, and the facts that it is made of.

    `facts["wording"]` is the template; the other keys depend on the task (`word`, `letter`, `a`, `b`, `kind`,
    `subject`, ...). `choices` are the letters that the prompt offers; without them the answer is free text.
    """

    task: str
    prompt: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """The expected score of a random answer: 1 / choices, and 0 for free text."""
        return 1 / len(self.choices) if self.choices else 0.0


class ConversationSource(Protocol):
    """Conversations by index, for supervised training. Every method is a pure function of its arguments."""

    @property
    def name(self) -> str:
        """The name in a mixture."""

    def __len__(self) -> int:
        """Returns the rows of one epoch; 0 for an endless generator."""

    def files(self) -> list[Path]:
        """Returns the files that training reads. Raises UserError where one is missing, with how to get it."""

    def get_train_example(self, index: int, seed: int) -> dict:
        """Returns a conversation for supervised training; each row comes once an epoch."""


class Task(ConversationSource, Protocol):
    """A source that can also be practised and evaluated. Every method is a pure function of its arguments."""

    @property
    def max_new_tokens(self) -> int:
        """The tokens that an answer may take."""

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Returns a prompt for reinforcement learning, never one of an exam."""

    def list_exam_questions(self, count: int, include_practice: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Returns the exams, each a name and at most `count` held-out questions.

        `include_practice` adds an exam in the templates of reinforcement learning, where those are separate.
        """

    def score(self, question: Question, answer: str) -> float:
        """Returns 1.0 when `answer`, the visible text of a reply, is right, else 0.0."""

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Returns `score` of each (question, answer), possibly faster than one by one."""


def score_answers(questions: Sequence[tuple[Task, Question]], answers: Sequence[str]) -> list[float]:
    """Returns the score in [0, 1] of each answer. All answers to one task are scored in one call.

    Evaluations and the rewards of reinforcement learning both score with this function.
    """
    scores = [0.0] * len(questions)
    for task in {id(task): task for task, _ in questions}.values():
        indices = [i for i, (owner, _) in enumerate(questions) if owner is task]
        task_scores = task.score_batch([(questions[i][1], answers[i]) for i in indices])
        for i, score in zip(indices, task_scores, strict=True):
            scores[i] = float(score)
    return scores


@dataclass(frozen=True)
class GeneratedTask:
    """A task whose questions are drawn by a generator.

    Args:
        sample_question: (rng, template set, held_out) -> Question. The template set is TRAIN, PRACTICE or UNSEEN;
            `held_out` selects the words or numbers that training never sees.
        write_reply: question -> the content of the reference reply: text, or parts when a tool is called.
        score: (question, answer) -> 1.0 or 0.0.
        has_holdout: whether words or numbers are held out from training. If not, an exam differs by its templates.
    """

    name: str
    sample_question: Callable[[random.Random, str, bool], Question]
    write_reply: Callable[[Question], str | list[dict]]
    score: Callable[[Question, str], float]
    has_holdout: bool = True
    max_new_tokens: int = 96

    def __len__(self) -> int:
        """Returns 0: the examples are endless."""
        return 0

    def files(self) -> list[Path]:
        """Returns no file."""
        return []

    def get_train_example(self, index: int, seed: int) -> dict:
        """Returns conversation `index` of `seed`: training templates, no held-out word or number."""
        return self.to_conversation(self.sample_question(make_rng(self.name, TRAIN, seed, index), TRAIN, False))

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Returns practice prompt `index` of `seed`: practice templates, no held-out word or number."""
        return self.sample_question(make_rng(self.name, PRACTICE, seed, index), PRACTICE, False)

    def get_eval_question(self, index: int, templates: str) -> Question:
        """Returns evaluation question `index`: held-out words or numbers in TRAIN, PRACTICE or UNSEEN templates."""
        return self.sample_question(make_rng(self.name, "question", templates, index), templates, True)

    def list_exam_questions(self, count: int, include_practice: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Returns held-out words or numbers in training templates and, as NAME_unseen, in new templates.

        Where nothing is held out from training there is one exam, NAME, in new templates. `include_practice` adds
        NAME_practised, in the templates of reinforcement learning, which no demonstration uses.
        """
        exams = [(self.name, TRAIN), (f"{self.name}_unseen", UNSEEN)] if self.has_holdout else [(self.name, UNSEEN)]
        if include_practice:
            exams.append((f"{self.name}_practised", PRACTICE))
        return [
            (name, tuple(self.get_eval_question(index, templates) for index in range(count)))
            for name, templates in exams
        ]

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Returns the score of each (question, answer)."""
        return [self.score(question, answer) for question, answer in pairs]

    def to_conversation(self, question: Question) -> dict:
        """Returns `question` with its reference reply, as a conversation."""
        return make_conversation(question.prompt, self.write_reply(question))


def make_conversation(prompt: str, reply: str | list[dict]) -> dict:
    """Returns one exchange: the user's prompt and the assistant's reply, a text or parts."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}


@lru_cache(maxsize=32)
def shuffle_indices(count: int, *key: object) -> tuple[int, ...]:
    """Returns 0 to count - 1 shuffled, a pure function of (count, key)."""
    indices = list(range(count))
    make_rng(*key).shuffle(indices)
    return tuple(indices)


def make_rng(*key: object) -> random.Random:
    """Returns a random generator that is a pure function of `key`: the same on every machine."""
    return random.Random(":".join(map(str, key)))


def is_held_out(*key: object) -> bool:
    """Returns whether `key` is for evaluation only: a stable hash, the same in every process and Python."""
    digest = blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HOLDOUT_MODULUS == 0


def normalize_text(text: str) -> str:
    """Returns `text` without case, repeated spaces, quotes and closing punctuation."""
    unquoted = "".join(character for character in text.casefold() if character not in "\"'`*")
    return " ".join(unquoted.split()).strip(" .,!?;:")


def score_exact_match(question: Question, answer: str) -> float:
    """Returns 1.0 when answer and reference are equal after `normalize_text`, else 0.0."""
    return float(normalize_text(answer) == normalize_text(question.answer))


def find_constant_baseline(questions: Sequence[Question]) -> tuple[str, float]:
    """Returns the constant answer that is right most often, and the share of `questions` that it gets right.

    A task's accuracy carries information only above this share. No questions: `("", 0.0)`.
    """
    if not questions:
        return "", 0.0
    answer, count = Counter(question.answer for question in questions).most_common(1)[0]
    return answer, count / len(questions)
