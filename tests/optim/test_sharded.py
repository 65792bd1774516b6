"""Sharded parameters: what ranks hold and send, and that reading and saving see whole weights."""

from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.model.transformer import Transformer
from fledgling.optim import optimizer as optimizer_module
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

# everything divides
EVEN = ModelConfig(vocab_size=64, depth=4, width=32, heads=2, kv_heads=2, context=24, preset="nanochat-2025")
UNEVEN = replace(EVEN, vocab_size=61, depth=3, kv_heads=1, intermediate_size=97, norm="rms_weighted")


class TrafficCounter:
    """Counts the payload bytes that this rank sends to others through the methods of World."""

    def __init__(self):
        self.sent, self.counting = 0, True
        for name in ("all_to_all", "reduce_scatter", "all_gather"):
            setattr(World, name, self._count(getattr(World, name), sends_whole=name != "all_gather"))

    def _count(self, method, sends_whole):
        def counted(world, tensor, *more):
            if self.counting:
                self.sent += tensor.nbytes * (world.size - 1) // (world.size if sends_whole else 1)
            return method(world, tensor, *more)

        return counted

    def exclude(self, function):
        def uncounted(*args):
            self.counting = False
            try:
                return function(*args)
            finally:
                self.counting = True

        return uncounted


def make_optimizer(config, zero_stage=3):
    world, model = World.start("cpu"), Transformer(config)
    model.initialize(1)
    return world, model, Optimizer(model, OptimizerConfig(zero_stage=zero_stage), world)


def run_steps(config, world, model, optimizer, count, micro_batches=1):
    stage = Stage("pretrain", count, None, next_token_loss, lambda progress: 1.0)
    for step in range(count):
        batches = batch_of("pretrain", world.size * micro_batches, 24, config.vocab_size, seed=step).split(1)
        loop.train_step(stage, model, optimizer, batches[world.rank :: world.size], world)


def _measure_sent(micro_batches):
    counter = TrafficCounter()
    world, model, optimizer = make_optimizer(EVEN)
    # the norm sends a few numbers, which the planner does not count
    optimizer_module.compute_gradient_norm = counter.exclude(optimizer_module.compute_gradient_norm)
    run_steps(EVEN, world, model, optimizer, 1, micro_batches)
    return counter.sent


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 1), (4, 2)])
def test_ranks_send_what_the_planner_says(ranks, micro_batches):
    blocks = communication.ITEM_BYTES * count_matrix_parameters(EVEN)
    tables = communication.ITEM_BYTES * count_parameters(EVEN)["total"] - blocks
    expected = communication.zero3(tables, blocks, ranks, micro_batches).sent
    assert tuple(on_ranks(ranks, _measure_sent, micro_batches)) == expected


def parameter_bytes(optimizer):
    return optimizer.persistent_bytes() - sum(tensor.nbytes for tensor in optimizer.state.values())


def copy_parameters(model, world):
    return {name: tensor.clone() for name, tensor in gather_parameters(model, world).items()}


def _train_and_read():
    world, model, optimizer = make_optimizer(UNEVEN)
    held = parameter_bytes(optimizer)
    run_steps(UNEVEN, world, model, optimizer, 2)
    before = copy_parameters(model, world)
    with unsharded(model):
        read = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for _ in range(2 + world.rank):  # ranks may make different numbers of passes here
            with torch.no_grad():
                model(torch.zeros(1, 24, dtype=torch.long))
    held_again = parameter_bytes(optimizer)
    run_steps(UNEVEN, world, model, optimizer, 1)
    after = copy_parameters(model, world)
    load_parameters(model, read, world)
    loaded = gather_parameters(model, world)
    half = [_train_in_half(zero_stage) for zero_stage in (1, 3)]
    return {
        **{"held": held, "again": held_again, "before": before, "read": read},
        **{"after": after, "loaded": loaded, "half": half},
    }


def _train_in_half(zero_stage):
    """The weights, as a checkpoint has them, after steps with products in bf16."""
    world, model = World.start("cpu"), Transformer(UNEVEN, torch.bfloat16)
    model.initialize(1)
    optimizer = Optimizer(model, OptimizerConfig(zero_stage=zero_stage), world, dtype=torch.bfloat16)
    run_steps(UNEVEN, world, model, optimizer, 2)
    return copy_parameters(model, world) | optimizer.gather_exact_parameters()


def test_between_steps_rows_are_held_and_reading_changes_nothing():
    ranks = on_ranks(4, _train_and_read)
    rows = {name: p.shape[0] for name, p in Transformer(UNEVEN).named_parameters() if p.ndim == 2}
    assert any(count % 4 for count in rows.values()), "rows that do not divide"
    total = sum(p.nbytes for p in Transformer(UNEVEN).parameters())
    main, others = ranks[0], ranks[1:]
    assert sum(rank["held"] for rank in ranks) < 1.1 * total, "only the small parameters are on every rank"
    assert not any(name in other["before"] for other in others for name in rows), "only the main rank gathers"
    for rank in ranks:
        assert rank["held"] == rank["again"]
        assert all(torch.equal(rank["read"][name], value) for name, value in main["before"].items())
    assert not any(torch.equal(main["after"][name], value) for name, value in main["before"].items())
    assert all(torch.equal(main["loaded"][name], value) for name, value in main["before"].items())
    whole, sharded = main["half"]  # blocks are gathered in bf16
    assert whole.keys() == sharded.keys() and all(torch.equal(sharded[name], value) for name, value in whole.items())


def test_one_rank_holds_everything():
    _, model, optimizer = make_optimizer(EVEN)
    assert not optimizer.needs_equal_passes
    assert optimizer.persistent_bytes() >= sum(p.nbytes for p in model.parameters())
