"""Parts of the GPU check that run whole stages: rollouts, a small quickstart, a stage that is stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import fledgling
from fledgling.bench.gpu import get_device, report_result
from fledgling.bench.sized_recipe import with_model_size
from fledgling.config import Recipe, load_recipe
from fledgling.record import checkpoint
from fledgling.train import loop, run
from fledgling.train.hooks import NO_EVALS, NO_HOOKS

EVALUATED_STAGES = ("pretrain", "sft")  # stages of the quickstart whose evaluations run
TINY_OVERRIDES = [
    *(
        "rl.prompts_per_round=2",
        "rl.group_size=2",
        "rl.max_new_tokens=8",
        "model.depth=2",
        "model.width=32",
        "run.compile=off",
    ),
    *(f"{stage}.batch_tokens=512" for stage in ("pretrain", "midtrain", "sft")),
    *(f"{stage}.micro_batch_size=2" for stage in ("pretrain", "midtrain", "sft")),
]
TINY_TEXT_BYTES = 300_000


def list_tiny_changes(folder: Path) -> list[str]:
    """Returns the settings of a tiny run, whose text is written to `folder`: the source of this package.

    Harvesting and tokenizing the embedded text takes minutes on one core, and longer than the part's limit.
    """
    text, left = folder / "text", TINY_TEXT_BYTES
    text.mkdir()
    for file in sorted(Path(fledgling.__file__).parent.rglob("*.py")):
        content = file.read_text(encoding="utf-8") if left > 0 else ""
        left -= len(content)
        if content.strip():
            (text / f"{file.parent.name}-{file.stem}.txt").write_text(content, encoding="utf-8")
    changes = ["tokenizer.vocab_size=512", f'tokenizer.sources=["{text}"]', f'pretrain.mixture={{"{text}"=1.0}}']
    changes += [f"{stage}.mixture={{arithmetic=1.0}}" for stage in ("midtrain", "sft")]
    return [*TINY_OVERRIDES, *changes, "rl.tasks={arithmetic=1.0}"]


@contextmanager
def disable_compiler() -> Iterator[None]:
    """Disables torch.compile inside the block: compiling takes longer than the single step that it would speed up."""
    original = torch._dynamo.config.disable
    torch._dynamo.config.disable = True
    try:
        yield
    finally:
        torch._dynamo.config.disable = original


def run_rollouts(out: Path, tiny: bool) -> None:
    """Measures rollouts of reinforcement learning after one step of pretraining, next to plain generation."""
    from fledgling.bench.rollouts import measure_rollouts

    shape = (2, 420, 128) if tiny else (12, 32768, 2048)
    changes = ["pretrain.steps=1", "pretrain.save_every=0", "rl.max_new_tokens=256"]
    with TemporaryDirectory() as folder:
        changes += list_tiny_changes(Path(folder)) if tiny else []
        recipe = load_small_recipe(
            Path(folder), [*changes, f"model.depth={shape[0]}", f"tokenizer.vocab_size={shape[1]}"]
        )
        recipe = with_model_size(recipe, *shape)
        with disable_compiler():  # of the step; what decodes is compiled, as in a round
            run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
        report_result(**measure_rollouts(recipe, Path(folder) / "run" / "pretrain", 1 if tiny else 3))


def load_small_recipe(folder: Path, changes: list[str]) -> Recipe:
    """Returns the quickstart recipe for the measured device, with 4 steps in each stage; its run is `folder`/run."""
    overrides = [f"{stage}.steps=4" for stage in ("pretrain", "midtrain", "sft", "rl")]
    overrides += [f"{stage}.eval_questions=4" for stage in ("pretrain", "midtrain", "sft", "rl")]
    location = [f"run.device={get_device().type}", f"run.out={folder / 'run'}"]
    return load_recipe("quickstart", [*location, *overrides, *changes])


def run_quickstart(out: Path, tiny: bool) -> None:
    """Times each stage of the quickstart recipe with few steps; then compares a resumed run with a whole one."""
    with TemporaryDirectory() as folder:
        changes = list_tiny_changes(Path(folder)) if tiny else []
        for stage in load_small_recipe(Path(folder), changes).stages:
            start_time = time.perf_counter()
            compiled = [] if stage == "pretrain" else ["run.compile=off"]  # four steps do not repay a compilation
            hooks = NO_HOOKS if stage in EVALUATED_STAGES else NO_EVALS
            run.run_stage(load_small_recipe(Path(folder), [*changes, *compiled]), stage, quiet=True, hooks=hooks)
            report_result(stage=stage, seconds=time.perf_counter() - start_time)
        report_result(
            what="stopped and resumed, largest difference",
            **compare_resumed_run(Path(folder), [*changes, "run.compile=off"]),
        )


def compare_resumed_run(folder: Path, changes: list[str]) -> dict[str, float]:
    """Returns the largest differences of weights and optimizer state from a first run.

    The tokenizer is that of `folder`/run.

    Returns:
        "run_to_run": of the same run repeated; "resumed": of a run that was stopped and resumed.
    """
    tokenizer = folder / "run" / "tokenizer"
    ends = {}
    for name, stops in (("whole", False), ("again", False), ("stopped", True)):
        run_folder = folder / name
        (run_folder / "run").mkdir(parents=True)
        (run_folder / "run" / "tokenizer").symlink_to(tokenizer)
        recipe = load_small_recipe(run_folder, [*changes, "pretrain.steps=6", "pretrain.save_every=2"])
        if stops:
            run_until_stopped(recipe, 3)
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
        latest = checkpoint.find_latest_checkpoint(run_folder / "run" / "pretrain" / "checkpoints")
        assert latest is not None, "a finished stage has a checkpoint"
        tensors = checkpoint.load_checkpoint(latest).tensors
        ends[name] = {**tensors["model"], **tensors["optimizer"]}

    def difference(one: str) -> float:
        pairs = ((ends["whole"][key], ends[one][key]) for key in ends["whole"])
        largest = torch.stack([(a.double() - b.double()).abs().max() for a, b in pairs])
        return float(largest.max())  # NaN stays NaN, as Python's max would not have it

    return {"run_to_run": difference("again"), "resumed": difference("stopped")}


def run_until_stopped(recipe: Recipe, steps: int) -> None:
    """Runs pretraining, and requests a stop after `steps` steps. Raises AssertionError if the run does not stop."""

    class StopRequest:
        count = 0

        def __enter__(self) -> Callable[[], bool]:
            return self.should_stop

        def __exit__(self, *_: object) -> None:
            return None

        def should_stop(self) -> bool:
            self.count += 1
            return self.count >= steps

    original = run.catch_stop_signals
    run.catch_stop_signals = StopRequest  # type: ignore[assignment,misc]
    try:
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    except loop.TrainingStopped:
        return
    finally:
        run.catch_stop_signals = original
    raise AssertionError("the run was not stopped")
