"""`fledgling eval core` and `fledgling eval compare`: the 22 tasks of CORE, and two models item by item."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fledgling.cli.options import ComputeDtype, Device, Gpus, Json, run_on_ranks
from fledgling.config import UserError

if TYPE_CHECKING:
    import torch

    from fledgling.evals.core import CoreSettings, CoreTaskResult
    from fledgling.evals.likelihood import Scorer
    from fledgling.model.transformer import Transformer
    from fledgling.text.tokenizer import Tokenizer

NameList = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


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
    """CORE, DCLM's 22 tasks: accuracy by likelihood, centred on guessing. Stopped, it goes on where it was.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory.
    tasks
        Which of the 22; all where none is named.
    max_per_task
        So many items of each task, chosen as the published evaluator does; all where none is given.
    convention
        How prompts are laid out: nanochat, or foundry as for DCLM's own table (see docs/evaluation.md).
    data_dir
        Where the bundle lies; else FLEDGLING_DATA, else ~/.cache/fledgling.
    out
        The file that keeps finished tasks; the stage's exams, or beside the checkpoint, where none is given.
    log
        A file for every prompt and what the model made of it, as JSON lines.
    replay
        Compute the scores of a log again, without a model.
    untrained
        The checkpoint's shape and tokenizer with random weights: what knowing nothing scores.
    """
    from fledgling.evals.core import CoreSettings

    if max_per_task is not None and max_per_task < 1:
        raise UserError(f"--max-per-task is {max_per_task}; expected at least 1")
    if replay:
        from fledgling.evals.core_log import replay_core_log as replayed

        _print_core(replayed(replay), as_json, False, {})
        return 0
    if checkpoint is None:
        raise UserError("eval core needs a checkpoint, or --replay with a log")
    chosen = {"tasks": tasks, "max_per_task": max_per_task, "convention": convention, "untrained": untrained}
    files = {"data_dir": data_dir, "out": out, "log": log}
    code = run_on_ranks(gpus, device, "eval", "core", checkpoint, **chosen, **files, dtype=dtype, as_json=as_json)
    if code is not None:
        return code
    settings = CoreSettings(max_per_task, convention)
    _run_core(checkpoint, tasks, settings, data_dir, out, log, untrained, device, dtype, as_json)
    return 0


def _run_core(
    checkpoint: str,
    names: Sequence[str],
    settings: CoreSettings,
    data_dir: Path | None,
    out: Path | None,
    log_path: Path | None,
    untrained: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    from fledgling.evals.core import run_core
    from fledgling.evals.core_log import CoreLog
    from fledgling.files import resolve_data_root
    from fledgling.record.progress_bar import ProgressBar
    from fledgling.tasks.core import read_core_tasks

    chosen = read_core_tasks(resolve_data_root(data_dir), names)
    path, state, scorer, key = _make_scorer(checkpoint, device, dtype, untrained)
    world, kind = scorer.world, str(scorer.engine.dtype)
    finished = out or default_results_path(path)
    display, began = ProgressBar("core") if world.is_main else None, time.monotonic()

    def told(label: str, done: float, whole: float) -> None:
        if display:
            display.update(int(done), max(1, int(whole)), {"task": label}, time.monotonic() - began)

    log = CoreLog(log_path) if log_path and world.is_main else None
    try:
        results = run_core(scorer, chosen, settings, key, finished, log, told)
    finally:
        for open_thing in (display, log):
            if open_thing:
                open_thing.close()
    if world.is_main:
        whole = not names
        if not untrained:
            record_core(path, state, results, whole)
        facts = {"checkpoint": str(path), "untrained": untrained, "settings": asdict(settings), "dtype": kind}
        _print_core(results, as_json, whole, facts)
    world.close()


def _make_scorer(checkpoint: str, device: str, dtype: str, untrained: bool = False) -> tuple[Path, dict, Scorer, str]:
    """The path and state of what is to be scored, its scorer, and the key that its scores are kept under."""
    from fledgling.evals.likelihood import Scorer
    from fledgling.infer.engine import Engine
    from fledgling.runtime.device import DTYPES, choose_dtype, keep_freed_memory
    from fledgling.runtime.world import World

    world = World.start(device)
    keep_freed_memory()
    path, model, tokenizer, state = load_any_model(checkpoint, world.device)
    if untrained:
        randomize_weights(model)
        model.to(world.device)
    kind = choose_dtype(world.device) if dtype == "auto" else DTYPES[dtype]
    return path, state, Scorer(Engine(model, tokenizer, dtype=kind), world), f"{hash_model(model, tokenizer)} {kind}"


def load_any_model(given: str, device: torch.device) -> tuple[Path, Transformer, Tokenizer, dict]:
    """The path, model, tokenizer and state of a checkpoint, a stage, a run, or a Hugging Face directory."""
    from fledgling.export.read_hf import read_hf
    from fledgling.infer.runner import load_model
    from fledgling.model.transformer import Transformer
    from fledgling.record.checkpoint import resolve_checkpoint

    path = Path(given)
    if (path / "config.json").is_file():
        source = read_hf(path)
        model = Transformer(source.config)
        model.load_state_dict(source.state)
        return path, model.to(device).eval(), source.tokenizer, {}
    path = resolve_checkpoint(path)
    return path, *load_model(path, device=device)


def randomize_weights(model: Transformer, seed: int = 0) -> None:
    """Fill a model with random weights, also what a fresh one has at zero: that finds all choices equally likely."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    model.cpu().initialize(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)


