"""The update does not depend on how a batch is split into micro-batches, in any stage."""

import math
from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import gather_parameters
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage
from tests.invariants.losses import LEARNED, UNMOVED, batch_of, loss_of, prepared
from tests.ranks import on_ranks

CONFIG = ModelConfig(60, 2, 32, 2, 1, 24)
FAMILIES = {
    "fledgling": CONFIG,
    "gpt2": ModelConfig(family="gpt2", vocab_size=60, depth=2, width=32, heads=2, kv_heads=2, context=24),
    "llama": ModelConfig(family="llama", vocab_size=60, depth=2, width=32, heads=2, kv_heads=1, context=24),
}
CASES = [(stage, "fledgling") for stage in LEARNED]  # and the other families by one stage of each kind
CASES += [(stage, family) for stage in ("pretrain", "sft", "rl") for family in ("gpt2", "llama")]


def fresh(stage: str, family: str = "fledgling") -> Transformer:
    model = Transformer(FAMILIES[family])
    model.initialize(1)
    return prepared(stage, model)


def eight(stage: str) -> Batch:
    return batch_of(stage, 8, 24, 60, seed=0)


def moved(stage: str, family: str, rows: int) -> dict[str, torch.Tensor]:
    """The weights after three updates on the same eight rows, `rows` at a time."""
    model = fresh(stage, family)
    one = Stage(stage, 3, None, loss_of(stage), lambda progress: 1.0)
    world = World.start("cpu")
    optimizer = Optimizer(model, OptimizerConfig(matrix_lr=1e-3, adam_eps=1e-6), world)
    for _ in range(3):
        loop.train_step(one, model, optimizer, eight(stage).split(rows), world)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("stage", "family"), CASES)
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_any_split_gives_the_same_update(stage, family, rows):
    whole, split = moved(stage, family, 8), moved(stage, family, rows)
    start = fresh(stage, family)
    for name, value in whole.items():
        if name.endswith("k_proj.bias"):
            continue  # adds the same to all scores of a query: its gradient is rounding and nothing else
        if (stage, name) in UNMOVED:
            assert value.equal(start.state_dict()[name])
            continue
        distance = (value - start.state_dict()[name]).norm()
        assert distance > 0, f"{name} did not move"
        assert (split[name] - value).norm() / distance < 1e-3, name


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize(("stage", "family"), CASES)
def test_any_split_gives_the_same_gradient(stage, family, rows):
    """At fp32's own precision: the update's bf16 orthogonalization stays out of it."""

    def gradients(rows: int) -> list[torch.Tensor]:
        model = fresh(stage, family)
        seen: list[torch.Tensor] = []
        optimizer = Optimizer(model, OptimizerConfig(), World.start("cpu"))
        optimizer.step = lambda hold=False: seen.extend(optimizer.gradients.finish().values()) or 0.0
        one = Stage(stage, 1, None, loss_of(stage), lambda progress: 1.0)
        loop.train_step(one, model, optimizer, eight(stage).split(rows), World.start("cpu"))
        return seen

    for whole, split in zip(gradients(8), gradients(rows), strict=True):
        torch.testing.assert_close(split, whole, rtol=2e-5, atol=1e-7)


RULES = [
    {"matrix_optimizer": rule, "weight_decay": 0.1, "cautious_weight_decay": cautious}
    for rule in ("muon", "normuon", "adamw")
    for cautious in (False, True)
]


def without_targets(stage: str, rows: int = 2) -> Batch:
    batch = batch_of(stage, rows, 24, 60, seed=7)
    batch.targets[:] = IGNORE_INDEX
    return batch


