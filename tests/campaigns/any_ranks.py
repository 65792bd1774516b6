"""Many ranks over many steps: python -m tests.campaigns.any_ranks --steps 50 --out FOLDER

Trains every stage (PPO with its critic's loss too) with ZeRO 0 to 3, deterministic and fast, on 1, 2, 4 and 8 gloo
processes of one thread each, and prints the largest difference of any weight on any rank to one process. Deterministic
mode promises none, fast mode less than 1e-6. Results are stored in --out and not recomputed. Exit code 1: a promise
was broken.
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

BOUND = 1e-6  # largest difference in fast mode, float32
ROWS = 1  # of a micro-batch; a step has six of them


def train_cases(cases: list[Case], settings: tuple[int, float, float]) -> list[dict[str, torch.Tensor]]:
    """Returns the weights after training each case."""
    weights = []
    for number, case in enumerate(cases):
        weights.append(trained(*case, *settings)["weights"])
        if is_main_process():
            print(f"\r{number + 1}/{len(cases)}", end="", file=sys.stderr, flush=True)
    return weights


def find_differences(size: int, stage: str, settings: tuple[int, float, float], folder: Path) -> dict[Case, float]:
    """Returns for each case of a stage the largest difference between `size` processes and one."""
    cases = [(stage, zero, exact, ROWS) for exact in ("on", "off") for zero in (0, 1, 2, 3)]
    result_file, reference_file = folder / f"{stage}-{size}.json", folder / f"{stage}.pt"
    if not result_file.exists():
        print(f"{stage} on {size} ranks", file=sys.stderr)
        if not reference_file.exists():
            with one_thread():
                torch.save(train_cases([case for case in cases if case[1] == 0], settings), reference_file)
        expected = dict(zip(("on", "off"), torch.load(reference_file), strict=True))
        rank_weights = on_ranks(size, train_cases, cases, settings)
        worst = [
            max(
                float((rank[index][name] - value).abs().max())
                for rank in rank_weights
                for name, value in expected[exact].items()
            )
            for index, (_, _, exact, _) in enumerate(cases)
        ]
        result_file.write_text(json.dumps(worst))
    return dict(zip(cases, json.loads(result_file.read_text()), strict=True))


def main() -> int:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rate", type=float, default=1e-3, help="of every role")
    parser.add_argument("--eps", type=float, default=1e-6, help="of AdamW")
    parser.add_argument("--out", type=Path, required=True, help="where results are stored")
    options = parser.parse_args()
    settings = (options.steps, options.rate, options.eps)
    folder = options.out / "-".join(map(str, settings))
    folder.mkdir(parents=True, exist_ok=True)
    tables = {size: {} for size in options.ranks}
    for size, stage in product(options.ranks, LEARNED):
        tables[size] |= find_differences(size, stage, settings, folder)
    print(f"\n{options.steps} steps, rate {options.rate}, eps {options.eps}: largest difference to one process")
    print("stage     mode   zero" + "".join(f"{f'{size} ranks':>12}" for size in tables))
    broken = 0
    for case in next(iter(tables.values())):
        stage, zero, exact, _ = case
        differences = [table[case] for table in tables.values()]
        broken += sum(difference > (0.0 if exact == "on" else BOUND) for difference in differences)
        mode = "exact" if exact == "on" else "fast"
        print(f"{stage:9} {mode:5} {zero:5}" + "".join(f"{difference:12.1e}" for difference in differences))
    print(f"{broken} beyond the promise: no difference in exact mode, at most {BOUND} in fast mode")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
