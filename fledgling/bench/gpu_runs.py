"""Parts of the GPU check that run whole stages: rollouts, a small quickstart, a stage that is stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fledgling.bench.gpu import note, place
from fledgling.bench.train import with_model_size
from fledgling.config import Recipe, load_recipe
from fledgling.record import checkpoint
from fledgling.train import loop, run
from fledgling.train.stage import Eval

EVALUATED = ("pretrain", "sft")  # stages of the quickstart whose evaluations run
TINY = [
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


@contextmanager
def compiler_off() -> Iterator[None]:
    """Within it nothing is compiled by torch.compile: one step is not worth it."""
    kept = torch._dynamo.config.disable
    torch._dynamo.config.disable = True
    try:
        yield
    finally:
        torch._dynamo.config.disable = kept


def rollouts(out: Path, tiny: bool) -> None:
    """Rollouts of reinforcement learning with random weights, next to plain answers."""
    from fledgling.bench.rollouts import measure_rollouts

    shape = (2, 420, 128) if tiny else (12, 32768, 2048)
    changes = ["pretrain.steps=1", "pretrain.save_every=0", "rl.max_new_tokens=256"]
    changes += TINY if tiny else []
    with TemporaryDirectory() as folder, compiler_off():
        recipe = small_recipe(Path(folder), [*changes, f"model.depth={shape[0]}", f"tokenizer.vocab_size={shape[1]}"])
        recipe = with_model_size(recipe, *shape)
        run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
        note(**measure_rollouts(recipe, Path(folder) / "run" / "pretrain", 1 if tiny else 3))


def no_evals(evals: tuple[Eval, ...]) -> tuple[Eval, ...]:
    """Selects no evaluation of a stage."""
    return ()


def small_recipe(folder: Path, changes: list[str]) -> Recipe:
    """The quickstart recipe on this device, in `folder`/run, with few steps a stage."""
    few = [f"{stage}.steps=4" for stage in ("pretrain", "midtrain", "sft", "rl")]
    few += [f"{stage}.eval_questions=4" for stage in ("pretrain", "midtrain", "sft", "rl")]
    return load_recipe("quickstart", [f"run.device={place().type}", f"run.out={folder / 'run'}", *few, *changes])


def quickstart(out: Path, tiny: bool) -> None:
    """Every stage of the quickstart recipe with few steps, two of them evaluated; then a stage stopped and resumed."""
    changes = TINY if tiny else []
    with TemporaryDirectory() as folder:
        for stage in small_recipe(Path(folder), changes).stages:
            began = time.perf_counter()
            compiled = [] if stage == "pretrain" else ["run.compile=off"]  # four steps do not repay a compilation
            evals = tuple if stage in EVALUATED else no_evals
            run.run_stage(small_recipe(Path(folder), [*changes, *compiled]), stage, quiet=True, select_evals=evals)
            note(stage=stage, seconds=time.perf_counter() - began)
        note(what="stopped and resumed, largest difference", **resumed(Path(folder), [*changes, "run.compile=off"]))


def resumed(folder: Path, changes: list[str]) -> dict[str, float]:
    """Returns the largest difference of weights and states from a whole run: of the same run again, and of one that
    was stopped and resumed. `folder`/run has the tokenizer."""
    tokenizer = folder / "run" / "tokenizer"
    ends = {}
    for name, stops in (("whole", False), ("again", False), ("stopped", True)):
        place_ = folder / name
        (place_ / "run").mkdir(parents=True)
        (place_ / "run" / "tokenizer").symlink_to(tokenizer)
        recipe = small_recipe(place_, [*changes, "pretrain.steps=6", "pretrain.save_every=2"])
        if stops:
            stop_after(recipe, 3)
        run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
        latest = checkpoint.find_latest_checkpoint(place_ / "run" / "pretrain" / "checkpoints")
        assert latest is not None, "a finished stage has a checkpoint"
        found = checkpoint.load_checkpoint(latest)
        ends[name] = {**found.tensors["model"], **found.tensors["optimizer"]}

    def difference(one: str) -> float:
        pairs = ((ends["whole"][key], ends[one][key]) for key in ends["whole"])
        return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)

    return {"run_to_run": difference("again"), "resumed": difference("stopped")}


def stop_after(recipe: Recipe, steps: int) -> None:
    """Run pretraining until it is asked to stop after so many steps."""

    class Requested:
        count = 0

        def __enter__(self) -> Callable[[], bool]:
            return self.ask

        def __exit__(self, *_: object) -> None:
            return None

        def ask(self) -> bool:
            self.count += 1
            return self.count >= steps

    kept = run.catch_stop_signals
    run.catch_stop_signals = Requested  # type: ignore[assignment,misc]
    try:
        run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    except loop.TrainingStopped:
        return
    finally:
        run.catch_stop_signals = kept
    raise AssertionError("the run was not stopped")