def everything(model: Transformer, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Weights, moments and the count of updates, copied."""
    return {name: value.clone() for name, value in {**model.state_dict(), **optimizer.full_state_dict()}.items()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_step_without_targets_changes_no_weight_no_moment_and_no_count(stage, rule):
    """After steps whose momentum is left, which Muon would make a whole step of."""
    model, world = fresh(stage), World.start("cpu")
    optimizer = Optimizer(model, OptimizerConfig(**rule), world)
    one = Stage(stage, 3, None, loss_of(stage), lambda progress: 1.0)
    for _ in range(2):
        loop.train_step(one, model, optimizer, eight(stage).split(4), world)
    before = everything(model, optimizer)
    for batches in ([without_targets(stage)], [without_targets(stage, 1)] * 3):
        loss, norm = loop.train_step(one, model, optimizer, batches, world)
        assert loss == 0 and norm == 0
        after = everything(model, optimizer)
        assert before["count"] == 2 and [n for n, value in after.items() if not value.equal(before[n])] == []
    loop.train_step(one, model, optimizer, eight(stage).split(4), world)
    assert everything(model, optimizer)["count"] == 3


@pytest.mark.parametrize("stage", LEARNED)
def test_a_micro_batch_without_targets_changes_no_bit_of_a_step(stage):
    def moved_with(*extra: Batch) -> dict[str, torch.Tensor]:
        model, world = fresh(stage), World.start("cpu")
        optimizer = Optimizer(model, OptimizerConfig(weight_decay=0.1), world)
        one = Stage(stage, 3, None, loss_of(stage), lambda progress: 1.0)
        for _ in range(2):
            loop.train_step(one, model, optimizer, [*eight(stage).split(8), *extra], world)
        return everything(model, optimizer)

    alone, padded = moved_with(), moved_with(without_targets(stage), without_targets(stage, 1))
    assert [name for name, value in alone.items() if not value.equal(padded[name])] == []


def shares_of_nothing(late: bool) -> dict[int, list[str]]:
    """On each ZeRO stage: two steps in which rank 1 alone has targets, one without any, one that is not finite there.

    late: whether to update is decided where the weights are, as on CUDA.

    Returns:
        What the last two steps changed, by stage.
    """
    changed = {}
    for zero_stage in range(4):
        model, world = fresh("sft"), World.start("cpu")
        optimizer = Optimizer(model, OptimizerConfig(weight_decay=0.1, zero_stage=zero_stage), world)
        optimizer.decides_on_device = late
        one = Stage("sft", 3, None, loss_of("sft"), lambda progress: 1.0)
        for _ in range(2):
            batches = eight("sft").split(4) if world.rank else [without_targets("sft")]
            loop.train_step(one, model, optimizer, batches, world)
        assert optimizer.updates == 2

        def now(model=model, optimizer=optimizer, world=world) -> dict[str, torch.Tensor]:
            tensors = {**gather_parameters(model, world), **optimizer.full_state_dict()}
            return {name: value.clone() for name, value in tensors.items()}

        before = now()
        loop.train_step(one, model, optimizer, [without_targets("sft")] * (1 + world.rank), world)
        bad = replace(one, loss=lambda *step, one=one, world=world: one.loss(*step) * (math.nan if world.rank else 1))
        loss, _ = loop.train_step(bad, model, optimizer, eight("sft").split(4)[: 1 + world.rank], world)
        assert math.isnan(loss)
        changed[zero_stage] = [name for name, value in now().items() if not value.equal(before[name])]
    return changed


@pytest.mark.parametrize("late", [False, True])
def test_a_step_without_targets_or_not_finite_on_one_rank_changes_nothing_on_several_ranks(late):
    nothing: dict[int, list[str]] = {stage: [] for stage in range(4)}
    assert on_ranks(2, shares_of_nothing, late) == [nothing, nothing]


def test_a_batch_without_targets_moves_nothing_and_divides_by_nothing():
    model = Transformer(CONFIG)
    model.initialize(1)
    batch = eight("pretrain")
    batch.targets[:] = IGNORE_INDEX
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = Stage("sft", 1, None, next_token_loss, lambda progress: 1.0)
    optimizer = Optimizer(model, OptimizerConfig(), World.start("cpu"))
    loss, norm = loop.train_step(one, model, optimizer, [batch], World.start("cpu"))
    assert loss == 0 and norm == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
