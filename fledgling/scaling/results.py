"""Reads the runs of a sweep from their directories: sizes, tokens, FLOPs and the final loss.

Everything comes from the runs' own files, so a sweep copied from another machine reads the same. Does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.plan.scaling_laws import parameter_counts
from fledgling.record import read_jsonl
from fledgling.record.progress_bar import format_count, format_duration
from fledgling.scaling.settings import CELL, load_json_object, name_mixed_settings, read_cell

CHECK_DIR = "check"  # OUT/check: runs beyond the sweep's budgets, compared with predictions


@dataclass(frozen=True)
class SweepRun:
    """A finished run: parameters in each way of counting, tokens, FLOPs, bits per byte with its 95 % interval.

    tokens: that the run read. seconds: of all its work, evaluations included.
    """

    name: str
    depth: int
    budget: float
    parameters: dict[str, int]
    flops_per_token: int
    tokens: int
    bits_per_byte: float
    low: float | None  # None: the text is one document
    high: float | None
    seconds: float

    @property
    def flops(self) -> float:
        """Training FLOPs as the planner counts them."""
        return float(self.flops_per_token) * self.tokens


@dataclass(frozen=True)
class Sweep:
    """The runs under a directory, bytes per token of the held-out text, and the number of training tokens.

    notes: lines about runs that are left out, and about those that have other settings.
    """

    path: Path
    runs: tuple[SweepRun, ...]
    bytes_per_token: float
    train_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def epochs(self) -> float | None:
        """How often the longest run read the training text; None where the data does not say how long that is."""
        return max(run.tokens for run in self.runs) / self.train_tokens if self.train_tokens else None


def read_sweep_run(run_dir: Path) -> SweepRun | None:
    """Returns a run of the sweep, or None if it is not finished. Raises UserError if its files lack a value."""
    done, plan, cell = (
        load_json_object(run_dir / "pretrain/done.json"),
        load_json_object(run_dir / "plan.json"),
        read_cell(run_dir),
    )
    evals = [line for line in read_jsonl(run_dir / "pretrain/evals.jsonl") if line.get("name") == "bits_per_byte"]
    if not (done and plan and cell and evals):
        return None
    last = max(evals, key=lambda line: (line.get("step") or 0, line.get("n") or 0))  # of all rows, not the first ones
    try:
        return SweepRun(
            name=run_dir.name,
            depth=int(cell["depth"]),
            budget=float(cell["budget"]),
            parameters=parameter_counts(plan["parameters"]),
            flops_per_token=int(plan["flops"]["per_token"]),
            tokens=int(done.get("tokens") or plan["horizon"]["tokens"]),  # older runs did not count what they read
            bits_per_byte=float(last["value"]),
            low=last["low"],
            high=last["high"],
            seconds=float(done["seconds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run_dir} is not a run of a sweep ({error} in its files); remove it and run again") from None


def select_cells(
    folder: Path, identify: Callable[[dict[str, Any]], tuple[Hashable, str]]
) -> tuple[list[Path], list[str]]:
    """Returns one run directory under `folder` for each thing that was run, and a line for each copy.

    Of the copies of a run the one counts that has the name which the run was given, else the first by name.

    Args:
        folder: of the runs.
        identify: returns of a cell.json what was run, and the name of its directory. A run without one of the values
            that it reads is passed over: it is of another kind.
    """
    found: dict[Hashable, tuple[str, list[Path]]] = {}
    for path in sorted(folder.glob(f"*/{CELL}")):
        try:
            key, name = identify(read_cell(path.parent))
        except (KeyError, TypeError, ValueError):
            continue
        found.setdefault(key, (name, []))[1].append(path.parent)
    selected, notes = [], []
    for name, paths in found.values():
        first, *copies = sorted(paths, key=lambda path: (path.name != name, path.name))
        selected.append(first)
        notes += [f"{copy.name} is left out: it is the same run as {first.name}" for copy in copies]
    return selected, notes


def identify_cell(cell: dict[str, Any]) -> tuple[tuple[int, float], str]:
    """Returns which cell of a sweep a run is, and the name of its directory. Raises ValueError for no cell of one."""
    if "variant" in cell or "rates" in cell:
        raise ValueError("a run of an ablation, or of a sweep of rates")
    depth, budget = int(cell["depth"]), float(cell["budget"])
    return (depth, budget), cell_name(depth, budget)


def load_sweep(out: str | Path) -> Sweep:
    """Returns the finished runs under `out`, ordered by budget, then depth, without the variants of ablations.

    A copy of a run does not count a second time. Notes name copies, and runs with other settings than the first one's.

    Raises UserError if no run is finished, or if the data does not describe the held-out text.
    """
    out = Path(out)
    paths, notes = select_cells(out, identify_cell)
    runs = [run for path in paths if (run := read_sweep_run(path))]
    if not runs:
        reason = "has no finished run" if out.is_dir() else "does not exist"
        raise UserError(f"{out} {reason}: expected the directory of a sweep; start one with fledgling scaling run")
    train_manifest, held_out_manifest = _load_manifests(out)
    bytes_per_token = held_out_manifest.get("metadata", {}).get("bytes", 0) / max(
        1, held_out_manifest.get("tokens", 0) - held_out_manifest.get("documents", 0)
    )
    if not bytes_per_token > 0:
        raise UserError(f"{out}/shared/data does not describe the held-out text; run fledgling scaling run again")
    return Sweep(
        out,
        tuple(sorted(runs, key=lambda run: (run.budget, run.depth))),
        bytes_per_token,
        int(train_manifest.get("tokens", 0)),
        (*notes, *name_mixed_settings([out / run.name for run in runs])),
    )


@dataclass(frozen=True)
class CheckResult:
    """A run beyond the sweep's budgets, and the prediction that was written before it started."""

    run: SweepRun
    prediction: dict[str, Any]

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.prediction["bits_per_byte"]["value"] / self.run.bits_per_byte - 1

    @property
    def within_interval(self) -> bool:
        """Whether the predicted interval contains the measured loss."""
        predicted = self.prediction["bits_per_byte"]
        return predicted["low"] is not None and predicted["low"] <= self.run.bits_per_byte <= predicted["high"]


