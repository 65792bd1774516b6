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

from fledgling.cli.options import Device, Gpus, Json, Products, on_ranks
from fledgling.config import UserError

if TYPE_CHECKING:
    import torch

    from fledgling.evals.core import Settings, TaskResult
    from fledgling.evals.likelihood import Scorer
    from fledgling.model.transformer import Transformer
    from fledgling.text.tokenizer import Tokenizer

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


def core(
    checkpoint: str | None = None,
    /,
    *,
    tasks: Names = (),
    max_per_task: int | None = None,
    convention: Literal["nanochat", "foundry"] = "nanochat",
    data_dir: Path | None = None,
    out: Path | None = None,
    log: Path | None = None,
    replay: Path | None = None,
    untrained: bool = False,
    gpus: Gpus = None,
    device: Device = "auto",
    dtype: Products = "auto",
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
    from fledgling.evals.core import Settings

    if max_per_task is not None and max_per_task < 1:
        raise UserError(f"--max-per-task is {max_per_task}; expected at least 1")
    if replay:
        from fledgling.evals.logged import replay as replayed

        _show(replayed(replay), as_json, False, {})
        return 0
    if checkpoint is None:
        raise UserError("eval core needs a checkpoint, or --replay with a log")
    chosen = {"tasks": tasks, "max_per_task": max_per_task, "convention": convention, "untrained": untrained}
    files = {"data_dir": data_dir, "out": out, "log": log}
    code = on_ranks(gpus, device, "eval", "core", checkpoint, **chosen, **files, dtype=dtype, as_json=as_json)
    if code is not None:
        return code
    settings = Settings(max_per_task, convention)
    _evaluate(checkpoint, tasks, settings, data_dir, out, log, untrained, device, dtype, as_json)
    return 0


def _evaluate(
    checkpoint: str,
    names: Sequence[str],
    settings: Settings,
    data_dir: Path | None,
    out: Path | None,
    log_path: Path | None,
    untrained: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    from fledgling.evals.core import run
    from fledgling.evals.logged import Log
    from fledgling.files import data_root
    from fledgling.record.progress import Display
    from fledgling.tasks.core import read_tasks

    chosen = read_tasks(data_root(data_dir), names)
    path, state, scorer, key = _scorer(checkpoint, device, dtype, untrained)
    world, kind = scorer.world, str(scorer.engine.dtype)
    finished = out or beside(path)
    display, began = Display("core") if world.is_main else None, time.monotonic()

    def told(label: str, done: float, whole: float) -> None:
        if display:
            display.show(int(done), max(1, int(whole)), {"task": label}, time.monotonic() - began)

    log = Log(log_path) if log_path and world.is_main else None
    try:
        results = run(scorer, chosen, settings, key, finished, log, told)
    finally:
        for open_thing in (display, log):
            if open_thing:
                open_thing.close()
    if world.is_main:
        whole = not names
        if not untrained:
            record(path, state, results, whole)
        facts = {"checkpoint": str(path), "untrained": untrained, "settings": asdict(settings), "dtype": kind}
        _show(results, as_json, whole, facts)
    world.close()


def _scorer(checkpoint: str, device: str, dtype: str, untrained: bool = False) -> tuple[Path, dict, Scorer, str]:
    """The path and state of what is to be scored, its scorer, and the key that its scores are kept under."""
    from fledgling.evals.likelihood import Scorer
    from fledgling.infer.engine import Engine
    from fledgling.runtime.world import World
    from fledgling.train.setup import DTYPES, fastest_dtype, keep_freed_memory

    world = World.start(device)
    keep_freed_memory()
    path, model, tokenizer, state = opened(checkpoint, world.device)
    if untrained:
        scramble(model)
        model.to(world.device)
    kind = fastest_dtype(world.device) if dtype == "auto" else DTYPES[dtype]
    return path, state, Scorer(Engine(model, tokenizer, dtype=kind), world), f"{model_hash(model, tokenizer)} {kind}"


def opened(given: str, device: torch.device) -> tuple[Path, Transformer, Tokenizer, dict]:
    """The path, model, tokenizer and state of a checkpoint, a stage, a run, or a Hugging Face directory."""
    from fledgling.export.read import read
    from fledgling.infer.load import load_model
    from fledgling.model.transformer import Transformer
    from fledgling.record.checkpoint import resolve

    path = Path(given)
    if (path / "config.json").is_file():
        source = read(path)
        model = Transformer(source.config)
        model.load_state_dict(source.state)
        return path, model.to(device).eval(), source.tokenizer, {}
    path = resolve(path)
    return path, *load_model(path, device=device)


def scramble(model: Transformer, seed: int = 0) -> None:
    """Fill a model with random weights, also what a fresh one has at zero: that finds all choices equally likely."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    model.cpu().initialize(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)


def model_hash(model: Transformer, tokenizer: Tokenizer) -> str:
    """SHA-256 over the weights, the model's description and the tokenizer: what decides the scores."""
    from torch import uint8

    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    digest.update(tokenizer.fingerprint().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy())
    return digest.hexdigest()


def beside(path: Path) -> Path:
    """The file of a checkpoint's finished tasks: in a run where the stage keeps its exams, else next to it."""
    if path.parent.name == "checkpoints":
        return path.parent.parent / "exams" / path.name / "core.jsonl"
    return path.with_name(f"{path.name}.core.jsonl")


def record(path: Path, state: dict, results: Sequence[TaskResult], whole: bool) -> None:
    """Add the scores to the evaluations of the stage that the checkpoint belongs to, where it lies in one."""
    from fledgling.evals.core import measurements
    from fledgling.record.lines import Lines

    stage = path.parent.parent
    if path.parent.name != "checkpoints" or stage.name != state.get("stage") or not (stage / "metrics.jsonl").is_file():
        return
    lines = Lines(stage / "evals.jsonl")
    for m in measurements(results, whole):
        lines.append({"stage": stage.name, "step": state["step"], **asdict(m)})
    lines.close()


def _show(results: Sequence[TaskResult], as_json: bool, whole: bool, facts: dict) -> None:
    from fledgling.evals.core import core as mean

    total = mean(results)
    if as_json:
        tasks = [{**asdict(r), "centred": r.centred[0]} for r in results]
        print(json.dumps({**facts, "core": asdict(total) if whole else None, "tasks": tasks}, indent=2))
        return
    print(f"{'task':34} {'accuracy':>8}  {'95 %':15} {'guessing':>8} {'centred':>8} {'n':>6} {'cropped':>8}")
    for r in results:
        print(
            f"{r.label:34} {r.accuracy:8.4f}  [{r.low:.4f}, {r.high:.4f}] {r.baseline:8.3f} {r.centred[0]:8.4f} "
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
    from fledgling.evals.logged import compare as compared

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
    tasks: Names,
    limit: int | None = None,
    shots: int | None = None,
    include: Path | None = None,
    device: Device = "auto",
    dtype: Products = "auto",
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
    from fledgling.evals.harness import evaluate

    _, _, scorer, _ = _scorer(checkpoint, device, dtype)
    results = evaluate(scorer, tasks, limit, shots, include)
    if scorer.world.is_main:
        if as_json:
            print(json.dumps(results, indent=2, default=str))
        else:
            for name, figures in results.items():
                for metric, value in figures.items():
                    if isinstance(value, float):
                        print(f"{name:24} {metric:24} {value:.4f}")
    scorer.world.close()
