"""`fledgling eval core`, `compare` and `lm-eval`: CORE's 22 tasks, two models item by item, lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fledgling.cli.eval_chat import require_free_places
from fledgling.cli.lists import NameList
from fledgling.cli.options import ComputeDtype, Device, Gpus, Json, run_on_ranks
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.core_results import CoreTaskResult


def core(
    checkpoint: str | None = None,
    /,
    *,
    tasks: NameList = (),
    max_per_task: int | None = None,
    convention: Literal["nanochat", "foundry"] = "nanochat",
    data_dir: Path | None = None,
    out: Path | None = None,
    log: Path | None = None,
    replay: Path | None = None,
    untrained: bool = False,
    gpus: Gpus = None,
    device: Device = "auto",
    dtype: ComputeDtype = "auto",
    as_json: Json = False,
) -> int:
    """CORE, DCLM's 22 tasks: accuracy by likelihood, centered on guessing. A stopped run resumes.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory.
    tasks
        Which of the 22 tasks; default: all.
    max_per_task
        Items of each task, selected as the published evaluator does; default: all.
    convention
        The layout of prompts: nanochat, or foundry as for DCLM's own table (see docs/evaluation.md).
    data_dir
        The data root with the CORE bundle; else FLEDGLING_DATA, else ~/.cache/fledgling.
    out
        The file of finished tasks; default: core.jsonl in the stage's exams, or next to the checkpoint.
    log
        A file for every prompt and its scores, as JSON lines.
    replay
        Compute the scores of a log again, without a model.
    untrained
        Evaluate the checkpoint's architecture and tokenizer with random weights: the score without knowledge.
    """
    from fledgling.evals.core_results import CoreSettings, list_core_measurements

    if max_per_task is not None and max_per_task < 1:
        raise UserError(f"--max-per-task is {max_per_task}; expected at least 1")
    if replay:
        if checkpoint is not None:
            raise UserError(f"--replay scores the log {replay}, and nothing of {checkpoint}: leave one of them out")
        from fledgling.evals.core_log import replay_core_log

        _print_core(replay_core_log(replay), as_json, False, {})
        return 0
    if checkpoint is None:
        raise UserError("eval core needs a checkpoint, or --replay with a log")
    require_free_places(log, out)
    selection = {"tasks": tasks, "max_per_task": max_per_task, "convention": convention, "untrained": untrained}
    files = {"data_dir": data_dir, "out": out, "log": log}
    code = run_on_ranks(gpus, device, "eval", "core", checkpoint, **selection, **files, dtype=dtype, as_json=as_json)
    if code is not None:
        return code
    from fledgling.evals.session import EvalSession
    from fledgling.files import resolve_data_root
    from fledgling.tasks.core import read_core_tasks

    settings, is_complete = CoreSettings(max_per_task, convention), not tasks
    core_tasks = read_core_tasks(resolve_data_root(data_dir), tasks)
    session = EvalSession.open(checkpoint, device, dtype, allow_hf=True, untrained=untrained)
    results = session.run_core(core_tasks, settings, out, log)
    if session.world.is_main:
        if not untrained:
            session.record(list_core_measurements(results, is_complete, convention))
        facts = {"checkpoint": str(session.checkpoint), "untrained": untrained, "settings": asdict(settings)}
        _print_core(results, as_json, is_complete, {**facts, "dtype": str(session.engine.dtype)})
    session.world.close()
    return 0


def _print_core(results: Sequence[CoreTaskResult], as_json: bool, is_complete: bool, facts: dict[str, Any]) -> None:
    from fledgling.evals.core_results import compute_core

    mean = compute_core(results)
    if as_json:
        tasks = [{**asdict(r), "centered": r.centered[0]} for r in results]
        print(json.dumps({**facts, "core": asdict(mean) if is_complete else None, "tasks": tasks}, indent=2))
        return
    counts = f"{'n':>6} {'passages':>8} {'cropped':>8}"
    print(f"{'task':34} {'accuracy':>8}  {'95 %':15} {'guessing':>8} {'centered':>8} {counts}")
    for r in results:
        print(
            f"{r.label:34} {r.accuracy:8.4f}  [{r.low:.4f}, {r.high:.4f}] {r.baseline:8.3f} {r.centered[0]:8.4f} "
            f"{r.n:6,} {r.passages or r.n:8,} {r.cropped:8,}"
        )
    name = "CORE" if is_complete else f"mean of {len(results)}"
    cases = f"centered, n {mean.n:,}, {mean.clusters:,} passages"
    print(f"{name:34} {mean.value:8.4f}  [{mean.low:.4f}, {mean.high:.4f}]  {cases}")
    seconds, tokens, fed = (sum(getattr(r, key) for r in results) for key in ("seconds", "tokens", "fed"))
    if seconds:
        speed = f"{tokens / seconds:,.0f} tokens/s scored, {fed / seconds:,.0f} computed"
        print(f"{seconds:,.0f} s, {tokens:,} tokens of choices, {fed:,} computed: {speed}")


def compare(a: Path, b: Path, /, *, as_json: Json = False) -> None:
    """Compare two logs of `eval core --log` item by item: is B better than A, and can the difference be chance?

    Parameters
    ----------
    a
        The log of one model.
    b
        The log of another model, of the same items.
    """
    from fledgling.evals.core_compare import compare_core_logs

    differences = compare_core_logs(a, b)
    if as_json:
        print(json.dumps([{**asdict(d), "value": d.value} for d in differences], indent=2))
        return
    counts = f"{'n':>6} {'passages':>8} {'only A':>6} {'only B':>6}"
    print(f"{'':34} {'A':>8} {'B':>8} {'B - A':>8}  {'95 %':17} {counts} {'p':>7}")
    for d in differences:
        print(
            f"{d.name:34} {d.a:8.4f} {d.b:8.4f} {d.value:+8.4f}  [{d.low:+.4f}, {d.high:+.4f}] "
            f"{d.n:6,} {d.clusters:8,} {d.only_a:6,} {d.only_b:6,} {d.p:7.4f}"
        )


def lm_eval(
    checkpoint: str,
    /,
    *,
    tasks: NameList,
    limit: int | None = None,
    shots: int | None = None,
    include: Path | None = None,
    device: Device = "auto",
    dtype: ComputeDtype = "auto",
    as_json: Json = False,
) -> None:
    """Run tasks of lm-evaluation-harness on a checkpoint (extra lm-eval).

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory.
    tasks
        Names of the harness's tasks, or of those in --include.
    limit
        Items of each task; default: all.
    shots
        Few-shot examples before each item; default: the task's own number.
    include
        A folder of your own task files.
    """
    from fledgling.evals.harness import run_harness
    from fledgling.evals.session import EvalSession

    session = EvalSession.open(checkpoint, device, dtype, allow_hf=True)
    results = run_harness(session.make_scorer(), tasks, limit, shots, include)
    if session.world.is_main:
        if as_json:
            print(json.dumps(results, indent=2, default=str))
        else:
            for name, metrics in results.items():
                for metric, value in metrics.items():
                    if isinstance(value, float):
                        print(f"{name:24} {metric:24} {value:.4f}")
    session.world.close()
