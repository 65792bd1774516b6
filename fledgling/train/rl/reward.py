"""The reward of an answer: the task's score, its format, custom functions, and a length penalty.

A reward is a weighted sum of named parts, each recorded: `task` is the task's own score (an exact answer, tests run in
the sandbox), `format` whether the answer is complete, `turns` the sum of an environment's rewards of its turns (which
PPO places at their calls), `module:function` a custom function, `model:RUN` a reward model's score. A function that
raises, hangs or returns no finite number ends the round with its name and the answer it failed on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from fledgling.config import RLConfig, UserError, did_you_mean
from fledgling.evals.episodes import locate_calls, read_answers
from fledgling.infer.request import Completion
from fledgling.runtime.json_process import JsonProcess
from fledgling.tasks.environments import EnvironmentTask
from fledgling.tasks.task import Question, Task, score_answers
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.rl.advantage import overlong_penalty
from fledgling.train.rl.model_reward import MODEL_PREFIX, ModelReward, find_reward_model

LOAD_TIMEOUT = 120.0  # seconds that a function's module may take to import
NAMED_PARTS = ("task", "format", "turns")
MAX_QUOTE_LENGTH = 100  # characters of a question or an answer in a message


@dataclass(frozen=True)
class Candidate:
    """One answer to score."""

    task: Task
    question: Question
    completion: Completion
    text: str  # without the calls of tools and their output; of an environment the transcript


def describe_answer(question: Question, answer: str) -> str:
    """Returns the beginnings of a question and its answer, for an error message."""
    return f"question {_quote(question.prompt)}, answer {_quote(answer)}"


def _quote(text: str) -> str:
    short = text if len(text) <= MAX_QUOTE_LENGTH else text[: MAX_QUOTE_LENGTH - 3] + "..."
    return json.dumps(short, ensure_ascii=False)


class CustomReward:
    """A user's reward function, run by `grader.py` in a process of its own that starts with the first answer."""

    def __init__(self, spec: str, timeout: float) -> None:
        self.spec, self.timeout = spec, timeout
        self.process: JsonProcess | None = None

    def scores(self, candidates: Sequence[Candidate]) -> list[float]:
        """Returns one number per answer. Raises UserError with the function's name and the answer it failed on."""
        remedy = "the run resumes from here once it is repaired"
        return [self.grade(candidate.question, candidate.text, remedy) for candidate in candidates]

    def grade(self, question: Question, answer: str, remedy: str) -> float:
        """Returns the number of one answer. Raises UserError with both and what to do."""
        process = self.process or self.load()
        reply = process.ask({"question": asdict(question), "answer": answer}, self.timeout)
        if "reward" in reply:
            return reply["reward"]
        self.close()
        where = describe_answer(question, answer)
        raise UserError(f'reward "{self.spec}" {reply["error"]}; {where}; {remedy}')

    def load(self) -> JsonProcess:
        """Starts the process that loads the function. Raises UserError if it cannot be loaded."""
        self.process = process = JsonProcess([sys.executable, "-m", "fledgling.train.rl.grader", self.spec])
        reply = process.read_reply(LOAD_TIMEOUT) or {"error": "cannot be loaded: its process wrote nothing"}
        if "error" in reply:
            self.close()
            raise UserError(f'reward "{self.spec}" {reply["error"]}; expected module:function or path.py:function')
        return process

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.close()
            self.process = None


def score_turns(tokenizer: Tokenizer, candidate: Candidate) -> list[tuple[int, float]]:
    """Returns (position of the call's last token, reward) of each turn of an episode; none for another task."""
    if not isinstance(candidate.task, EnvironmentTask):
        return []
    rewards = candidate.task.score_turns(candidate.question, candidate.text)
    return list(zip(locate_calls(tokenizer, candidate.completion.tokens), rewards, strict=False))  # turns are limited


@dataclass(frozen=True)
class Scores:
    """The rewards of N answers."""

    total: np.ndarray  # (N,)
    parts: dict[str, np.ndarray]  # by name, (N,) each, unweighted; `task` is always among them
    turns: list[list[tuple[int, float]]]  # of each answer (position in it, weighted reward), included in its total


