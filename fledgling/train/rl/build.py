"""Builder of the rl stage: rounds of rollouts as batches, the algorithm's loss, the same loop."""

from __future__ import annotations

import math
from collections.abc import Callable

from fledgling.config import RLConfig, UserError
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import is_deterministic
from fledgling.plan.stage_length import derive_rl_steps
from fledgling.runtime.world import World
from fledgling.tasks import load_task
from fledgling.train.context import StageContext, held_out_shards, make_schedule, resolve_micro_batch_size
from fledgling.train.distill.build import load_fitting_teacher
from fledgling.train.evals import build_evals
from fledgling.train.read_files import list_read_files
from fledgling.train.rl.algorithm import make_algorithm
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.stage import Stage
from fledgling.train.stage_horizon import grow_steps

MAX_CHECKED_PROMPTS = 256


def build_rl_stage(name: str, context: StageContext) -> Stage:
    """Returns the rl stage as the recipe's [rl] table describes it."""
    config, recipe = context.recipe.rl, context.recipe
    require_valid_rl_config(config, context.world)
    micro_batch_size = resolve_micro_batch_size(config, context)
    tasks = {task: load_task(task, recipe.run.data_dir) for task, weight in config.tasks.items() if weight > 0}
    for source, files in list_read_files(recipe, name).items():
        context.preparer.documents.prepared.record_files(source, files)
    steps = derive_rl_steps(config, {task_name: len(task) or math.inf for task_name, task in tasks.items()})
    if config.steps is None:
        context.recorder.log_notice(
            f"rl: {steps:,} steps, {config.num_epochs or 1:g} epochs of the prompts of its tasks"
        )
    most_steps = steps if config.stale_rounds else grow_steps(steps)  # what is sampled ahead ends with the stage
    stream = RolloutStream(
        context.engine,
        config,
        tasks,
        recipe.seed,
        micro_batch_size,
        context.world,
        is_deterministic(recipe.optimizer, context.world),
        load_reference(context),
        context.recorder.log_notice,
        most_steps,
    )
    report_cropped_prompts(stream, steps, context.recorder.log_notice)
    return Stage(
        name=name,
        steps=steps,
        most_steps=most_steps,
        batches=stream,
        loss=stream.loss,
        schedule=make_schedule(recipe, "rl", steps),
        evals=build_evals(config, context, held_out_shards(context), micro_batch_size),
        save_every=config.save_every,
        micro_batch_size=micro_batch_size,
        extra_metrics=stream.metrics,
    )


def load_reference(context: StageContext) -> Transformer | None:
    """Returns the model whose log p the stage needs: its own initial weights, or a teacher; None where it needs none.

    Raises UserError for a teacher that is missing or does not fit.
    """
    if not context.recipe.has_teacher("rl"):
        return context.load_initial_model() if context.recipe.rl.kl_weight > 0 else None
    return load_fitting_teacher(context, "rl").model


def report_cropped_prompts(stream: RolloutStream, steps: int, log: Callable[[str], None]) -> None:
    """Logs how many of the stage's first prompts are longer than the context has room for.

    Raises UserError if all of them are: answers to questions without their beginning teach nothing.
    """
    config = stream.config
    rounds = -(-steps // stream.steps_per_round)
    count = min(MAX_CHECKED_PROMPTS, rounds * config.prompts_per_round)
    cropped = sum(stream.crop_prompt(index)[1] for index in range(count))
    limit = f"{stream.max_prompt_tokens} tokens, which model.context leaves next to rl.max_new_tokens"
    if cropped == count:
        raise UserError(f"rl: all of the first {count:,} prompts are longer than {limit}; raise model.context")
    if cropped:
        log(f"rl: {cropped:,} of the first {count:,} prompts are longer than {limit}: they lose their beginning")


def require_valid_rl_config(config: RLConfig, world: World) -> None:
    """Raises UserError for settings of [rl] that do not go together, or not with these ranks."""
    if config.stale_rounds and (world.size > 1 or world.device.type != "cpu"):
        where = f"{world.size} ranks on {world.device.type}"
        raise UserError(f"rl.stale_rounds is {config.stale_rounds} on {where}: expected one process on a CPU, or 0")
    if not any(weight > 0 for weight in config.tasks.values()):
        raise UserError(f"rl.tasks: got {dict(config.tasks)}, expected weights for some tasks, such as {{gsm8k = 1.0}}")
    if config.minibatches > config.prompts_per_round:
        raise UserError(
            f"rl.minibatches is {config.minibatches}: expected at most rl.prompts_per_round, {config.prompts_per_round}"
        )
    if config.kl_target is not None and not config.kl_weight:
        raise UserError(
            "rl.kl_target is set and rl.kl_weight is 0: expected a weight to begin with, such as rl.kl_weight=0.05"
        )
    make_algorithm(config)
