"""Builder of the rl stage: rounds of rollouts as batches, the clipped policy gradient as loss, the same loop."""

from __future__ import annotations

from functools import partial

from fledgling.config import RLTable, UserError
from fledgling.data.batch import Batch
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import is_exact
from fledgling.optim.schedule import trapezoid
from fledgling.tasks import get
from fledgling.train.loss import policy_gradient
from fledgling.train.prepare import parts
from fledgling.train.rl.rounds import Rounds
from fledgling.train.stage import Stage
from fledgling.train.supervised import Context, evals, micro_batch


def build(name: str, context: Context) -> Stage:
    """The rl stage as the recipe's [rl] table describes it."""
    table: RLTable = context.recipe.rl
    check(table)
    micro = micro_batch(table, context)
    rounds = Rounds(
        context.engine,
        table,
        {task: get(task, context.recipe.run.data_dir) for task, weight in table.tasks.items() if weight > 0},
        context.recipe.seed,
        micro,
        context.world,
        is_exact(context.recipe.optimizer, context.world),
        context.beginning() if table.kl > 0 else None,
        context.recorder.notice,
    )

    def loss(model: Transformer, batch: Batch):
        return policy_gradient(model, batch, table, rounds.kl, rounds.tally)

    return Stage(
        name=name,
        steps=table.steps,
        batches=rounds,
        loss=loss,
        schedule=partial(trapezoid, steps=table.steps, warmup=table.warmup, decay=table.decay, final=table.final),
        evals=evals(name, table, context, held_out(context), micro),
        save_every=table.save_every,
        micro_batch=micro,
        extra=rounds.figures,
    )


def check(table: RLTable) -> None:
    """Raise UserError for settings of [rl] that do not go together."""
    if not any(weight > 0 for weight in table.tasks.values()):
        raise UserError(f"rl.tasks: got {dict(table.tasks)}, expected weights for some tasks, such as {{gsm8k = 1.0}}")
    if table.steps is None:
        raise UserError("rl.steps is not set: expected the number of optimizer steps, such as rl.steps=50")
    if table.minibatches > table.prompts:
        raise UserError(f"rl.minibatches is {table.minibatches}: expected at most rl.prompts, {table.prompts}")
    if table.algorithm == "ppo" and table.advantage == "leave_one_out":
        raise UserError('rl.advantage "leave_one_out" compares a group: with rl.algorithm="ppo" use centred or zscore')
    if table.kl_target is not None and not table.kl:
        raise UserError("rl.kl_target is set and rl.kl is 0: expected a weight to begin with, such as rl.kl=0.05")


def held_out(context: Context):
    """The held-out documents of pretraining, so that bits per byte is followed to the end."""
    sources = parts(context.recipe.pretrain.mixture).documents if context.recipe.pretrain.mixture else {}
    return context.preparer.documents(next(iter(sources)), context.tokenizer).held_out if sources else ()
