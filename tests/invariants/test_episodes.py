"""Episodes of many turns in reinforcement learning: what is learned, where a turn's reward is, how a round resumes."""

import itertools

import numpy as np
import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig, RLConfig
from fledgling.data.batch import IGNORE_INDEX
from fledgling.evals.episodes import locate_calls
from fledgling.infer.tools import ToolState
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.world import World
from fledgling.tasks import load_task
from fledgling.tasks.environments.guessing import Guessing
from fledgling.text.tokenizer import Tokenizer
from fledgling.train import loop
from fledgling.train.critic import attach_critic
from fledgling.train.rl.algorithm import make_algorithm
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.rollout import Rollout
from fledgling.train.stage import Stage
from tests.chain_model import make_chain

WORDS = Tokenizer.train(
    ["I think of a number. Find it with guess(150) higher lower yes "] * 20, 340, letter_tokens=True
)
TASK = "env:guessing"
CONFIG = RLConfig(
    tasks={TASK: 1.0},
    rewards={"task": 1.0, "turns": 0.5},
    prompts_per_round=3,
    group_size=4,
    max_new_tokens=60,
    drop_uniform_groups=False,
)


@pytest.fixture(scope="module", autouse=True)
def every_turn_is_rewarded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guessing, "turn_reward", lambda self: 0.25)
        yield


def make_stream(config=CONFIG, sharpness=0.55):
    """A stream whose model calls again and again, mostly: a chain of which every token may be missed."""
    t = WORDS
    called = [t.assistant_start, t.python_start, *t.encode("guess(150)"), t.python_end]
    assert len(set(called)) == len(called), "a chain has each token once"
    engine = make_chain(t, dict([*itertools.pairwise(called), (t.output_end, t.python_start)]), 128)
    engine.source.head.weight.data *= sharpness
    return RolloutStream(engine, config, {TASK: load_task(TASK)}, 5, 2, World.start("cpu"))


@pytest.fixture(scope="module")
def batches():
    return make_stream().next()


def list_forced(tokens):
    """Whether each token of a row is a tool's: from output_start to output_end."""
    forced, inside = [], False
    for token in tokens:
        inside = inside or token == WORDS.output_start
        forced.append(inside)
        inside = inside and token != WORDS.output_end
    return forced


def test_no_token_of_a_tool_is_learned_and_all_others_of_an_answer_are(batches):
    learned, turns = 0, 0
    for batch in batches:
        for ids, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            row = [*ids, targets[-1]]
            forced = list_forced(row)
            turns += row.count(WORDS.output_start)
            for position, target in enumerate(targets, 1):
                assert target == IGNORE_INDEX or not forced[position], f"token {position} is the tool's"
                learned += target != IGNORE_INDEX
            called = [i for i, token in enumerate(row) if token == WORDS.python_end]
            assert all(targets[i - 1] == WORDS.python_end for i in called), "the end of a call is the model's"
    assert turns >= 12 and learned > 100


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_any_split_of_episodes_gives_the_same_gradient(algorithm):
    config = RLConfig(**{**vars(CONFIG), "algorithm": algorithm})

    def gradients(rows):
        model = Transformer(ModelConfig(WORDS.vocab_size, 2, 32, 2, 1, 128))
        model.initialize(1)
        if algorithm == "ppo":
            attach_critic(model)
        stream = make_stream()
        whole = stream.next()
        for batch in whole:
            batch.returns, batch.old_values = batch.rewards.clone(), torch.zeros_like(batch.rewards)
        algorithm_loss = make_algorithm(config).loss
        stage = Stage("rl", 1, None, lambda m, b: algorithm_loss(m, b, 0.0, stream.step_metrics), lambda progress: 1.0)
        seen = []
        optimizer = Optimizer(model, OptimizerConfig(), World.start("cpu"))
        optimizer.step = lambda hold=False: seen.extend(optimizer.gradients.finish().values()) or 0.0
        loop.train_step(stage, model, optimizer, [b for one in whole for b in one.split(rows)], World.start("cpu"))
        return seen

    for whole, split in zip(gradients(2), gradients(1), strict=True):
        torch.testing.assert_close(split, whole, rtol=2e-5, atol=1e-7)


def test_a_turns_reward_is_at_the_end_of_its_call_and_the_rest_at_the_end_of_the_answer(batches):
    placed = 0
    for batch in batches:
        for ids, targets, rewards in zip(batch.tokens, batch.targets.tolist(), batch.rewards, strict=True):
            row = [*ids.tolist(), targets[-1]]
            for position in torch.nonzero(rewards).flatten().tolist():
                ends_call = row[position + 1] == WORDS.python_end and WORDS.output_start in row[position + 2 :][:1]
                later = [t for t in targets[position + 1 :][:1] if t != IGNORE_INDEX]
                assert targets[position] != IGNORE_INDEX and (ends_call or not later)
                placed += ends_call
    assert placed >= 8


def test_calls_are_located_in_the_order_of_the_transcript():
    t = WORDS
    call = [t.python_start, *t.encode("guess(1)"), t.python_end]
    output = [t.output_start, *t.encode("higher"), t.output_end]
    too_long = [t.output_start, *t.encode("error: too long"), t.output_end]
    tokens = [*call, *output, *call, *too_long, *call, *output, *call]
    assert [t.decode(tokens[: i + 1]).count("guess") for i in locate_calls(t, tokens)] == [1, 3]


@pytest.mark.parametrize("token", [1, 40, 90])
def test_a_round_that_ends_within_an_episode_is_sampled_again_with_the_same_bits(token, monkeypatch):
    whole = make_stream()
    whole.next()
    state, expected = whole.state_dict(), whole.next()
    broken, fed, feed = make_stream(), itertools.count(), ToolState.feed
    broken.load_state_dict(state)

    def killed(self, one):
        if next(fed) == token:
            raise InterruptedError
        return feed(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(ToolState, "feed", killed)
        with pytest.raises(InterruptedError):
            broken.next()
    again = make_stream()
    again.load_state_dict(state)
    for one, other in zip(again.next(), expected, strict=True):
        for name, value in vars(other).items():
            assert value is None or value.equal(getattr(one, name)), name


def test_rewards_beyond_a_row_count_at_its_end():
    sampled = np.array([False, True, True, False, True, True])
    rollout = Rollout(np.arange(6), sampled, np.zeros(6), reward=2.0, early_rewards=((2, 0.5), (5, 0.25)))
    assert rollout.place_rewards(6).tolist() == [0, 0, 0.5, 0, 0, 1.5]
    assert rollout.place_rewards(5).tolist() == [0, 0, 0.5, 0, 1.5]
    assert rollout.place_rewards(1).tolist() == [0]
