"""The interface of a task: questions, each a pure function of (seed, index), and an exact way to score an answer.

`ConversationSource` is what supervised training reads; `Task` adds prompts for reinforcement learning, exams and
scores. `GeneratedTask` (here) draws its questions from a generator; `DatasetTask` (dataset.py) reads them from files.
Nothing here knows a tokenizer, a model or a loss.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from fledgling.corpora.prepared_data import digest_read_files
from fledgling.files import FileStamps, stat_files

# Four disjoint sets of wordings: for demonstrations, for reinforcement learning, for tuning recipes and train
# wordings by their scores, and for the scores that are quoted, which nothing is tuned by.
TRAIN, PRACTICE, DEV, TEST = "train", "practice", "dev", "test"
HOLDOUT_MODULUS = 10  # one word, number pair or combination in this many appears in evaluations only
CLUSTER_FACTS = ("wording", "passage", "instance")  # keys of Question.facts that several questions may share
RIGHT_SCORE = 1.0  # an answer is right where its task scores this; a part of it counts in means of scores only
MAX_DRAWS = 60  # of a question for an exam, until it is one that the exam does not have


@dataclass(frozen=True)
class Question:
    """One question: the prompt, the expected answer, and the facts that it is made of.

    `facts["wording"]` is the template and `facts["passage"]` a text that several questions are about; the other keys
    depend on the task (`word`, `letter`, `a`, `b`, `kind`, `subject`, ...). `choices` are the letters that the prompt
    offers; without them the answer is free text.
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

    @property
    def cluster(self) -> str:
        """What the question shares with others, so that answers may depend: one of CLUSTER_FACTS, or the prompt."""
        return str(next((self.facts[key] for key in CLUSTER_FACTS if self.facts.get(key)), self.prompt))

    @property
    def cluster_unit(self) -> str:
        """The plural of what `cluster` is: wordings, passages, instances; empty where a question shares nothing."""
        return next((f"{key}s" for key in CLUSTER_FACTS if self.facts.get(key)), "")

    @property
    def subject_matter(self) -> tuple[str, ...]:
        """What is asked about, in whatever words: the facts without the wording."""
        return tuple(f"{key}={value}" for key, value in sorted(self.facts.items()) if key != "wording")


class ConversationSource(Protocol):
    """Conversations by index, for supervised training. Every method is a pure function of its arguments."""

    @property
    def name(self) -> str:
        """The name in a mixture."""

    def __len__(self) -> int:
        """Returns the rows of one epoch; 0 for an endless generator."""

    def files(self) -> list[Path]:
        """Returns the files that training reads. Raises UserError where one is missing, with how to get it."""

    def get_train_conversation(self, index: int, seed: int) -> dict:
        """Returns a conversation for supervised training; each row comes once an epoch."""


class Task(ConversationSource, Protocol):
    """A source that can also be practised and evaluated. Every method is a pure function of its arguments."""

    @property
    def max_new_tokens(self) -> int:
        """The tokens that an answer may take."""

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Returns a prompt for reinforcement learning, never one of an exam."""

    def list_exams(self, counts: Mapping[str, int]) -> list[tuple[str, tuple[Question, ...]]]:
        """Returns the exams, each a name and questions that no training and no practice has.

        counts: how many questions at most, by set of wordings; a set that is not named has no exam. A task of published
        splits has one exam, of its test split.
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


def label_source(name: str, files: Sequence[Path]) -> str:
    """Returns how scores of a user's source are labelled: `questions:quiz.jsonl#0123456789ab`, without directories.

    Files of one name with other contents have other labels, so that their scores are never taken for each other.

    Args:
        name: of the source, PREFIX:PATH.
        files: what it is read from; none leaves the name as it is.
    """
    if not files:
        return name
    prefix, _, spec = name.partition(":")
    return f"{prefix}:{Path(spec).name}#{_digest_stamped(stat_files(files))}"


@lru_cache(maxsize=16)
def _digest_stamped(files: FileStamps) -> str:
    return digest_read_files([path for path, *_ in files])


