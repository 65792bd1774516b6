"""The law of many ranks over many steps: python -m tests.campaigns.any_ranks --steps 50

Every stage (PPO with its critic's loss too), ZeRO 0 to 3, exact and fast, on 1, 2, 4 and 8 gloo processes of one thread
each: how far the weights are from those of one process, as the largest difference of any value on any rank. Exact mode
promises none, fast mode less than 1e-6. What is done is kept in --out, and not done again. Exit code 1: a promise was
broken.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import torch

from fledgling.runtime.world import is_main_process
from tests.invariants.losses import LEARNED
from tests.invariants.many_ranks import Case, trained
from tests.ranks import on_ranks, one_thread

BOUND = 1e-6  # of fast mode, in fp32
ROWS = 1  # of a micro-batch: six of them a step


def weights_of(cases: list[Case], settings: tuple[int, float, float]) -> list[dict[str, torch.Tensor]]:
    """The weights after training each case."""
    found = []
    for number, case in enumerate(cases):
        found.append(trained(*case, *settings)["weights"])
        if is_main_process():
            print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    return found


def differences(size: int, stage: str, settings: tuple[int, float, float], folder: Path) -> dict[Case, float]:
    """For each case of a stage the largest difference between `size` processes and one."""
    cases = [(stage, zero, exact, ROWS) for exact in ("on", "off") for zero in (0, 1, 2, 3)]
    kept, alone = folder / f"{stage}-{size}.json", folder / f"{stage}.pt"
    if not kept.exists():
        print(f"{stage} on {size} ranks", file=sys.stderr)
        if not alone.exists():
            with one_thread():
                torch.save(weights_of([case for case in cases if case[1] == 0], settings), alone)
        expected = dict(zip(("on", "off"), torch.load(alone), strict=True))
        found = on_ranks(size, weights_of, cases, settings)
        worst = [
            max(
                float((rank[index][name] - value).abs().max())
                for rank in found
                for name, value in expected[exact].items()
            )
            for index, (_, _, exact, _) in enumerate(cases)
        ]
        kept.write_text(json.dumps(worst))
    return dict(zip(cases, json.loads(kept.read_text()), strict=True))


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rate", type=float, default=1e-3, help="of every role")
    parser.add_argument("--eps", type=float, default=1e-6, help="of AdamW")
    parser.add_argument("--out", type=Path, required=True, help="where what is done is kept")
    given = parser.parse_args()
    settings = (given.steps, given.rate, given.eps)
    folder = given.out / "-".join(map(str, settings))
    folder.mkdir(parents=True, exist_ok=True)
    tables = {size: {} for size in given.ranks}
    for size, stage in product(given.ranks, LEARNED):
        tables[size] |= differences(size, stage, settings, folder)
    print(f"\n{given.steps} steps, rate {given.rate}, eps {given.eps}: largest difference to one process")
    print("stage     mode   zero" + "".join(f"{f'{size} ranks':>12}" for size in tables))
    broken = 0
    for case in next(iter(tables.values())):
        stage, zero, exact, _ = case
        found = [table[case] for table in tables.values()]
        broken += sum(one > (0.0 if exact == "on" else BOUND) for one in found)
        mode = "exact" if exact == "on" else "fast"
        print(f"{stage:9} {mode:5} {zero:5}" + "".join(f"{one:12.1e}" for one in found))
    print(f"{broken} beyond the promise: no difference in exact mode, at most {BOUND} in fast mode")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
