"""The runs of a sweep as numbers, read from their directories: sizes, tokens, FLOPs and the loss at the end.

The one idea: a run's own files say everything, so a sweep copied from another machine reads the same. No torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.plan.scaling_laws import parameter_counts
from fledgling.record import read_jsonl

SWEEP_SETTINGS = "sweep.toml"  # of the sweep: a recipe that all its runs share
CELL = "cell.json"  # of a run: its depth and budget
CHECK_DIR = "check"  # OUT/check: runs beyond the sweep's budgets, held against the prediction


@dataclass(frozen=True)
class SweepRun:
    """A finished run: parameters in each way of counting, tokens, FLOPs, bits per byte with its 95 % interval."""

    name: str
    depth: int
    budget: float
    parameters: dict[str, int]
    flops_per_token: int
    tokens: int
    bits_per_byte: float
    low: float
    high: float
    seconds: float

    @property
    def flops(self) -> float:
        """Training FLOPs as the planner counts them."""
        return float(self.flops_per_token) * self.tokens


@dataclass(frozen=True)
class Sweep:
    """The runs under a directory, what a token stands for in the held-out text, and how many tokens there were."""

    path: Path
    runs: tuple[SweepRun, ...]
    bytes_per_token: float
    train_tokens: int

    @property
    def epochs(self) -> float:
        """How often the longest run read the training text."""
        return max(run.tokens for run in self.runs) / max(1, self.train_tokens)


def read_run(run_dir: Path) -> SweepRun | None:
    """Return a run of the sweep, or None while it is not finished."""
    done, plan, cell = (_json(run_dir / name) for name in ("pretrain/done.json", "plan.json", CELL))
    measured = [line for line in read_jsonl(run_dir / "pretrain/evals.jsonl") if line.get("name") == "bits_per_byte"]
    if not (done and plan and cell and measured):
        return None
    last = measured[-1]
    try:
        return SweepRun(
            name=run_dir.name,
            depth=int(cell["depth"]),
            budget=float(cell["budget"]),
            parameters=parameter_counts(plan["parameters"]),
            flops_per_token=int(plan["flops"]["per_token"]),
            tokens=int(plan["horizon"]["tokens"]),
            bits_per_byte=float(last["value"]),
            low=float(last["low"]),
            high=float(last["high"]),
            seconds=float(done["seconds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run_dir} is no run of a sweep ({error} in its files); remove it and run again") from None


def load_sweep(out: str | Path) -> Sweep:
    """Return the finished runs under `out`, by budget and depth. Raises UserError when there are none."""
    out = Path(out)
    cells = [path for path in sorted(out.glob(f"*/{CELL}")) if "variant" not in _json(path)]
    runs = [run for path in cells if (run := read_run(path.parent))]
    if not runs:
        what = "has no finished run" if out.is_dir() else "does not exist"
        raise UserError(f"{out} {what}: expected the directory of a sweep; start one with fledgling scaling run")
    trained, held_out = _shards(out)
    size = held_out.get("metadata", {}).get("bytes", 0) / max(
        1, held_out.get("tokens", 0) - held_out.get("documents", 0)
    )
    if not size > 0:
        raise UserError(f"{out}/shared/data says nothing of the held-out text; run fledgling scaling run again")
    return Sweep(out, tuple(sorted(runs, key=lambda run: (run.budget, run.depth))), size, int(trained.get("tokens", 0)))


@dataclass(frozen=True)
class CheckResult:
    """A run beyond the sweep's budgets, and the prediction that was written down before it began."""

    run: SweepRun
    prediction: dict[str, Any]

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.prediction["bits_per_byte"]["value"] / self.run.bits_per_byte - 1

    @property
    def within_interval(self) -> bool:
        """Whether the predicted interval holds the measured loss."""
        said = self.prediction["bits_per_byte"]
        return said["low"] is not None and said["low"] <= self.run.bits_per_byte <= said["high"]


def load_checks(out: str | Path) -> list[CheckResult]:
    """Return the finished runs under OUT/check with their predictions."""
    found = []
    for path in sorted((Path(out) / CHECK_DIR).glob(f"*/{CELL}")):
        run, prediction = read_run(path.parent), _json(path.parent / "prediction.json")
        if run and prediction:
            found.append(CheckResult(run, prediction))
    return found


def _shards(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifests of the training and the held-out text that the sweep's first source was made into."""
    for path in sorted((out / "shared" / "data").glob("*/corpus.json")):
        found = _json(path)
        held_out = found.get("held_out", {})
        return found.get("train", {}), {**held_out, "metadata": held_out}
    manifests = [_json(path) for path in sorted((out / "shared" / "data").glob("*/manifest.json"))]
    by_split = {manifest.get("metadata", {}).get("split"): manifest for manifest in reversed(manifests)}
    return by_split.get("train", {}), by_split.get("validation", {})


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def format_flops(C: float) -> str:
    """Return FLOPs as people type them: 2e13."""
    return f"{C:.4g}".replace("e+", "e")


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else None
