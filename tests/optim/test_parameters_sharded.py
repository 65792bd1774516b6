"""Parameters sharded too: what is held and what travels, and that reading and saving see whole weights."""

from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import gather_parameters, load_parameters, unsharded
from fledgling.plan import communication
from fledgling.plan.parameters import count_matrix_parameters, count_parameters
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage
from tests.invariants.losses import batch_of
from tests.ranks import on_ranks

CONFIG = ModelConfig(
    family="fledgling", vocab_size=64, depth=4, width=32, heads=2, kv_heads=2, context=24
)  # everything divides
ODD = replace(CONFIG, vocab_size=61, depth=3, kv_heads=1, intermediate_size=97, norm="rms_weighted")


class Counted:
    """Payload bytes that this rank gives to others, by the verbs of World."""

    def __init__(self):
        self.sent, self.counting = 0, True
        for name in ("all_to_all", "reduce_scatter", "all_gather"):
            setattr(World, name, self.counted(getattr(World, name), whole=name != "all_gather"))

    def counted(self, verb, whole):
        def speak(world, sent, *more):
            if self.counting:
                self.sent += sent.nbytes * (world.size - 1) // (world.size if whole else 1)
            return verb(world, sent, *more)

        return speak

    def silent(self, function):
        def run(*args):
            self.counting = False
            try:
                return function(*args)
            finally:
                self.counting = True

        return run


def made(config, zero=3):
    world, model = World.start("cpu"), Transformer(config)
    model.initialize(1)
    return world, model, Optimizer(model, OptimizerConfig(zero_stage=zero), world)


def steps(config, world, model, optimizer, count, micro_batches=1):
    stage = Stage("pretrain", count, None, next_token_loss, lambda progress: 1.0)
    for step in range(count):
        batches = batch_of("pretrain", world.size * micro_batches, 24, config.vocab_size, seed=step).split(1)
        loop.train_step(stage, model, optimizer, batches[world.rank :: world.size], world)


def _sent(micro_batches):
    counted = Counted()
    world, model, optimizer = made(CONFIG)
    optimizer._gradient_norm = counted.silent(optimizer._gradient_norm)  # a few numbers, which the planner leaves out
    steps(CONFIG, world, model, optimizer, 1, micro_batches)
    return counted.sent


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 1), (4, 2)])
def test_what_travels_is_what_the_planner_says(ranks, micro_batches):
    blocks = communication.ITEM_BYTES * count_matrix_parameters(CONFIG)
    tables = communication.ITEM_BYTES * count_parameters(CONFIG)["total"] - blocks
    expected = communication.zero3(tables, blocks, ranks, micro_batches).sent
    assert tuple(on_ranks(ranks, _sent, micro_batches)) == expected


def _seen():
    world, model, optimizer = made(ODD)
    held = optimizer.persistent_bytes() - sum(tensor.nbytes for tensor in optimizer.state.values())
    steps(ODD, world, model, optimizer, 2)
    before = {name: tensor.clone() for name, tensor in gather_parameters(model, world).items()}
    with unsharded(model):
        read = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for _ in range(2 + world.rank):  # each as often as it likes, with gradients or without
            with torch.no_grad():
                model(torch.zeros(1, 24, dtype=torch.long))
    sharded_again = optimizer.persistent_bytes() - sum(tensor.nbytes for tensor in optimizer.state.values())
    steps(ODD, world, model, optimizer, 1)
    after = {name: tensor.clone() for name, tensor in gather_parameters(model, world).items()}
    load_parameters(model, read, world)
    filled = gather_parameters(model, world)
    return {"held": held, "again": sharded_again, "before": before, "read": read, "after": after, "filled": filled}


def test_between_steps_rows_are_held_and_reading_disturbs_nothing():
    ranks = on_ranks(4, _seen)
    rows = {name: p.shape[0] for name, p in Transformer(ODD).named_parameters() if p.ndim == 2}
    assert any(count % 4 for count in rows.values()), "rows that do not divide"
    total = sum(p.nbytes for p in Transformer(ODD).parameters())
    first, others = ranks[0], ranks[1:]
    assert sum(rank["held"] for rank in ranks) < 1.1 * total, "the small ones are on every rank, nothing else is"
    assert not any(name in other["before"] for other in others for name in rows), "the main rank alone gathers"
    for rank in ranks:
        assert rank["held"] == rank["again"]
        assert all(torch.equal(rank["read"][name], value) for name, value in first["before"].items())
    assert not any(torch.equal(first["after"][name], value) for name, value in first["before"].items())
    assert all(torch.equal(first["filled"][name], value) for name, value in first["before"].items())


def test_one_rank_holds_everything():
    _, model, optimizer = made(CONFIG)
    assert not optimizer.needs_equal_passes
    assert optimizer.persistent_bytes() >= sum(p.nbytes for p in model.parameters())