def hash_model(model: Transformer, tokenizer: Tokenizer) -> str:
    """SHA-256 over the weights, the model's description and the tokenizer: what decides the scores."""
    from torch import uint8

    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    digest.update(tokenizer.fingerprint().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy())
    return digest.hexdigest()


def default_results_path(path: Path) -> Path:
    """The file of a checkpoint's finished tasks: in a run where the stage keeps its exams, else next to it."""
    if path.parent.name == "checkpoints":
        return path.parent.parent / "exams" / path.name / "core.jsonl"
    return path.with_name(f"{path.name}.core.jsonl")


def record_core(path: Path, state: dict, results: Sequence[CoreTaskResult], whole: bool) -> None:
    """Add the scores to the evaluations of the stage that the checkpoint belongs to, where it lies in one."""
    from fledgling.evals.core import list_core_measurements
    from fledgling.record.jsonl import JsonlWriter

    stage = path.parent.parent
    if path.parent.name != "checkpoints" or stage.name != state.get("stage") or not (stage / "metrics.jsonl").is_file():
        return
    lines = JsonlWriter(stage / "evals.jsonl")
    for m in list_core_measurements(results, whole):
        lines.append({"stage": stage.name, "step": state["step"], **asdict(m)})
    lines.close()


def _print_core(results: Sequence[CoreTaskResult], as_json: bool, whole: bool, facts: dict) -> None:
    from fledgling.evals.core import compute_core as mean

    total = mean(results)
    if as_json:
        tasks = [{**asdict(r), "centered": r.centered[0]} for r in results]
        print(json.dumps({**facts, "core": asdict(total) if whole else None, "tasks": tasks}, indent=2))
        return
    print(f"{'task':34} {'accuracy':>8}  {'95 %':15} {'guessing':>8} {'centred':>8} {'n':>6} {'cropped':>8}")
    for r in results:
        print(
            f"{r.label:34} {r.accuracy:8.4f}  [{r.low:.4f}, {r.high:.4f}] {r.baseline:8.3f} {r.centered[0]:8.4f} "
            f"{r.n:6,} {r.cropped:8,}"
        )
    name = "CORE" if whole else f"mean of {len(results)}"
    print(f"{name:34} {total.value:8.4f}  [{total.low:.4f}, {total.high:.4f}]  centred, n {total.n:,}")
    seconds, tokens, fed = (sum(getattr(r, key) for r in results) for key in ("seconds", "tokens", "fed"))
    if seconds:
        speed = f"{tokens / seconds:,.0f} tokens/s scored, {fed / seconds:,.0f} computed"
        print(f"{seconds:,.0f} s, {tokens:,} tokens of choices, {fed:,} computed: {speed}")


def compare(a: Path, b: Path, /, *, as_json: Json = False) -> None:
    """Two logs of `eval core --log` item by item: is B better than A, and could that be chance?

    Parameters
    ----------
    a
        The log of one model.
    b
        The log of another one, of the same items.
    """
    from fledgling.evals.core_log import compare_core_logs as compared

    found = compared(a, b)
    if as_json:
        print(json.dumps([{**asdict(d), "value": d.value} for d in found], indent=2))
        return
    print(f"{'':34} {'A':>8} {'B':>8} {'B - A':>8}  {'95 %':17} {'only A':>6} {'only B':>6} {'p':>7}")
    for d in found:
        print(
            f"{d.name:34} {d.a:8.4f} {d.b:8.4f} {d.value:+8.4f}  [{d.low:+.4f}, {d.high:+.4f}] "
            f"{d.only_a:6,} {d.only_b:6,} {d.p:7.4f}"
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
    """Tasks of lm-evaluation-harness on a checkpoint (extra lm-eval).

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory.
    tasks
        Names of the harness's tasks, or of those in --include.
    limit
        So many items of each.
    shots
        Examples before each item; the task's own number where none is given.
    include
        A folder of task files of your own.
    """
    from fledgling.evals.harness import run_harness

    _, _, scorer, _ = _make_scorer(checkpoint, device, dtype)
    results = run_harness(scorer, tasks, limit, shots, include)
    if scorer.world.is_main:
        if as_json:
            print(json.dumps(results, indent=2, default=str))
        else:
            for name, figures in results.items():
                for metric, value in figures.items():
                    if isinstance(value, float):
                        print(f"{name:24} {metric:24} {value:.4f}")
    scorer.world.close()
