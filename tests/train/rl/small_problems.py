"""Problems so small that their optimum is known: a bandit, a choice of two steps, copying a digit.

The policy is a randomly initialized model of two layers (all tokens equally likely); answers come from the real engine,
updates from the real loop and optimizer. Rewards are a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from fledgling.config import ModelConfig, OptimizerConfig, RLConfig
from fledgling.evals.chat import encode_question
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.world import World
from fledgling.tasks.task import Question
from fledgling.text.tokenizer import Tokenizer
from fledgling.train import loop
from fledgling.train.critic import attach_critic
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.stage import Stage


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog 0123456789 " * 20], 320, letter_tokens=True)


@dataclass(frozen=True)
class Problem:
    """A task with a known optimum."""

    name: str
    prompts: tuple[str, ...]
    reward: Callable[[str, str], float]  # (prompt, answer)
    best: Callable[[str], tuple[str, ...]]  # the optimal letters of each token
    tokens: int
    longest: int = 8
    prompts_per_round: int = 8

    def get_practice_question(self, index: int, seed: int) -> Question:
        prompt = self.prompts[index % len(self.prompts)]
        return Question(self.name, prompt, "".join(self.best(prompt)))

    def score(self, question: Question, answer: str) -> float:
        return self.reward(question.prompt, answer)

    def score_batch(self, pairs: Sequence[tuple[Question, str]]) -> list[float]:
        return [self.score(*pair) for pair in pairs]


def arms(_: str, answer: str) -> float:
    """Eight arms that pay 0.3 to 1; every other token pays nothing."""
    return 0.3 + 0.1 * "abcdefgh".index(answer) if answer and answer in "abcdefgh" else 0.0


PAID = {"lu": 0.6, "ld": 0.3, "ru": 0.4, "rd": 1.0}  # which second step is best depends on the first
EARLY, LATE = "abcdefghijklm", "nopqrstuvwxyz"


def path(_: str, answer: str) -> float:
    """Two steps: letters of either half of the alphabet go left or right, then down or up. One step alone: 0.1."""
    if len(answer) not in (1, 2) or not set(answer) <= set(EARLY + LATE):  # a token of several letters is no step
        return 0.0
    if len(answer) == 1:
        return 0.1
    return PAID["lr"[answer[0] in LATE] + "du"[answer[1] in LATE]]


def same_digit(prompt: str, answer: str) -> float:
    """The prompt's digit is worth 1, any other 0.1."""
    return 1.0 if answer == prompt else 0.1 * (len(answer) == 1 and answer in "0123")


BANDIT = Problem("bandit", ("Choose.",), arms, lambda _: ("h",), 1, prompts_per_round=2)
TWO_STEPS = Problem("two steps", ("Go.",), path, lambda _: (LATE, EARLY), 2)
COPY = Problem("copy", ("0", "1", "2", "3"), same_digit, lambda prompt: (prompt,), 1)


def settings(problem: Problem, algorithm: str, **others: object) -> RLConfig:
    """Returns the settings that all small problems share."""
    base = RLConfig(
        algorithm=algorithm,
        tasks={problem.name: 1.0},
        prompts_per_round=8 if algorithm == "ppo" else problem.prompts_per_round,  # a critic learns from answers too
        group_size=32,
        max_new_tokens=problem.tokens,
        advantage_normalization="zscore",
        steps=1,
        clip_ratio_high=0.3,
        entropy_weight=0.01,
    )
    return replace(base, **others)


class Flipped(RolloutStream):
    """A stream whose advantages have the wrong sign."""

    def next(self):
        batches = super().next()
        for batch in batches:
            batch.advantages = -batch.advantages
        return batches


def learn(
    problem: Problem,
    config: RLConfig,
    seed: int,
    steps: int,
    stream_type: type[RolloutStream] = RolloutStream,
    engine_type: type[Engine] = Engine,
    learning_rate: float = 1.0,
) -> float:
    """Returns the probability of the optimal answer after `steps` optimizer steps, the smallest over the prompts."""
    torch.manual_seed(seed)
    words, world = tokenizer(), World.start("cpu")
    model = Transformer(ModelConfig(words.vocab_size, 2, 32, 2, 2, 32))
    model.initialize(seed)
    if config.uses_critic:
        attach_critic(model)
    stream = stream_type(engine_type(model, words), config, {problem.name: problem}, seed, 16, world)
    stage = Stage(
        "rl",
        steps,
        stream,
        stream.loss,
        lambda progress: 1.0,
    )
    rates = OptimizerConfig(matrix_lr=0.01, embedding_lr=0.02, head_lr=0.02, scalar_lr=0.02, adam_eps=1e-8)
    optimizer = Optimizer(model, rates, world, learning_rate)
    for _ in range(steps):
        loop.train_step(stage, model, optimizer, stream.next(), world)
        stream.metrics()
    return min(probability(model, words, problem, prompt) for prompt in problem.prompts)


@torch.no_grad()
def probability(model: Transformer, words: Tokenizer, problem: Problem, prompt: str) -> float:
    """Returns the probability that the model answers a prompt optimally, summed over all optimal answers."""
    sequences, weights = [encode_question(words, Question(problem.name, prompt, ""))], torch.ones(1)
    for letters in problem.best(prompt):
        tokens = [words.encode(letter)[0] for letter in letters]
        logits = model.compute_logits(model(torch.tensor(sequences))[:, -1])  # (answers so far, V)
        chances = logits.softmax(-1)[:, tokens]
        weights = (weights[:, None] * chances).flatten()
        sequences = [[*before, token] for before in sequences for token in tokens]
    return float(weights.sum())


def main() -> None:
    """Prints the probability of the optimum after growing numbers of steps, for choosing the limits of the tests."""
    import sys

    torch.set_num_threads(1)
    for problem in (BANDIT, TWO_STEPS, COPY):
        for algorithm in sys.argv[2:] or ("grpo", "ppo"):
            for steps in map(int, sys.argv[1].split(",")):
                probabilities = [learn(problem, settings(problem, algorithm), seed, steps) for seed in range(2)]
                print(
                    problem.name,
                    algorithm,
                    steps,
                    [round(p, 3) for p in probabilities],
                    Path(__file__).name,
                    flush=True,
                )


if __name__ == "__main__":
    main()
