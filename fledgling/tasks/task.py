"""What a task is: endless questions, each a pure function of (seed, index), and an exact way to score them.

The one idea: a task is five values. `Generated` holds a way to draw a question, a way to write its reference
reply and a way to score an answer; training, practice and evaluation are the same draw with other wordings
and with the words or numbers that a stable hash keeps apart.

What it is not: it knows no tokenizer, no model and no loss; it imports no torch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

TRAIN, PRACTICE, UNSEEN = "train", "practice", "unseen"  # the three sets of wordings; no two share one
HELD_OUT = 10  # one word or number pair in this many is asked in evaluations only


@dataclass(frozen=True)
class Question:
    """One question: the user's words, the expected answer, and what it was made of.

    `facts["wording"]` is the template; the other keys are the task's own (`word`, `letter`, `a`, `b`,
    `kind`, ...).
    """

    task: str
    prompt: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What training and evaluation need of a task. Every method is a pure function of its arguments."""

    name: str

    def train(self, index: int, seed: int) -> dict:
        """Return a conversation for supervised training."""

    def practice(self, index: int, seed: int) -> Question:
        """Return a prompt for reinforcement learning, in wordings of its own."""

    def question(self, index: int, unseen: bool) -> Question:
        """Return a held-out question; with `unseen`, in a held-out wording too."""

    def practised(self, index: int) -> Question:
        """Return a held-out question in the wordings of practice: what reinforcement learning is to improve."""

    def score(self, question: Question, answer: str) -> float:
        """Return 1.0 when `answer`, the visible text of a reply, is right, else 0.0."""


@dataclass(frozen=True)
class Generated:
    """A task whose questions are drawn by a generator.

    draw   (rng, wordings, held_out) -> Question; `wordings` is TRAIN, PRACTICE or UNSEEN, `held_out` says
           which side of the hash the words or numbers come from.
    reply  question -> the content of the reference reply: a string, or parts when a tool is called.
    score  (question, answer) -> 1.0 or 0.0.
    """

    name: str
    draw: Callable[[random.Random, str, bool], Question]
    reply: Callable[[Question], str | list[dict]]
    score: Callable[[Question, str], float]

    def train(self, index: int, seed: int) -> dict:
        """Return conversation `index` of `seed`: known wordings, no held-out word or number."""
        return self.conversation(self.draw(stream(self.name, TRAIN, seed, index), TRAIN, False))

    def practice(self, index: int, seed: int) -> Question:
        """Return practice prompt `index` of `seed`: practice wordings, no held-out word or number."""
        return self.draw(stream(self.name, PRACTICE, seed, index), PRACTICE, False)

    def question(self, index: int, unseen: bool) -> Question:
        """Return evaluation question `index`: held-out words or numbers, wordings known or `unseen`."""
        wordings = UNSEEN if unseen else TRAIN
        return self.draw(stream(self.name, "question", wordings, index), wordings, True)

    def practised(self, index: int) -> Question:
        """Return question `index` with held-out words or numbers in the wordings of practice."""
        return self.draw(stream(self.name, "question", PRACTICE, index), PRACTICE, True)

    def conversation(self, question: Question) -> dict:
        """Return `question` with its reference reply, as a conversation."""
        return {
            "messages": [
                {"role": "user", "content": question.prompt},
                {"role": "assistant", "content": self.reply(question)},
            ]
        }

    def constant_baseline(self, questions: Sequence[Question]) -> tuple[str, float]:
        """Return what `constant_baseline` returns: the best answer that never looks at the question."""
        return constant_baseline(questions)


def stream(*key: object) -> random.Random:
    """Return a random stream that is a pure function of `key`: same key, same stream, on every machine."""
    return random.Random(":".join(map(str, key)))


def held_out(*key: object) -> bool:
    """Return whether `key` is kept for evaluation: a stable hash, the same in every process and Python."""
    digest = blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def normalise(text: str) -> str:
    """Return `text` without case, spacing, quotes and closing punctuation: what two equal answers share."""
    kept = "".join(character for character in text.casefold() if character not in "\"'`*")
    return " ".join(kept.split()).strip(" .,!?;:")


def same_text(question: Question, answer: str) -> float:
    """Score by equality after `normalise`."""
    return float(normalise(answer) == normalise(question.answer))


def constant_baseline(questions: Sequence[Question]) -> tuple[str, float]:
    """Return the constant answer that is right most often, and the share of `questions` it gets right.

    A task's accuracy says something only above this share. No questions: `("", 0.0)`.
    """
    if not questions:
        return "", 0.0
    answer, count = Counter(question.answer for question in questions).most_common(1)[0]
    return answer, count / len(questions)
