"""Builder of the rl stage: rollouts as batches, the clipped policy gradient as loss, the same loop."""

from __future__ import annotations

from functools import partial

from fledgling.config import RLTable, UserError
from fledgling.optim.optimizer import is_exact
from fledgling.optim.schedule import trapezoid
from fledgling.train.loss import policy_gradient
from fledgling.train.prepare import parts
from fledgling.train.rollout import Rollouts
from fledgling.train.stage import Stage
from fledgling.train.supervised import Context, evals, micro_batch


def build(name: str, context: Context) -> Stage:
    """The rl stage as the recipe's [rl] table describes it."""
    table: RLTable = context.recipe.rl
    if not any(weight > 0 for weight in table.tasks.values()):
        raise UserError(f"rl.tasks: got {dict(table.tasks)}, expected weights for some tasks, such as {{gsm8k = 1.0}}")
    if table.steps is None:
        raise UserError("rl.steps is not set: expected the number of optimizer steps, such as rl.steps=50")
    micro = micro_batch(table, context)
    rollouts = Rollouts(
        context.engine,
        table,
        context.recipe.seed,
        micro,
        context.world,
        is_exact(context.recipe.optimizer, context.world),
        context.recipe.run.data_dir,
    )
    return Stage(
        name=name,
        steps=table.steps,
        batches=rollouts,
        loss=partial(policy_gradient, table=table),
        schedule=partial(trapezoid, steps=table.steps, warmup=table.warmup, decay=table.decay, final=table.final),
        evals=evals(name, table, context, _held_out(context), micro),
        save_every=table.save_every,
        micro_batch=micro,
        extra=lambda: rollouts.last,
    )


def _held_out(context: Context):
    """The held-out documents of pretraining, so that bits per byte is followed to the end."""
    sources = parts(context.recipe.pretrain.mixture).documents if context.recipe.pretrain.mixture else {}
    return context.preparer.documents(next(iter(sources)), context.tokenizer)[1] if sources else None
