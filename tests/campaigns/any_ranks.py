"""The law of many ranks over many steps: python -m tests.campaigns.any_ranks --steps 50

Every stage (PPO with its critic's loss too), ZeRO 0 to 3, exact and fast, on 1, 2, 4 and 8 gloo processes of one thread
each: how far the weights are from those of one process, as the largest difference of any value on any rank. Exact mode
promises none, fast mode less than 1e-6. What is done is kept in --out, and not done again. Exit code 1: a promise was
broken.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from fledgling.world import is_main_process
from tests.laws.losses import LEARNED
from tests.laws.many_ranks import Case, trained
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


def differences(size: int, cases: list[Case], settings: tuple, folder: Path) -> list[float]:
    """For each case the largest difference between `size` processes and one."""
    kept = folder / f"{size}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    alone = folder / "alone.pt"
    if not alone.exists():
        with one_thread():
            torch.save(weights_of([case for case in cases if case[1] == 0], settings), alone)
    expected = dict(zip([case for case in cases if case[1] == 0], torch.load(alone), strict=True))
    worst = []
    found = on_ranks(size, weights_of, cases, settings)
    for index, (stage, _, exact, rows) in enumerate(cases):
        one = expected[stage, 0, exact, rows]
        worst.append(max(float((rank[index][name] - one[name]).abs().max()) for rank in found for name in one))
    kept.write_text(json.dumps(worst))
    return worst


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
    cases = [(stage, zero, exact, ROWS) for stage in LEARNED for exact in ("on", "off") for zero in (0, 1, 2, 3)]
    table = {size: differences(size, cases, settings, folder) for size in given.ranks}
    print(f"\n{given.steps} steps, rate {given.rate}, eps {given.eps}: largest difference to one process")
    print("stage     mode   zero" + "".join(f"{f'{size} ranks':>12}" for size in table))
    for index, (stage, zero, exact, _) in enumerate(cases):
        mode = "exact" if exact == "on" else "fast"
        print(f"{stage:9} {mode:5} {zero:5}" + "".join(f"{worst[index]:12.1e}" for worst in table.values()))
    bounds = [0.0 if exact == "on" else BOUND for _, _, exact, _ in cases]
    broken = sum(found > bound for worst in table.values() for found, bound in zip(worst, bounds, strict=True))
    print(
        f"{broken} of {len(cases) * len(table)} beyond the promise: no difference in exact mode, {BOUND} in fast mode"
    )
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
