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
HOLDOUT_MODULUS = 10  # one word or number pair in this many is asked in evaluations only


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


class ConversationSource(Protocol):
    """What supervised training needs: conversations by index. Every method is a pure function of its arguments."""

    name: str

    def __len__(self) -> int:
        """Return the rows of one epoch; 0 where examples are made without end."""

    def files(self) -> list[Path]:
        """Return the files that training reads. Raises UserError where one is missing, saying how to get it."""

    def get_train_example(self, index: int, seed: int) -> dict:
        """Return a conversation for supervised training; each row comes once an epoch."""


class Task(ConversationSource, Protocol):
    """What practice and evaluation need of a task besides. Every method is a pure function of its arguments."""

    max_new_tokens: int  # tokens that an answer may take

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Return a prompt for reinforcement learning: never one of an exam."""

    def list_exam_questions(self, count: int, include_practice: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Return the exams, each a name and at most `count` held-out questions.

        With `practised` also what reinforcement learning practises, where that has wordings of its own.
        """

    def score(self, question: Question, answer: str) -> float:
        """Return 1.0 when `answer`, the visible text of a reply, is right, else 0.0."""

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return `score` of many, which may take less time than one by one."""


@dataclass(frozen=True)
class GeneratedTask:
    """A task whose questions are drawn by a generator.

    draw   (rng, wordings, held_out) -> Question; `wordings` is TRAIN, PRACTICE or UNSEEN, `held_out` says
           which side of the hash the words or numbers come from.
    reply  question -> the content of the reference reply: a string, or parts when a tool is called.
    score  (question, answer) -> 1.0 or 0.0.
    withheld  whether words or numbers are kept from training. If not, only new wordings make an exam.
    """

    name: str
    sample_question: Callable[[random.Random, str, bool], Question]
    write_reply: Callable[[Question], str | list[dict]]
    score: Callable[[Question, str], float]
    has_holdout: bool = True
    max_new_tokens: int = 96

    def __len__(self) -> int:
        """Return 0: examples are made without end."""
        return 0

    def files(self) -> list[Path]:
        """Return none: nothing is read."""
        return []

    def get_train_example(self, index: int, seed: int) -> dict:
        """Return conversation `index` of `seed`: known wordings, no held-out word or number."""
        return self.to_conversation(self.sample_question(make_rng(self.name, TRAIN, seed, index), TRAIN, False))

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Return practice prompt `index` of `seed`: practice wordings, no held-out word or number."""
        return self.sample_question(make_rng(self.name, PRACTICE, seed, index), PRACTICE, False)

    def get_eval_question(self, index: int, unseen: bool) -> Question:
        """Return evaluation question `index`: held-out words or numbers, wordings known or `unseen`."""
        wordings = UNSEEN if unseen else TRAIN
        return self.sample_question(make_rng(self.name, "question", wordings, index), wordings, True)

    def get_practised_question(self, index: int) -> Question:
        """Return question `index` with held-out words or numbers in the wordings of practice."""
        return self.sample_question(make_rng(self.name, "question", PRACTICE, index), PRACTICE, True)

    def list_exam_questions(self, count: int, include_practice: bool = False) -> list[tuple[str, tuple[Question, ...]]]:
        """Return held-out words or numbers in known wordings and, as NAME_unseen, in new ones.

        Where nothing is withheld from training there is one exam, NAME, in new wordings. `practised` adds
        NAME_practised, in the wordings that reinforcement learning's prompts use and no demonstration does.
        """
        known = tuple(self.get_eval_question(index, False) for index in range(count)) if self.has_holdout else ()
        unseen = tuple(self.get_eval_question(index, True) for index in range(count))
        made = [(self.name, known), (f"{self.name}_unseen", unseen)] if self.has_holdout else [(self.name, unseen)]
        if include_practice:
            made.append((f"{self.name}_practised", tuple(self.get_practised_question(index) for index in range(count))))
        return made

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Return the score of each (question, answer)."""
        return [self.score(question, answer) for question, answer in pairs]

    def to_conversation(self, question: Question) -> dict:
        """Return `question` with its reference reply, as a conversation."""
        return make_conversation(question.prompt, self.write_reply(question))

    def find_constant_baseline(self, questions: Sequence[Question]) -> tuple[str, float]:
        """Return what `constant_baseline` returns: the best answer that never looks at the question."""
        return find_constant_baseline(questions)


def make_conversation(prompt: str, reply: str | list[dict]) -> dict:
    """Return one exchange: what the user says and the assistant's reply, a text or parts."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}


@lru_cache(maxsize=32)
def shuffle_indices(count: int, *key: object) -> tuple[int, ...]:
    """Return 0 to count - 1 shuffled, a pure function of (count, key)."""
    shuffled = list(range(count))
    make_rng(*key).shuffle(shuffled)
    return tuple(shuffled)


def make_rng(*key: object) -> random.Random:
    """Return a random stream that is a pure function of `key`: same key, same stream, on every machine."""
    return random.Random(":".join(map(str, key)))


def is_held_out(*key: object) -> bool:
    """Return whether `key` is kept for evaluation: a stable hash, the same in every process and Python."""
    digest = blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HOLDOUT_MODULUS == 0


def normalize_text(text: str) -> str:
    """Return `text` without case, spacing, quotes and closing punctuation: what two equal answers share."""
    kept = "".join(character for character in text.casefold() if character not in "\"'`*")
    return " ".join(kept.split()).strip(" .,!?;:")


def score_exact_match(question: Question, answer: str) -> float:
    """Score by equality after `normalise`."""
    return float(normalize_text(answer) == normalize_text(question.answer))


def find_constant_baseline(questions: Sequence[Question]) -> tuple[str, float]:
    """Return the constant answer that is right most often, and the share of `questions` it gets right.

    A task's accuracy says something only above this share. No questions: `("", 0.0)`.
    """
    if not questions:
        return "", 0.0
    answer, count = Counter(question.answer for question in questions).most_common(1)[0]
    return answer, count / len(questions)
