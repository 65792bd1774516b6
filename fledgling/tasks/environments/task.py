"""An environment as a task: demonstrations, practice and exams of instances that training never has."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fledgling.config import UserError
from fledgling.tasks.environments.environment import SEEDED, Environment, Episode, play_transcript
from fledgling.tasks.task import (
    DEV,
    PRACTICE,
    TEST,
    TRAIN,
    Question,
    is_held_out,
    label_source,
    make_conversation,
    make_rng,
)

MAX_DRAWS = 200  # of an instance, until one belongs to the requested set
MAX_SEED = 2**31
DESCRIPTIONS = {TRAIN: "for training", TEST: "held out for the test", DEV: "held out for dev"}
EXPECTED = "expected at least some tens of different `identity` values (default: the solution), one in ten is held out"


@dataclass(frozen=True)
class EnvironmentTask:
    """Instances of one environment. One in ten is for the test, one in ten for dev, the others train.

    A question's prompt is the instance's; its answer is the solution; `facts["seed"]` is the instance.

    Args:
        make_environment: returns an environment; several of them are in play at once.
        paths: the user's files that hold the class.
    """

    name: str
    make_environment: Callable[[], Environment]
    paths: tuple[Path, ...] = ()

    def __len__(self) -> int:
        """Returns 0: the instances are endless."""
        return 0

    def files(self) -> list[Path]:
        """Returns the files that hold the class."""
        return list(self.paths)

    @property
    def max_new_tokens(self) -> int:
        """The tokens that an episode may take."""
        return self.make_environment().max_new_tokens

    def start(self, question: Question) -> Episode:
        """Returns a new episode of the question's instance."""
        return Episode(self.make_environment(), question.facts["seed"])

    def get_train_conversation(self, index: int, seed: int) -> dict:
        """Returns a demonstration as a conversation: the prompt, calls with their output, the final answer.

        Raises UserError for an environment without demonstrations.
        """
        rng = make_rng(self.name, TRAIN, seed, index)
        episode = self._draw(rng, TRAIN)
        try:
            answer = episode.environment.demonstrate(episode.call, rng)
        except NotImplementedError:
            raise UserError(f"{self.name} has no demonstrations; it can be in rl.tasks, not in a mixture") from None
        parts = [
            {"type": kind, "text": text}
            for call, observation in episode.calls
            for kind, text in (("python", call), ("output", observation))
        ]
        return make_conversation(episode.prompt, [*parts, {"type": "text", "text": answer}])

    def get_practice_question(self, index: int, seed: int) -> Question:
        """Returns practice instance `index` of `seed`, never one of an exam."""
        return self._to_question(self._draw(make_rng(self.name, PRACTICE, seed, index), PRACTICE))

    def list_exams(self, counts: Mapping[str, int]) -> list[tuple[str, tuple[Question, ...]]]:
        """Returns NAME_test and NAME_dev, as far as `counts` asks for them: held-out instances, each once.

        Raises UserError for an environment that has no held-out instance.
        """
        _require_sets(self)
        exams, label = [], label_source(self.name, self.paths)
        for wordings, suffix in ((TEST, "_test"), (DEV, "_dev")):
            if counts.get(wordings):
                rng, drawn = make_rng(self.name, "exam", wordings), dict[str, Question]()
                for number in range(MAX_DRAWS * counts[wordings]):
                    if len(drawn) == counts[wordings] or (number == MAX_DRAWS and not drawn):
                        break
                    episode = Episode(self.make_environment(), rng.randrange(MAX_SEED))
                    if self.find_set(episode) == wordings:
                        drawn.setdefault(episode.environment.identity, self._to_question(episode))
                if not drawn:
                    raise UserError(
                        f"{self.name}: none of {MAX_DRAWS} instances is {DESCRIPTIONS[wordings]}; {EXPECTED}"
                    )
                exams.append((f"{label}{suffix}", tuple(drawn.values())))
        return exams

    def score(self, question: Question, answer: str) -> float:
        """Returns the environment's reward of a transcript, played again. Raises UserError for one outside [0, 1]."""
        episode, text = play_transcript(self.make_environment(), question.facts["seed"], answer)
        if (again := episode.environment.identity) != question.facts.get("instance", again):
            given = f"{self.name}, instance {episode.seed}: its identity was {question.facts['instance'][:40]!r}"
            raise UserError(f"{given}, and is {again[:40]!r} when the episode is played again to score it; {SEEDED}")
        reward = float(episode.environment.reward(text))
        if not 0 <= reward <= 1:  # NaN too
            given = f"{self.name}, instance {episode.seed}: reward returned {reward}"
            raise UserError(f"{given}; expected a number from 0 to 1")
        return reward

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        """Returns the score of each (question, transcript)."""
        return [self.score(question, answer) for question, answer in pairs]

    def score_turns(self, question: Question, answer: str) -> list[float]:
        """Returns the reward of each call of a transcript that was run, in order; raises UserError if not finite."""
        episode, _ = play_transcript(self.make_environment(), question.facts["seed"], answer)
        for reward in episode.turn_rewards:
            if not math.isfinite(reward):
                given = f"{self.name}, instance {episode.seed}: turn_reward returned {reward}"
                raise UserError(f"{given}; expected a finite number")
        return episode.turn_rewards

    def _draw(self, rng: random.Random, wordings: str) -> Episode:
        _require_sets(self)
        for _ in range(MAX_DRAWS):
            episode = Episode(self.make_environment(), rng.randrange(MAX_SEED))
            if self.find_set(episode) == TRAIN:
                return episode
        raise UserError(f"{self.name}: none of {MAX_DRAWS} instances is {DESCRIPTIONS[TRAIN]}; {EXPECTED}")

    def find_set(self, episode: Episode) -> str:
        """Returns the set that an instance belongs to: by the hash of its identity."""
        identity = episode.environment.identity
        if is_held_out(self.name, TEST, identity):
            return TEST
        return DEV if is_held_out(self.name, DEV, identity) else TRAIN

    def _to_question(self, episode: Episode) -> Question:
        facts = {"seed": episode.seed, "instance": episode.environment.identity}
        return Question(self.name, episode.prompt, episode.environment.solution, facts)


@lru_cache(maxsize=16)
def _require_sets(task: EnvironmentTask) -> None:
    """Raises UserError for an environment without instances for training or without held-out ones."""
    rng, found, identities = make_rng(task.name, "sets"), set[str](), set[str]()
    for _ in range(MAX_DRAWS):
        episode = Episode(task.make_environment(), rng.randrange(MAX_SEED))
        found.add(task.find_set(episode))
        identities.add(episode.environment.identity)
        if {TRAIN, TEST} <= found:
            return
    missing = DESCRIPTIONS[TEST if TEST not in found else TRAIN]
    others = f"one of {len(identities)} identities" if len(identities) > 1 else "the identity of all"
    counted = f"{min(identities)[:40]!r} is {others}"
    raise UserError(f"{task.name}: none of {MAX_DRAWS} instances is {missing}: {counted}; {EXPECTED}")
