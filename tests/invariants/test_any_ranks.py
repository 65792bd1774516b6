"""The weights do not depend on the number of ranks: to 1e-6 in fast mode, bit for bit in exact mode.

For all stages, ZeRO 0 to 3, rows and layers that do not divide, micro-batches that do not divide.
"""

import os

import pytest
import torch

from tests.invariants.losses import EVERY_WAY, LEARNED, UNMOVED
from tests.invariants.many_ranks import fresh, results_of
from tests.ranks import on_ranks, one_thread

# AdamW's quotient amplifies the rounding of gradients near zero by rate / eps: 1e-3 / 1e-6 keeps it small
STEPS = 3 if os.environ.get("FLEDGLING_FULL") else 2  # the second one reads the moments of the first
EVERY_CASE = [  # stage, zero, exact, rows of a micro-batch
    *((stage, zero, "on", 1) for stage in EVERY_WAY for zero in (0, 1, 2, 3)),
    *((stage, zero, "off", 1) for stage in EVERY_WAY for zero in (2, 3)),
    *((stage, 2, "on", 1) for stage in LEARNED if stage not in EVERY_WAY),  # the same loop and optimizer
    *(("sft", zero, "off", 1) for zero in (0, 1)),
    *(("sft", zero, "on", 4) for zero in (0, 1, 2, 3)),  # 2 micro-batches of 4 and 2 rows: with 4 ranks two have none
    *(("sft", zero, "off", 4) for zero in (2, 3)),
]
CASES = [  # `make test` takes all of pretrain's and every second one of the others
    case
    for number, case in enumerate(EVERY_CASE)
    if os.environ.get("FLEDGLING_FULL") or case[0] == "pretrain" or number % 2
]
FEW = {  # the others are the campaign's (tests/campaigns/any_ranks.py)
    4: [case for case in CASES if case[1] in (2, 3)],
    8: [("pretrain", 3, "on", 1), ("sft", 2, "on", 1), ("ppo", 2, "on", 1), ("ppo", 3, "on", 1)],
}


@pytest.fixture(scope="module")
def alone() -> list[dict]:
    with one_thread():
        return results_of(CASES, STEPS)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_any_number_of_ranks_gives_the_same_weights(alone, size):
    cases = [case for case in CASES if case in FEW[size]] if size in FEW else CASES
    ranks = on_ranks(size, results_of, cases, STEPS)
    for index, case in enumerate(cases):
        expected, exact = alone[CASES.index(case)], case[2] == "on"
        start = fresh(case[0]).state_dict()
        for found in (ranks[rank][index] for rank in range(size)):
            for name, value in expected["weights"].items():
                moved = not torch.equal(value, start[name])
                assert moved != ((case[0], name) in UNMOVED), f"{case}: {name} moved: {moved}"
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
        if exact == "on" and (stage, 0, exact, rows) in CASES:
            same = CASES.index((stage, 0, exact, rows))
            for name, value in alone[same]["weights"].items():
                assert torch.equal(alone[index]["weights"][name], value)
