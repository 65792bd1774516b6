"""Embedding and head tied at first: the same weights as of a tied model, then two matrices that go their ways."""

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.model.tied_initialization import tie_initial_weights
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage
from tests.invariants.losses import batch_of

STAGE = Stage("pretrain", 5, None, next_token_loss, lambda progress: 1.0)


def make_run(family: str, updates: int, late: bool = False, **options) -> tuple[Transformer, Optimizer]:
    model = Transformer(ModelConfig(61, 1, 32, 2, context=24, family=family, **options))
    model.initialize(1)
    if updates:
        tie_initial_weights(model)
    rates = OptimizerConfig(embedding_lr=0.3, head_lr=0.004, tied_updates=updates)
    optimizer = Optimizer(model, rates, World.start("cpu"))
    optimizer.decides_on_device = late  # as on CUDA, where no count of updates is read
    return model, optimizer


def train(model: Transformer, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        batch = batch_of("pretrain", 4, 24, 61, seed=step)
        loop.train_step(STAGE, model, optimizer, [batch], optimizer.world)


@pytest.mark.parametrize(("family", "late"), [("fledgling", False), ("fledgling", True), ("llama", False)])
def test_while_tied_the_model_is_a_tied_one_and_after_it_two_matrices(family, late):
    tied, whole = make_run(family, 0, tie_embeddings=True)
    model, optimizer = make_run(family, 3, late, tie_embeddings=False)
    assert all(torch.equal(each.weight, tied.head.weight) for each in (model.embedding, model.head))
    model.load_state_dict(tied.state_dict())  # the head of llama is drawn before its blocks, unless it is tied
    train(tied, whole, range(3))
    train(model, optimizer, range(3))
    for name, value in tied.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-5, atol=1e-7)
    assert torch.equal(model.embedding.weight, model.head.weight)
    state = optimizer.full_state_dict()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[f"embedding.weight.{moment}"], state[f"head.weight.{moment}"])
    train(model, optimizer, range(3, 4))
    embedding, head = ((each.weight - tied.head.weight).abs().max() for each in (model.embedding, model.head))
    assert embedding > 0.1 > head > 0, "each has its own rate again"


def test_a_resume_unties_at_the_same_update():
    model, optimizer = make_run("fledgling", 3)
    train(model, optimizer, range(5))
    first, before = make_run("fledgling", 3)
    train(first, before, range(2))
    second, after = make_run("fledgling", 3)
    second.load_state_dict(first.state_dict())
    after.load_full_state_dict(before.full_state_dict())
    train(second, after, range(2, 5))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in model.state_dict().items())