def is_well_formed(tokenizer: Tokenizer, completion: Completion, text: str) -> bool:
    """Returns whether an answer ended by itself, is not empty, and closed every call of a tool."""
    opened = completion.tokens.count(tokenizer.python_start)
    closed = completion.tokens.count(tokenizer.python_end)
    return completion.finish_reason == "stop" and bool(text.strip()) and opened == closed


def make_custom_rewards(config: RLConfig) -> dict[str, CustomReward]:
    """Returns the rewards of a recipe that are functions, by name. Raises UserError for a name that is no reward."""
    names = [name for name, weight in config.rewards.items() if weight > 0 and not name.startswith(MODEL_PREFIX)]
    for name in names:
        if name not in NAMED_PARTS and ":" not in name:
            hint, expected = did_you_mean(name, NAMED_PARTS), ", ".join(NAMED_PARTS)
            raise UserError(f'rl.rewards: unknown "{name}"{hint}; expected {expected}, module:function or model:RUN')
    return {name: CustomReward(name, config.reward_timeout) for name in names if ":" in name}


def require_rewards(config: RLConfig, questions: Sequence[Question] = ()) -> None:
    """Raises UserError for a reward that is unknown or cannot be loaded, or that fails on an answer to a question.

    Each function is given an empty answer, which any model may write, and the expected one.
    """
    for name in (name for name, weight in config.rewards.items() if weight > 0 and name.startswith(MODEL_PREFIX)):
        find_reward_model(name)
    for reward in make_custom_rewards(config).values():
        try:
            reward.load()
            for question in questions:
                for answer in ("", question.answer):
                    reward.grade(question, answer, "mend it before the run begins")
        finally:
            reward.close()


class RewardScorer:
    """Computes a recipe's reward: its parts, and their weighted sum."""

    def __init__(self, config: RLConfig, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> None:
        self.config, self.tokenizer = config, tokenizer
        self.weights = {name: w for name, w in config.rewards.items() if w > 0} or {"task": 1.0}
        self.custom_rewards: dict[str, CustomReward | ModelReward] = {
            **make_custom_rewards(config),
            **{n: ModelReward(n, tokenizer, device) for n in self.weights if n.startswith(MODEL_PREFIX)},
        }

    def score(self, questions: Sequence[tuple[Task, Question]], answers: Sequence[Completion]) -> Scores:
        """Returns the rewards of N answers."""
        texts = read_answers(self.tokenizer, [task for task, _ in questions], [answer.tokens for answer in answers])
        candidates = [
            Candidate(task, question, answer, text)
            for (task, question), answer, text in zip(questions, answers, texts, strict=True)
        ]
        parts = {"task": np.array(score_answers(questions, texts))}
        if "format" in self.weights:
            parts["format"] = np.array(
                [float(is_well_formed(self.tokenizer, c.completion, c.text)) for c in candidates]
            )
        turns: list[list[tuple[int, float]]] = [[] for _ in candidates]
        if weight := self.weights.get("turns"):
            turns = [score_turns(self.tokenizer, candidate) for candidate in candidates]
            parts["turns"] = np.array([float(sum(reward for _, reward in rewards)) for rewards in turns])
            turns = [[(position, weight * reward) for position, reward in rewards] for rewards in turns]
        parts |= {name: np.array(reward.scores(candidates)) for name, reward in self.custom_rewards.items()}
        total: np.ndarray = sum(weight * parts[name] for name, weight in self.weights.items())  # type: ignore[assignment]
        if self.config.length_penalty and not self.config.uses_teacher:  # a teacher scores tokens, not answers
            max_tokens, free_tokens = self.config.max_new_tokens, self.config.length_penalty_free_tokens
            free_tokens = max_tokens // 2 if free_tokens is None else free_tokens
            costs = [overlong_penalty(len(answer.tokens), free_tokens, max_tokens) for answer in answers]
            parts["length_cost"] = np.array(costs)
            total = total + self.config.length_penalty * parts["length_cost"]
        return Scores(total, parts, turns)

    def close(self) -> None:
        """Ends the processes of the custom rewards."""
        for reward in self.custom_rewards.values():
            reward.close()
