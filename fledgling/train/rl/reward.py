"""What an answer is worth: the task's score, its form, rewards of the user's own, and what its length costs.

The one idea: a reward is a weighted sum of named parts, each recorded. `task` is the task's own score (an exact answer,
tests run in the sandbox), `format` whether the answer is whole, `module:function` a function of the user's. A function
that raises, hangs or returns no finite number ends the round with its name and the answer it failed on.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fledgling.config import RLConfig, UserError, did_you_mean
from fledgling.infer.detokenizer import decode_final_text
from fledgling.infer.request import Completion
from fledgling.tasks.task import Question, Task, score_answers
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.rl.advantage import overlong_penalty

LOAD_TIMEOUT = 120.0  # seconds that a function's module may take to import
MAX_QUOTE_LENGTH = 100  # characters of a question or an answer in a message


@dataclass(frozen=True)
class Candidate:
    """One answer to be scored."""

    task: Task
    question: Question
    completion: Completion
    text: str  # what it finally says

    def __str__(self) -> str:
        return f"question {_short(self.question.prompt)}, answer {_short(self.text)}"


def _short(text: str) -> str:
    return json.dumps(
        text if len(text) <= MAX_QUOTE_LENGTH else text[: MAX_QUOTE_LENGTH - 3] + "...", ensure_ascii=False
    )


class CustomReward:
    """A function of the user's, run by `grader.py` in a process of its own that starts with the first answer."""

    def __init__(self, spec: str, timeout: float) -> None:
        self.spec, self.timeout = spec, timeout
        self.process: subprocess.Popen | None = None
        self.buffer = b""

    def scores(self, candidates: Sequence[Candidate]) -> list[float]:
        """One number an answer. Raises UserError with the function's name and the answer it failed on."""
        return [self._score(one) for one in candidates]

    def _score(self, one: Candidate) -> float:
        if self.process is None:
            self._start()
        asked = json.dumps({"question": asdict(one.question), "answer": one.text}, default=str) + "\n"
        try:
            self.process.stdin.write(asked.encode())
            self.process.stdin.flush()
            told = self._read_line(self.timeout)
        except BrokenPipeError:
            told = None
        if told is None:
            code = self.process.poll()
            late = f"took more than {self.timeout:g} s" if code is None else f"ended its process (exit code {code})"
            told = {"error": late}
        if "reward" in told:
            return told["reward"]
        self.close()
        raise UserError(f'reward "{self.spec}" {told["error"]}; {one}; the run goes on from here once it is mended')

    def _start(self) -> None:
        command = [sys.executable, "-m", "fledgling.train.rl.grader", self.spec]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.buffer = b""
        told = self._read_line(LOAD_TIMEOUT) or {"error": "cannot be loaded: its process said nothing"}
        if "error" in told:
            self.close()
            raise UserError(f'reward "{self.spec}" {told["error"]}; expected module:function or path.py:function')

    def _read_line(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the process, or None when it ended or the time is over."""
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([pipe], [], [], seconds)
            piece = os.read(pipe, 1 << 16) if ready else b""
            if not piece:
                if ready:
                    self.process.wait()
                return None
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                pipe.close()
            self.process = None


def is_well_formed(tokenizer: Tokenizer, completion: Completion, text: str) -> bool:
    """Whether an answer is whole: it ended by itself, says something, and every call of a tool was closed."""
    opened = completion.tokens.count(tokenizer.python_start)
    closed = completion.tokens.count(tokenizer.python_end)
    return completion.finish_reason == "stop" and bool(text.strip()) and opened == closed


class RewardScorer:
    """The parts of a recipe's reward. `score` gives every part, (N,) each, and their weighted sum."""

    def __init__(self, config: RLConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.weights = {name: w for name, w in config.rewards.items() if w > 0} or {"task": 1.0}
        self.custom_rewards = {name: CustomReward(name, config.reward_timeout) for name in self.weights if ":" in name}
        for name in self.weights:
            if name not in ("task", "format", *self.custom_rewards):
                hint = did_you_mean(name, ("task", "format"))
                raise UserError(f'rl.rewards: unknown "{name}"{hint}; expected task, format or module:function')

    def score(
        self, questions: Sequence[tuple[Task, Question]], answers: Sequence[Completion]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards (N,) of answers (N,), and their parts by name, not yet weighted; `task` is always among them."""
        texts = [decode_final_text(self.tokenizer, answer.tokens) for answer in answers]
        candidates = [Candidate(*one, a, text) for one, a, text in zip(questions, answers, texts, strict=True)]
        parts = {"task": np.array(score_answers(questions, texts))}
        if "format" in self.weights:
            parts["format"] = np.array(
                [float(is_well_formed(self.tokenizer, c.completion, c.text)) for c in candidates]
            )
        parts |= {name: np.array(own.scores(candidates)) for name, own in self.custom_rewards.items()}
        total = sum(weight * parts[name] for name, weight in self.weights.items())
        if self.config.length_penalty:
            longest = self.config.max_new_tokens
            free = (
                longest // 2
                if self.config.length_penalty_free_tokens is None
                else self.config.length_penalty_free_tokens
            )
            parts["length_cost"] = np.array([overlong_penalty(len(answer.tokens), free, longest) for answer in answers])
            total = total + self.config.length_penalty * parts["length_cost"]
        return total, parts

    def close(self) -> None:
        """End the processes of the user's rewards."""
        for own in self.custom_rewards.values():
            own.close()
