"""Builder of the rl stage: rounds of rollouts as batches, the clipped policy gradient as loss, the same loop."""

from __future__ import annotations

from functools import partial

from fledgling.config import RLConfig, UserError
from fledgling.data.batch import Batch
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import is_deterministic
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.tasks import load_task
from fledgling.train.loss import policy_gradient_loss
from fledgling.train.prepare import split_mixture
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.stage import Stage
from fledgling.train.supervised import StageContext, build_evals, resolve_micro_batch_size


def build_rl_stage(name: str, context: StageContext) -> Stage:
    """The rl stage as the recipe's [rl] table describes it."""
    table: RLConfig = context.recipe.rl
    require_valid_rl_config(table)
    micro = resolve_micro_batch_size(table, context)
    rounds = RolloutStream(
        context.engine,
        table,
        {task: load_task(task, context.recipe.run.data_dir) for task, weight in table.tasks.items() if weight > 0},
        context.recipe.seed,
        micro,
        context.world,
        is_deterministic(context.recipe.optimizer, context.world),
        context.load_initial_model() if table.kl_weight > 0 else None,
        context.recorder.log_notice,
    )

    def loss(model: Transformer, batch: Batch):
        return policy_gradient_loss(model, batch, table, rounds.kl_weight, rounds.step_metrics)

    return Stage(
        name=name,
        steps=table.steps,
        batches=rounds,
        loss=loss,
        schedule=partial(
            trapezoidal_schedule,
            total_steps=table.steps,
            warmup_steps=table.warmup_steps,
            decay_fraction=table.decay_fraction,
            final_lr_fraction=table.final_lr_fraction,
        ),
        evals=build_evals(name, table, context, held_out_shards(context), micro),
        save_every=table.save_every,
        micro_batch_size=micro,
        extra_metrics=rounds.metrics,
    )


def require_valid_rl_config(table: RLConfig) -> None:
    """Raise UserError for settings of [rl] that do not go together."""
    if not any(weight > 0 for weight in table.tasks.values()):
        raise UserError(f"rl.tasks: got {dict(table.tasks)}, expected weights for some tasks, such as {{gsm8k = 1.0}}")
    if table.steps is None:
        raise UserError("rl.steps is not set: expected the number of optimizer steps, such as rl.steps=50")
    if table.minibatches > table.prompts_per_round:
        raise UserError(
            f"rl.minibatches is {table.minibatches}: expected at most rl.prompts_per_round, {table.prompts_per_round}"
        )
    if table.algorithm == "ppo" and table.advantage_normalization == "leave_one_out":
        raise UserError(
            'rl.advantage_normalization "leave_one_out" compares a group: with rl.algorithm="ppo" use centred or zscore'
        )
    if table.kl_target is not None and not table.kl_weight:
        raise UserError(
            "rl.kl_target is set and rl.kl_weight is 0: expected a weight to begin with, such as rl.kl_weight=0.05"
        )


def held_out_shards(context: StageContext):
    """The held-out documents of pretraining, so that bits per byte is followed to the end."""
    sources = split_mixture(context.recipe.pretrain.mixture).documents if context.recipe.pretrain.mixture else {}
    return context.preparer.documents.prepare_shards(next(iter(sources)), context.tokenizer).held_out if sources else ()
