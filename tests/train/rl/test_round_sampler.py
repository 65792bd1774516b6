"""Rounds that are sampled ahead: by which weights, and that a stop in between changes nothing."""

import json

import torch

from fledgling.config import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.train.rl.rollout_stream import RolloutStream
from tests.train.rl.small_problems import BANDIT, TWO_STEPS, learn, settings, tokenizer

SMALL = {"prompts_per_round": 2, "group_size": 6}


def make_stream(stale_rounds, steps=4, noise=0, **more):
    """A stream whose weights differ with `noise`."""
    words = tokenizer()
    model = Transformer(ModelConfig(words.vocab_size, 2, 32, 2, 2, 32))
    model.initialize(0)
    set_weights(model, noise)
    config = settings(TWO_STEPS, "grpo", stale_rounds=stale_rounds, **SMALL, **more)
    tasks = {TWO_STEPS.name: TWO_STEPS}
    return RolloutStream(Engine(model, words), config, tasks, 3, 4, World.start("cpu"), steps=steps)


def set_weights(model, noise):
    """Makes one of several policies, the same for the same number."""
    generator = torch.Generator().manual_seed(noise)
    with torch.no_grad():
        model.head.weight.normal_(std=0.1, generator=generator)


def sampled_by(number, noise):
    """Tokens and log-probabilities of round `number` under the weights of `noise`, sampled there and then."""
    stream = make_stream(0, noise=noise)
    stream.step = number
    return [(batch.tokens, batch.old_logprobs) for batch in stream.next()]


def assert_equal(batches, expected):
    for batch, (tokens, logprobs) in zip(batches, expected, strict=True):
        assert batch.tokens.equal(tokens) and batch.old_logprobs.equal(logprobs)


def test_a_round_is_of_the_weights_before_it_by_exactly_the_recipes_rounds():
    for stale_rounds, weights in ((0, [0, 1, 2, 3]), (1, [0, 0, 1, 2]), (2, [0, 0, 0, 1])):
        stream = make_stream(stale_rounds)
        try:
            for number in range(4):
                set_weights(stream.engine.source, number)
                assert_equal(stream.next(), sampled_by(number, weights[number]))
            assert not stream.sampler.pending, "no round beyond the stage's last"
        finally:
            stream.close()


def test_a_stop_between_rounds_resumes_with_what_was_sampled_ahead():
    stream = make_stream(2)
    set_weights(stream.engine.source, 0)
    stream.next()
    set_weights(stream.engine.source, 1)
    stream.next()
    state = json.loads(json.dumps(stream.state_dict()))
    again = make_stream(2, noise=7)
    again.load_state_dict(state)
    try:
        for number in (2, 3):
            for one in (stream, again):
                set_weights(one.engine.source, number)
            for batch, other in zip(stream.next(), again.next(), strict=True):
                for name, value in vars(batch).items():
                    assert value is None or value.equal(getattr(other, name)), name
        assert again.state_dict()["pending"] == {}
    finally:
        stream.close()
        again.close()


def test_skipped_rounds_are_made_up_for_and_no_round_is_sampled_that_no_step_reads():
    """Rounds of two steps: three steps of five are made, two are skipped with the rest of their round, two follow."""
    stream = make_stream(1, steps=5, minibatches=2)
    again = make_stream(1, steps=5, minibatches=2, noise=7)
    try:
        for _ in range(3):
            stream.next()
        stream.skip(2)
        assert stream.step == 6
        state = json.loads(json.dumps(stream.state_dict()))
        assert state["skipped"] == 3
        again.load_state_dict(state)
        for one in (stream, again):
            set_weights(one.engine.source, 5)
            for _ in range(2):
                assert one.next()
            assert one.step == 8 and not one.sampler.pending
    finally:
        stream.close()
        again.close()


def test_the_optimum_is_reached_with_stale_answers_too():
    assert learn(BANDIT, settings(BANDIT, "grpo", stale_rounds=1), 0, 25) > 0.5
