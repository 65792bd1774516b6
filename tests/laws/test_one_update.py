"""The update does not depend on how a batch is split into micro-batches, in any of the four stages."""

from functools import partial

import pytest
import torch

from fledgling.config import OptimizerTable, RLTable
from fledgling.data.batch import IGNORE, Batch
from fledgling.model.config import ModelConfig
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.train import loop
from fledgling.train.loss import next_token, policy_gradient
from fledgling.train.stage import Stage
from fledgling.world import World

CONFIG = ModelConfig(60, 2, 32, 2, 1, 24)


def batch_of(stage: str) -> Batch:
    """Eight rows with very different numbers of targets, one of them none at all."""
    torch.manual_seed(0)
    tokens, targets = torch.randint(60, (2, 8, 24)).unbind(0)
    if stage in ("sft", "rl"):
        for row in range(8):
            targets[row, row * 3 :] = IGNORE
    documents = (torch.arange(24) // 10).int().expand(8, -1).contiguous()
    batch = Batch(tokens, targets, documents)
    if stage == "rl":
        batch.advantages = torch.randn(8, 24)
        batch.old_logprobs = -4 + 0.3 * torch.randn(8, 24)
        batch.reference_logprobs = -4 + 0.3 * torch.randn(8, 24)
    return batch


def fresh() -> Transformer:
    """A model none of whose gradients is zero at the start."""
    model = Transformer(CONFIG)
    model.initialize(1)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def moved(stage: str, rows: int) -> dict[str, torch.Tensor]:
    """The weights after three updates on the same eight rows, `rows` at a time."""
    model = fresh()
    loss = partial(policy_gradient, table=RLTable(kl=0.05)) if stage == "rl" else next_token
    one = Stage(stage, 3, None, loss, lambda progress: 1.0)
    world = World.start("cpu")
    optimizer = Optimizer(model, OptimizerTable(matrix_rate=1e-3, adam_eps=1e-6), world)
    for _ in range(3):
        loop.update(one, model, optimizer, batch_of(stage).split(rows), world)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "rl"])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_any_split_gives_the_same_update(stage, rows):
    whole, split = moved(stage, 8), moved(stage, rows)
    start = fresh()
    for name, value in whole.items():
        distance = (value - start.state_dict()[name]).norm()
        assert distance > 0, f"{name} did not move"
        assert (split[name] - value).norm() / distance < 1e-3, name


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl"])
def test_any_split_gives_the_same_gradient(stage, rows):
    """At fp32's own precision: the update's bf16 orthogonalization stays out of it."""

    def gradients(rows: int) -> list[torch.Tensor]:
        model = Transformer(CONFIG)
        model.initialize(1)
        seen: list[torch.Tensor] = []
        optimizer = Optimizer(model, OptimizerTable(), World.start("cpu"))
        optimizer.step = lambda: seen.extend(optimizer.gradients.finish().values()) or 0.0
        loss = partial(policy_gradient, table=RLTable(kl=0.05)) if stage == "rl" else next_token
        one = Stage(stage, 1, None, loss, lambda progress: 1.0)
        loop.update(one, model, optimizer, batch_of(stage).split(rows), World.start("cpu"))
        return seen

    for whole, split in zip(gradients(8), gradients(rows), strict=True):
        torch.testing.assert_close(split, whole, rtol=2e-5, atol=1e-7)


def test_a_batch_without_targets_moves_nothing_and_divides_by_nothing():
    model = Transformer(CONFIG)
    model.initialize(1)
    batch = batch_of("pretrain")
    batch.targets[:] = IGNORE
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = Stage("sft", 1, None, next_token, lambda progress: 1.0)
    optimizer = Optimizer(model, OptimizerTable(), World.start("cpu"))
    loss, norm = loop.update(one, model, optimizer, [batch], World.start("cpu"))
    assert loss == 0 and norm == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
