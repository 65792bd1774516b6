"""Measures how fast this machine trains a recipe's model: a few seconds of pretraining's own steps on random rows."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from statistics import median

import torch

from fledgling.config import DistillConfig, Recipe, UserError
from fledgling.model.build import build_model
from fledgling.optim.optimizer import Optimizer
from fledgling.plan.budget import TrainingSpeed
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.published_sizes import published_sizes
from fledgling.plan.split import MAX_MICRO_BATCH_ROWS, choose_split
from fledgling.plan.stage_length import find_rows
from fledgling.runtime.compiler import explain_compile_failure
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.train.device_step import make_device_step
from fledgling.train.free_cores import follow_free_cores
from fledgling.train.loop import train_step
from fledgling.train.source_sizes import count_source_sizes
from fledgling.train.trial_step import make_random_stage

SECONDS = 3.0  # of steps that are timed
MIN_TIMED = 5  # steps
WARMUP = 2  # steps before them: the first compiles
MAX_RESTARTS = 2  # of the timing, where other processes leave another number of cores than before


def measure_training_speed(
    recipe: Recipe, world: World, setup: DeviceSetup, seconds: float = SECONDS, least: int = MIN_TIMED
) -> TrainingSpeed:
    """Returns the FLOP/s of all ranks in steps of pretraining. Every rank calls it.

    Next to other processes it is that of the threads that a run would use (`free_cores.py`), if they are noticed, which
    takes about 1.5 s: with all threads a small model's step would take many times as long.

    Args:
        recipe: whose model and batch are measured.
        world: the ranks.
        setup: of `runtime.device.set_up_device`.
        seconds: of steps that are timed, at least.
        least: steps that are timed, at least.

    Raises UserError, in one line, where a step fails or takes no time.
    """
    config, threads = recipe.resolve_model(), torch.get_num_threads()
    device, per_token = world.device, training_flops_per_token(config)
    advice = "choose another size with --set model.depth=N, or plan for a GPU with `fledgling plan --gpu NAME`"
    try:
        sizes = published_sizes(config.context) | count_source_sizes(recipe)
        found = find_rows("pretrain", recipe.pretrain, config, sizes)
        rows = found[0] if found else MAX_MICRO_BATCH_ROWS * world.size  # no budget is planned for an unknown batch
        step = make_device_step(recipe.optimizer, config, setup, world)
        pinned, recompute = recipe.pretrain.micro_batch_size, recipe.run.recompute
        split = choose_split(config, rows, setup.memory_limit, step, pinned, recompute)
        model = build_model(config, setup, device)
        model.initialize(recipe.seed)
        model.recompute = split.recompute
        optimizer = Optimizer(model, recipe.optimizer, world, 1.0, setup.compiled, setup.dtype)
        alone = replace(recipe, distill=DistillConfig())  # the FLOPs of a teacher are the plan's
        stage = make_random_stage(alone, "pretrain", config, split.rows, split.micro_batches)
        adapt = follow_free_cores(recipe.run, world, lambda text: None)
        times, used, restarts = list[float](), dict[str, int](), 0
        while True:
            start = time.perf_counter()
            train_step(stage, model, optimizer, stage.batches.next(), world)
            times.append(time.perf_counter() - start)
            before, used = used, adapt()
            if used != before and restarts < MAX_RESTARTS:
                times, restarts = [], restarts + 1
            timed = times[WARMUP:]
            is_enough = len(timed) >= least and sum(timed) >= seconds
            if world.all_gather_object(is_enough)[0]:
                break
    except (RuntimeError, UserError) as error:  # torch.OutOfMemoryError is one
        if line := explain_compile_failure(error):
            raise UserError(line) from None
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the speed of this machine cannot be measured: a step at depth {config.depth} fails: {reason}; {advice}"
        ) from None
    finally:
        torch.set_num_threads(threads)
    del model, optimizer, stage
    torch.compiler.reset()  # which keeps what it has compiled on the disk, and lets go of the model
    gc.collect()
    one = world.all_gather_object(median(times[WARMUP:]))[0]
    tokens = split.rows * split.micro_batches * config.context * world.size
    if not one > 0:
        raise UserError(f"the speed of this machine cannot be measured: a step takes {one} s by its clock; {advice}")
    source = (
        f"measured here, {used['threads']} of {threads} threads next to other processes" if used else "measured here"
    )
    return TrainingSpeed(per_token * tokens / one, per_token, source)
