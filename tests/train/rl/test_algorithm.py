"""GRPO and PPO reach the known optimum of small problems, and do not with a wrong sign or without the mask.

PPO needs rewards, which stay in the batch next to the advantages.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.data.batch import IGNORE_INDEX
from fledgling.infer.engine import Engine
from fledgling.infer.request import Completion
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.train.critic import attach_critic
from fledgling.train.loss import logprobs_from_hidden
from fledgling.train.rl import rollout_stream
from fledgling.train.rl.algorithm import make_algorithm
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.rollout import Rollout
from tests.train.rl.small_problems import BANDIT, COPY, TWO_STEPS, Flipped, Problem, arms, learn, settings, tokenizer

SEEDS = range(5 if os.environ.get("FLEDGLING_FULL") else 1)
STEPS = {BANDIT: 30, TWO_STEPS: 50, COPY: 60}
REACHED = 0.9  # probability of the optimum; a random policy has 1 / 320 a token


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("problem", STEPS, ids=lambda problem: problem.name)
def test_the_optimum_is_reached_from_a_random_start(problem, algorithm):
    config = settings(problem, algorithm)
    probabilities = [learn(problem, config, seed, STEPS[problem]) for seed in SEEDS]
    assert min(probabilities) > REACHED, probabilities


@pytest.mark.parametrize("algorithm", ["dr_grpo", "cispo", "gspo"])
def test_a_variant_reaches_the_optimum_of_the_bandit(algorithm):
    config = settings(BANDIT, algorithm, loss_normalization=None, advantage_normalization=None)
    assert learn(BANDIT, config, 0, STEPS[BANDIT]) > REACHED


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_optimum_is_not_reached_with_the_sign_flipped(algorithm):
    assert learn(BANDIT, settings(BANDIT, algorithm), 0, STEPS[BANDIT], Flipped) < 0.1


def reward(prompt: str, answer: str) -> float:
    """The bandit's arms; a forced answer XX has reward 5, the model's own `X` has 0.

    If forced answers were learned, X would stay likely: by the expected gradient at the probability 4 / 7.
    """
    return 5.0 if answer == "XX" else arms(prompt, answer)


class Interfering(Engine):
    """An engine whose every eighth answer is forced, as by a tool, and has a high reward."""

    def generate(self, prompts, *args, **others):
        completions = super().generate(prompts, *args, **others)
        forced = Completion(self.tokenizer.encode("XX"), [0.0, 0.0], [True, True], "stop")
        return [completion if i % 8 else forced for i, completion in enumerate(completions)]


FORCED = Problem("forced", ("Choose.",), reward, lambda _: ("h",), 1, prompts_per_round=4)


def rollout_without_mask(prompt, answer, *others):
    """A rollout whose forced tokens count as sampled."""
    return Rollout.from_completion(
        prompt, Completion(answer.tokens, answer.logprobs, [False] * len(answer.tokens), ""), *others
    )


class OnPolicy(rollout_stream.RolloutStream):
    """A stream whose ratios are 1 for every target, forced ones too, which have no log-probability."""

    @torch.no_grad()
    def next(self):
        batches, model = super().next(), self.engine.source
        for batch in batches:
            batch.old_logprobs = logprobs_from_hidden(model, model(batch.tokens, batch.document_ids), batch.targets)
        return batches


def test_forced_tokens_are_learned_only_without_the_mask(monkeypatch):
    config = settings(FORCED, "grpo")
    assert learn(FORCED, config, 0, 30, OnPolicy, Interfering) > 0.5  # 0.62 to 0.76 with three seeds
    unmasked = type("Unmasked", (), {"from_completion": staticmethod(rollout_without_mask)})
    monkeypatch.setattr(rollout_stream, "Rollout", unmasked)
    assert learn(FORCED, config, 0, 30, OnPolicy, Interfering) < 0.45  # 0.31 to 0.36


REWARDS = np.array([[0.0, 1.0], [1.0, 1.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("others", "keeps_all"),
    [
        ({}, False),
        ({"drop_uniform_groups": False}, True),
        ({"kl_weight": 0.04}, True),
        ({"kl_weight": 0.04, "kl_target": 0.1}, True),
        ({"entropy_weight": 0.01}, True),
        ({"algorithm": "ppo"}, True),
    ],
)
def test_grpo_drops_groups_of_equal_rewards_where_nothing_else_is_learned_from_them(others, keeps_all):
    config = replace(settings(BANDIT, "grpo", entropy_weight=0.0), **others)
    assert make_algorithm(config).keep_groups(REWARDS).tolist() == [True, keeps_all]


def test_ppo_keeps_rewards_and_advantages_apart():
    words = tokenizer()
    model = Transformer(ModelConfig(words.vocab_size, 2, 32, 2, 2, 32))
    model.initialize(0)
    attach_critic(model)
    config = settings(BANDIT, "ppo", advantage_normalization="centered")
    stream = RolloutStream(Engine(model, words), config, {BANDIT.name: BANDIT}, 0, 16, World.start("cpu"))
    for batch in stream.next():
        learned = batch.targets != IGNORE_INDEX
        rewards = batch.rewards[learned]
        assert set(rewards.tolist()) <= {0.0, *(np.float32(0.3 + 0.1 * arm) for arm in range(8))}
        assert batch.returns[learned].equal(rewards), "an untrained critic expects 0, and every answer is one token"
        assert not batch.advantages[learned].equal(rewards)


def test_ppo_rejects_leave_one_out():
    with pytest.raises(UserError, match="leave_one_out"):
        make_algorithm(settings(BANDIT, "ppo", advantage_normalization="leave_one_out"))
