"""GRPO and PPO reach the known optimum of small problems, and do not with a wrong sign or without the mask."""

import pytest
import torch

from fledgling.infer.engine import Engine
from fledgling.infer.request import Completion
from fledgling.train.loss import logprobs_from_hidden
from fledgling.train.rl import rollout_stream
from fledgling.train.rl.rollout import Rollout
from tests.train.rl.small import BANDIT, COPY, TWO_STEPS, Flipped, Problem, arms, learn, settings

SEEDS = range(5)
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
    table = settings(problem, algorithm)
    found = [learn(problem, table, seed, STEPS[problem]) for seed in SEEDS]
    assert min(found) > REACHED, found


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_with_the_sign_flipped_it_is_not(algorithm):
    assert learn(BANDIT, settings(BANDIT, algorithm), 0, STEPS[BANDIT], Flipped) < 0.1


def worth(prompt: str, answer: str) -> float:
    """The bandit's arms; and what somebody else said, which is worth 5 where the model's own `X` is worth nothing.

    Learned from, the forced answers hold the model's own X up: by the expected gradient at the probability 4 / 7.
    """
    return 5.0 if answer == "XX" else arms(prompt, answer)


class Interfering(Engine):
    """An engine whose every eighth answer was put there by a tool: forced, and praised."""

    def generate(self, prompts, *args, **others):
        found = super().generate(prompts, *args, **others)
        forced = Completion(self.tokenizer.encode("XX"), [0.0, 0.0], [True, True], "stop")
        return [one if place % 8 else forced for place, one in enumerate(found)]


FORCED = Problem("forced", ("Choose.",), worth, lambda _: ("h",), 1)


def unmasked(prompt, answer, *others):
    """A rollout that takes what was forced for its own."""
    return Rollout.from_completion(
        prompt, Completion(answer.tokens, answer.logprobs, [False] * len(answer.tokens), ""), *others
    )


class OnPolicy(rollout_stream.RolloutStream):
    """Rounds whose ratios are 1 for every target, forced ones too: a tool has no log-probability of its own."""

    @torch.no_grad()
    def next(self):
        batches, model = super().next(), self.engine.source
        for batch in batches:
            batch.old_logprobs = logprobs_from_hidden(model, model(batch.tokens, batch.document_ids), batch.targets)
        return batches


def test_what_a_tool_wrote_is_not_learned_and_without_the_mask_it_is(monkeypatch):
    table = settings(FORCED, "grpo")
    assert learn(FORCED, table, 0, 30, OnPolicy, Interfering) > 0.8
    monkeypatch.setattr(rollout_stream, "Rollout", type("Unmasked", (), {"of": staticmethod(unmasked)}))
    assert learn(FORCED, table, 0, 30, OnPolicy, Interfering) < 0.6
