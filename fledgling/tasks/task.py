"""What a task is: questions, each a pure function of (seed, index), and an exact way to score an answer.

The one idea: to train on, to practise on and to be examined in are three questions to ask of a task, and it
answers each from an index. Whether it makes its questions up (`Generated`, here) or reads them from a file
(`Filed`, in filed.py) is its own affair.

`Generated` holds a way to draw a question, a way to write its reference reply and a way to score an answer;
training, practice and evaluation are the same draw with other wordings and with the words or numbers that a
stable hash keeps apart.

What it is not: it knows no tokenizer, no model and no loss; it imports no torch.
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

TRAIN, PRACTICE, UNSEEN = "train", "practice", "unseen"  # the three sets of wordings; no two share one
HELD_OUT = 10  # one word or number pair in this many is asked in evaluations only


@dataclass(frozen=True)
class Question:
    """One question: the user's words, the expected answer, and what it was made of.

    `facts["wording"]` is the template; the other keys are the task's own (`word`, `letter`, `a`, `b`,
    `kind`, `subject`, ...). `choices` are the letters that an answer is one of, for which the prompt has asked; without
    them the answer is written freely.
    """

    task: str
    prompt: str
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """The score of answering at random: 1 / choices, and 0 where the answer is written freely."""
        return 1 / len(self.choices) if self.choices else 0.0


class Source(Protocol):
    """What supervised training needs: conversations by index. Every method is a pure function of its arguments."""

    name: str

    def __len__(self) -> int:
        """Return the rows of one epoch; 0 where examples are made without end."""

    def files(self) -> list[Path]:
        """Return the files that training reads. Raises UserError where one is missing, saying how to get it."""

    def train(self, index: int, seed: int) -> dict:
        """Return a conversation for supervised training; each row comes once an epoch."""


class Task(Source, Protocol):
    """What practice and evaluation need of a task besides. Every method is a pure function of its arguments."""

    longest: int  # tokens that an answer may take

    def practice(self, index: int, seed: int) -> Question:
        """Return a prompt for reinforcement learning: never one of an exam."""

    def exams(self, count: int, practised: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Return the exams, each a name and at most `count` held-out questions.

        With `practised` also what reinforcement learning practises, where that has wordings of its own.
        """

    def score(self, question: Question, answer: str) -> float:
        """Return 1.0 when `answer`, the visible text of a reply, is right, else 0.0."""

    def scores(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return `score` of many, which may take less time than one by one."""


@dataclass(frozen=True)
class Generated:
    """A task whose questions are drawn by a generator.

    draw   (rng, wordings, held_out) -> Question; `wordings` is TRAIN, PRACTICE or UNSEEN, `held_out` says
           which side of the hash the words or numbers come from.
    reply  question -> the content of the reference reply: a string, or parts when a tool is called.
    score  (question, answer) -> 1.0 or 0.0.
    withheld  whether words or numbers are kept from training. If not, only new wordings make an exam.
    """

    name: str
    draw: Callable[[random.Random, str, bool], Question]
    reply: Callable[[Question], str | list[dict]]
    score: Callable[[Question, str], float]
    withheld: bool = True
    longest: int = 96

    def __len__(self) -> int:
        """Return 0: examples are made without end."""
        return 0

    def files(self) -> list[Path]:
        """Return none: nothing is read."""
        return []

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

    def exams(self, count: int, practised: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Return held-out words or numbers in known wordings and, as NAME_unseen, in new ones.

        Where nothing is withheld from training there is one exam, NAME, in new wordings. `practised` adds
        NAME_practised, in the wordings that reinforcement learning's prompts use and no demonstration does.
        """
        known = tuple(self.question(index, False) for index in range(count)) if self.withheld else ()
        unseen = tuple(self.question(index, True) for index in range(count))
        made = [(self.name, known), (f"{self.name}_unseen", unseen)] if self.withheld else [(self.name, unseen)]
        if practised:
            made.append((f"{self.name}_practised", tuple(self.practised(index) for index in range(count))))
        return made

    def scores(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return the score of each (question, answer)."""
        return [self.score(question, answer) for question, answer in pairs]

    def conversation(self, question: Question) -> dict:
        """Return `question` with its reference reply, as a conversation."""
        return conversation(question.prompt, self.reply(question))

    def constant_baseline(self, questions: Sequence[Question]) -> tuple[str, float]:
        """Return what `constant_baseline` returns: the best answer that never looks at the question."""
        return constant_baseline(questions)


def conversation(prompt: str, reply: str | list[dict]) -> dict:
    """Return one exchange: what the user says and the assistant's reply, a text or parts."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}


@lru_cache(maxsize=32)
def order(count: int, *key: object) -> tuple[int, ...]:
    """Return 0 to count - 1 shuffled, a pure function of (count, key)."""
    shuffled = list(range(count))
    stream(*key).shuffle(shuffled)
    return tuple(shuffled)


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