@dataclass(frozen=True)
class GeneratedTask:
    """A task whose questions are drawn by a generator.

    Args:
        sample_question: (rng, set of wordings, held_out, wording) -> Question. `held_out` selects the words, numbers or
            combinations that training and practice never see; a wording of None is drawn from the set.
        list_wordings: set of wordings -> all of them.
        write_reply: question -> the content of the reference reply: text, or parts when a tool is called.
        score: (question, answer) -> 1.0 or 0.0.
        has_holdout: whether words or numbers are held out from training. If not, an exam differs by its wordings.
        has_practice_holdout: whether words, numbers or combinations are held out from practice.
    """

    name: str
    sample_question: Callable[[random.Random, str, bool, str | None], Question]
    list_wordings: Callable[[str], Sequence[str]]
    write_reply: Callable[[Question], str | list[dict]]
    score: Callable[[Question, str], float]
    has_holdout: bool = True
    has_practice_holdout: bool = True
    max_new_tokens: int = 96

    def __len__(self) -> int:
        """Returns 0: the examples are endless."""
        return 0

    def files(self) -> list[Path]:
        """Returns no file."""
        return []

    def get_train_conversation(self, index: int, seed: int) -> dict:
        """Returns conversation `index` of `seed`: train wordings, no held-out word or number."""
        return self.to_conversation(self.sample_question(make_rng(self.name, TRAIN, seed, index), TRAIN, False, None))

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Returns practice prompt `index` of `seed`: practice wordings, no held-out word, number or combination."""
        return self.sample_question(make_rng(self.name, PRACTICE, seed, index), PRACTICE, False, None)

    def list_exams(self, counts: Mapping[str, int]) -> list[tuple[str, tuple[Question, ...]]]:
        """Returns held-out questions in each set of wordings; at most as many as `counts` has for the set.

        NAME is in train wordings, NAME_test and NAME_dev in wordings that no training has, NAME_practice in those
        of reinforcement learning. Where nothing is held out from training or practice, NAME or NAME_practice does not
        exist: its questions would be training prompts. Each exam is the beginning of a larger one.
        """
        exams = []
        for wordings, suffix in ((TRAIN, ""), (TEST, "_test"), (DEV, "_dev"), (PRACTICE, "_practice")):
            exists = {TRAIN: self.has_holdout, PRACTICE: self.has_practice_holdout}.get(wordings, True)
            if exists and counts.get(wordings):
                exams.append((self.name + suffix, self.draw_exam(wordings, counts[wordings])))
        return exams

    def draw_exam(self, wordings: str, count: int) -> tuple[Question, ...]:
        """Returns the first `count` questions of the exam in a set of wordings; fewer if there are no more.

        No question comes twice, and a word, pair or fact comes again only if no other is found. Training and practice
        wordings are drawn; the dev and test wordings, which are few, come in turn, in a fixed order, so that a
        small exam has as many of them as it can.
        """
        return _draw_exam(self, wordings, count)

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Returns the score of each (question, answer)."""
        return [self.score(question, answer) for question, answer in pairs]

    def to_conversation(self, question: Question) -> dict:
        """Returns `question` with its reference reply, as a conversation."""
        return make_conversation(question.prompt, self.write_reply(question))


@lru_cache(maxsize=64)
def _draw_exam(task: GeneratedTask, wordings: str, count: int) -> tuple[Question, ...]:
    rng = make_rng(task.name, "exam", wordings)
    in_turn: list[str | None] = [None]
    if wordings in (DEV, TEST):
        in_turn = list(task.list_wordings(wordings))
        rng.shuffle(in_turn)
    questions: list[Question] = []
    prompts: set[str] = set()
    matters: set[tuple[str, ...]] = set()
    while len(questions) < count:
        before = len(questions)
        for wording in in_turn[: count - before]:
            question = _draw_new_question(task, rng, wordings, wording, prompts, matters)
            if question:
                questions.append(question)
                prompts.add(question.prompt)
                matters.add(question.subject_matter)
        if len(questions) == before:
            break
    return tuple(questions)


def _draw_new_question(
    task: GeneratedTask,
    rng: random.Random,
    wordings: str,
    wording: str | None,
    prompts: Container[str],
    matters: Container[tuple[str, ...]],
) -> Question | None:
    """Returns a held-out question whose prompt is new, and what it is about too if one is found; None if none is."""
    fallback = None
    for _ in range(MAX_DRAWS):
        question = task.sample_question(rng, wordings, True, wording)
        if question.prompt not in prompts:
            if question.subject_matter not in matters:
                return question
            fallback = fallback or question
    return fallback


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