def load_checks(out: str | Path) -> list[CheckResult]:
    """Returns the finished runs under OUT/check with their predictions; of copies of a run one."""
    checks = []
    for path in sorted(select_cells(Path(out) / CHECK_DIR, identify_cell)[0]):
        run, prediction = read_sweep_run(path), load_json_object(path / "prediction.json")
        if run and prediction:
            checks.append(CheckResult(run, prediction))
    return checks


def describe_run(run: SweepRun) -> str:
    """Returns a finished run as one line of text."""
    sizes = f"{format_count(run.parameters['all parameters'])} parameters, {format_count(run.tokens)} tokens"
    return f"{run.name:<12} {sizes}, {run.bits_per_byte:.4f} bits per byte, {format_duration(run.seconds)}"


def check_to_json(check: CheckResult) -> dict[str, Any]:
    """Returns a check as JSON values."""
    run = check.run
    return {
        "name": run.name,
        "predicted": check.prediction,
        "measured": {"bits_per_byte": run.bits_per_byte, "low": run.low, "high": run.high},
        "error": check.error,
        "within_interval": check.within_interval,
    }


def describe_check(check: CheckResult) -> str:
    """Returns a check as one line of text: the prediction with its interval, and the measurement."""
    predicted = check.prediction["bits_per_byte"]
    interval = f" ({predicted['low']:.4f} to {predicted['high']:.4f})" if predicted["low"] is not None else ""
    position = "inside" if check.within_interval else "outside"
    return (
        f"check {check.run.name}: predicted {predicted['value']:.4f}{interval} bits per byte, "
        f"measured {check.run.bits_per_byte:.4f}, error {100 * check.error:+.2f} %, {position} the interval"
    )


def _load_manifests(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the manifests of the training and the held-out text of the sweep's first source."""

    def newest_first(pattern: str) -> list[Path]:  # the tokens of earlier texts stay
        return sorted((out / "shared" / "data").glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)

    for path in newest_first("*/corpus.json"):
        corpus = load_json_object(path)
        held_out = corpus.get("held_out", {})
        return corpus.get("train", {}), {**held_out, "metadata": held_out}
    manifests = [load_json_object(path) for path in newest_first("*/manifest.json")]
    by_split = {manifest.get("metadata", {}).get("split"): manifest for manifest in reversed(manifests)}
    return by_split.get("train", {}), by_split.get("validation", {})


def cell_name(depth: int, budget: float) -> str:
    """Returns the directory name of a run of a sweep: d4-2e13."""
    return f"d{depth}-{format_flops(budget)}"


def format_flops(C: float) -> str:
    """Returns FLOPs in the form of the command line: 2e13."""
    return f"{C:.4g}".replace("e+", "e")


def finite_or_none(value: float) -> float | None:
    """Returns the number, or None where JSON cannot represent it."""
    return value if math.isfinite(value) else None
