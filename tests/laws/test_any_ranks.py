"""The weights do not depend on the number of ranks: to 1e-6 in fast mode, bit for bit in exact mode.

For all stages, ZeRO 0, 1 and 2, rows and layers that do not divide, micro-batches that do not divide.
"""

import pytest
import torch

from fledgling.config import OptimizerTable
from fledgling.data.batch import Batch
from fledgling.model.config import ModelConfig
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.train import loop
from fledgling.train.stage import Stage
from fledgling.world import World
from tests.laws.losses import LEARNED, batch_of, loss_of, prepared
from tests.ranks import on_ranks, one_thread

CONFIG = ModelConfig(vocab_size=61, depth=3, width=32, heads=2, kv_heads=1, context=24)
STEPS = 3
CASES = [  # stage, zero, exact, rows of a micro-batch
    *((stage, zero, "on", 1) for stage in LEARNED for zero in (0, 1, 2)),
    *((stage, 2, "off", 1) for stage in LEARNED),
    *(("sft", zero, "off", 1) for zero in (0, 1)),
    *(("sft", zero, "on", 4) for zero in (0, 1, 2)),  # 2 micro-batches of 4 and 2 rows: with 4 ranks two have none
    ("sft", 2, "off", 4),
]


def batches_of(stage: str, step: int, rows: int) -> list[Batch]:
    """Six rows cut into micro-batches."""
    return batch_of(stage, 6, 24, 61, seed=step).split(rows)


def fresh(stage: str) -> Transformer:
    model = Transformer(CONFIG)
    model.initialize(1)
    return prepared(stage, model)


def trained(stage: str, zero: int, exact: str, rows: int) -> dict:
    """Weights, state, losses and norms after a few steps of a stage on this process's ranks."""
    world, model = World.start("cpu"), fresh(stage)
    # AdamW's quotient amplifies the rounding of gradients near zero by rate / eps: rates of 1e-3 keep it below 1e-6
    table = OptimizerTable(1e-3, 1e-3, 1e-3, 1e-3, adam_eps=1e-6, zero=zero, exact=exact)
    optimizer = Optimizer(model, table, world)
    one = Stage(stage, STEPS, None, loss_of(stage), lambda progress: 1.0)
    curve = [
        loop.update(one, model, optimizer, batches_of(stage, step, rows)[world.rank :: world.size], world)
        for step in range(STEPS)
    ]
    return {"weights": model.state_dict(), "state": optimizer.tensors(), "curve": curve}


def results_of(cases: list[tuple]) -> list[dict]:
    return [trained(*case) for case in cases]


@pytest.fixture(scope="module")
def alone() -> list[dict]:
    with one_thread():
        return results_of(CASES)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_any_number_of_ranks_gives_the_same_weights(alone, size):
    cases = CASES if size < 8 else [(stage, 2, "on", 1) for stage in LEARNED]
    ranks = on_ranks(size, results_of, cases)
    for index, case in enumerate(cases):
        expected, exact = alone[CASES.index(case)], case[2] == "on"
        start = fresh(case[0]).state_dict()
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
