"""The weights do not depend on the number of ranks: to 1e-6 in fast mode, bit for bit in exact mode.

For all four stages, ZeRO 0, 1 and 2, rows and layers that do not divide, micro-batches that do not divide.
"""

from functools import partial

import pytest
import torch
from torch import nn

from fledgling.config import OptimizerTable, RLTable
from fledgling.data.batch import IGNORE, Batch
from fledgling.model.config import ModelConfig
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.train import loop
from fledgling.train.loss import next_token, policy_gradient
from fledgling.train.stage import Stage
from fledgling.world import World
from tests.ranks import on_ranks, one_thread

CONFIG = ModelConfig(vocab_size=61, depth=3, width=32, heads=2, kv_heads=1, context=24)
STAGES = ("pretrain", "midtrain", "sft", "rl")
STEPS = 3
CASES = [  # stage, zero, exact, rows of a micro-batch
    *((stage, zero, "on", 1) for stage in STAGES for zero in (0, 1, 2)),
    *((stage, 2, "off", 1) for stage in STAGES),
    *(("sft", zero, "off", 1) for zero in (0, 1)),
    *(("sft", zero, "on", 4) for zero in (0, 1, 2)),  # 2 micro-batches of 4 and 2 rows: with 4 ranks two have none
    ("sft", 2, "off", 4),
]


def batches_of(stage: str, step: int, rows: int) -> list[Batch]:
    """Six rows with very different numbers of targets, one of them none at all, cut into micro-batches."""
    draw = torch.Generator().manual_seed(step)
    tokens, targets = torch.randint(61, (2, 6, 24), generator=draw).unbind(0)
    if stage in ("sft", "rl"):
        for row in range(6):
            targets[row, row * 5 :] = IGNORE
    batch = Batch(tokens, targets, (torch.arange(24) // 10).int().expand(6, -1).contiguous())
    if stage == "rl":
        batch.advantages = torch.randn(6, 24, generator=draw)
        batch.old_logprobs = -4 + 0.3 * torch.randn(6, 24, generator=draw)
        batch.reference_logprobs = -4 + 0.3 * torch.randn(6, 24, generator=draw)
    return batch.split(rows)


def fresh() -> Transformer:
    """A model none of whose gradients is zero at the start."""
    model = Transformer(CONFIG)
    model.initialize(1)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=draw)
    return model


def trained(stage: str, zero: int, exact: str, rows: int) -> dict:
    """Weights, state, losses and norms after a few steps of a stage on this process's ranks."""
    world, model = World.start("cpu"), fresh()
    # AdamW's quotient amplifies the rounding of gradients near zero by rate / eps: rates of 1e-3 keep it below 1e-6
    table = OptimizerTable(1e-3, 1e-3, 1e-3, 1e-3, adam_eps=1e-6, zero=zero, exact=exact)
    optimizer = Optimizer(model, table, world)
    loss = partial(policy_gradient, table=RLTable(kl=0.05)) if stage == "rl" else next_token
    one = Stage(stage, STEPS, None, loss, lambda progress: 1.0)
    curve = [
        loop.update(one, model, optimizer, batches_of(stage, step, rows)[world.rank :: world.size], world)
        for step in range(STEPS)
    ]
    return {"weights": model.state_dict(), "state": optimizer.tensors(), "curve": curve}


def all_cases() -> list[dict]:
    return [trained(*case) for case in CASES]


@pytest.fixture(scope="module")
def alone() -> list[dict]:
    with one_thread():
        return all_cases()


@pytest.mark.parametrize("size", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_the_same_weights(alone, size):
    ranks = on_ranks(size, all_cases)
    start = fresh().state_dict()
    for index, (case, expected) in enumerate(zip(CASES, alone, strict=True)):
        exact = case[2] == "on"
        for found in (ranks[rank][index] for rank in range(size)):
            for name, value in expected["weights"].items():
                assert not torch.equal(value, start[name]), f"{case}: {name} did not move"
                if exact:
                    assert torch.equal(found["weights"][name], value), f"{case}: {name}"
                else:
                    torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=1e-6, msg=f"{case}: {name}")
            if exact:
                assert found["curve"] == expected["curve"], case
        main, others = ranks[0][index]["state"], [ranks[rank][index]["state"] for rank in range(1, size)]
        assert not any(others), "only the main rank holds the whole state"
        assert main.keys() == expected["state"].keys()
        if exact:
            assert all(torch.equal(main[name], value) for name, value in expected["state"].items()), case


def test_the_stage_of_zero_changes_no_bit(alone):
    for index, (stage, _, exact, rows) in enumerate(CASES):
        if exact == "on":
            same = CASES.index((stage, 0, exact, rows))
            for name, value in alone[same]["weights"].items():
                assert torch.equal(alone[index]["weights"][name], value)
