"""Runs all checks of a run within a time. Start with `verify_run`."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.record import checkpoint, read_jsonl
from fledgling.record.progress_bar import ProgressBar
from fledgling.report.run_data import read_object
from fledgling.runtime.system_environment import collect_environment
from fledgling.train.history import MACHINE_KEYS
from fledgling.verify import figures, files, seals, states
from fledgling.verify.report_page import check_report
from fledgling.verify.scores import check_scores
from fledgling.verify.stage_order import list_outdated
from fledgling.verify.step_checks import REPLAYED_STEPS, TOLERANCES, check_steps

EVALS, EVALS_SHARE = 4, 0.2  # scores of exams that are recomputed, and of the time


def verify_run(
    run_dir: Path | str,
    count: int = 20,
    seconds: float = 60.0,
    seed: int | None = None,
    show_progress: bool = False,
    evals: int | None = None,
) -> dict[str, Any]:
    """Checks a run and returns {"run", "root", "seed", "machine", "tolerance", "checks": [...], "verdict", "holds"}.

    The verdict is "FAILS", "steps not checked" where nothing contradicts and no step could be replayed, or "holds",
    with what was not reached (`replay_order.describe_shortfall`).

    Args:
        count: steps that are drawn at random.
        seconds: steps are replayed for so long; files are read whole in any case.
        seed: of the draw; None draws one.
        show_progress: whether a progress line is written to stderr.
        evals: scores of exams that are drawn and recomputed; None: EVALS.

    Raises UserError if it is no run.
    """
    run_dir, began = Path(run_dir), time.monotonic()
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} {'is a file' if run_dir.exists() else 'does not exist'}: expected a run directory")
    if not files.list_stages(run_dir):
        raise UserError(
            f"{run_dir} has no stage with a metrics.jsonl: expected a run directory, such as runs/quickstart"
        )
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    bar = ProgressBar("verify") if show_progress else None
    environment, here = read_object(run_dir / "environment.json"), collect_environment()
    other = [key for key in MACHINE_KEYS if environment.get(key) != here[key]]
    done = 0

    def show(what: str) -> None:
        nonlocal done
        done += 1
        if bar:
            bar.update(done, None, {}, time.monotonic() - began)

    try:
        checks = [
            files.check_stages(run_dir),
            files.check_checkpoints(run_dir, show),
            files.check_prepared_data(run_dir, show),
            seals.check_seals(run_dir, show, list_outdated(run_dir)),
            figures.check_recorded_settings(run_dir),
            figures.check_sums(run_dir),
            states.check_states(run_dir),
            check_report(run_dir, "fledgling" not in other),
        ]
        tolerance, chance = find_tolerance(run_dir, other), random.Random(seed)
        count_scores, until = EVALS if evals is None else evals, began + EVALS_SHARE * seconds
        scores = check_scores(run_dir, count_scores, until, random.Random(seed), tolerance > 0, show)
        of_steps, shortfall = check_steps(run_dir, count, began + seconds, chance, tolerance, show)
        checks += [*of_steps, scores]
    finally:
        if bar:
            bar.close()
    fails = any(check.problems for check in checks)
    any_replayed = any(check.checked for check in checks if check.name == REPLAYED_STEPS)
    return {
        "run": str(run_dir),
        "root": seals.compute_root(run_dir),
        "seed": seed,
        "machine": {key: [environment.get(key), here[key]] for key in other},
        "tolerance": tolerance,
        "seconds": time.monotonic() - began,
        "checks": [check.to_json() for check in checks],
        "verdict": "FAILS" if fails else f"holds{shortfall}" if any_replayed else "steps not checked",
        "holds": any_replayed and not fails,
    }


def find_tolerance(run_dir: Path, other: list[str]) -> float:
    """Returns the relative difference that is allowed: 0 for a run of one process, on its machine and versions.

    Steps with fewer threads than usual, on a machine that others used too, have sums in another order.
    """
    ranks = {
        checkpoint.read_checkpoint_state(path).get("ranks", 1)
        for stage in files.list_stages(run_dir)
        for path in files.list_stage_checkpoints(run_dir, stage)
        if files.is_usable(path)
    }
    lines = (line for stage in files.list_stages(run_dir) for line in read_jsonl(run_dir / stage / "metrics.jsonl"))
    if not other and ranks <= {1} and not any("threads" in line for line in lines):
        return 0.0
    return max(TOLERANCES.values())
