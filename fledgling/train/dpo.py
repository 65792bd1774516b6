"""Builder of the dpo stage: pairs of answers, or judged ones, as batches; an objective's loss; the same loop.

A pair is two documents of one row, chosen then rejected, so that packing, splitting and counting are those of every
other stage. All tokens of a step share one weight, tokens / pairs: the loop's mean over tokens becomes one over pairs.
The objectives are those of objectives.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from fledgling.config import DPOConfig, Recipe, UserError
from fledgling.data.batch import Batch
from fledgling.model.transformer import Transformer
from fledgling.optim.sharded import unsharded
from fledgling.plan.stage_length import derive_dpo_steps
from fledgling.runtime.world import World
from fledgling.tasks.task import shuffle_indices
from fledgling.text.preferences import EXPECTED_JUDGED, EXPECTED_PAIR
from fledgling.train.context import StageContext, held_out_shards, make_schedule, resolve_micro_batch_size
from fledgling.train.evals import build_evals
from fledgling.train.loss import StepMetrics
from fledgling.train.preference_data import exchange_answers, load_preferences
from fledgling.train.preference_loss import collect_answers, preference_batch_loss
from fledgling.train.read_files import list_read_files
from fledgling.train.rollout import Rollout, add_reference_logprobs, pack_rollouts
from fledgling.train.stage import Stage


class PreferenceStream:
    """The stream of a dpo stage: `batch_size` pairs (kto: answers) per step, shuffled again in each epoch.

    All ranks have the same order; each takes its micro-batches.

    Args:
        rollouts: of pairs, or of judged answers.
        config: of [dpo].
        seed: of the order.
        micro_batch_size: rows of a micro-batch, at most.
        bos: the token that rows are padded with.
        world: the ranks, among which the rows of a step are divided.
        policy: the model that is trained.
        reference: the weights that the stage began with; None: the objective needs none.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        config: DPOConfig,
        seed: int,
        micro_batch_size: int,
        bos: int,
        world: World,
        policy: Transformer,
        reference: Transformer | None,
    ) -> None:
        self.rollouts, self.config, self.seed = rollouts, config, seed
        self.micro_batch_size, self.bos, self.world = micro_batch_size, bos, world
        self.policy, self.reference, self.step, self.step_metrics = policy, reference, 0, StepMetrics()
        self.baseline = 0.0  # of kto, measured for every step

    def next(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next step."""
        positions = range(self.step * self.config.batch_size, (self.step + 1) * self.config.batch_size)
        rollouts = [self._select_rollout(position) for position in positions]
        weight = sum(int(rollout.sampled.sum()) for rollout in rollouts) / len(rollouts)
        weighted = [replace(rollout, loss_weight=weight) for rollout in rollouts]
        batches = pack_rollouts(weighted, self.policy.config.context, self.micro_batch_size, self.bos)
        if self.config.labels_answers:
            self.baseline = self._measure_baseline(rollouts)
        self.step += 1
        return [add_reference_logprobs(batch, self.reference) for batch in batches[self.world.rank :: self.world.size]]

    def loss(self, model: Transformer, batch: Batch) -> Tensor:
        """Returns the objective of a batch, summed."""
        return preference_batch_loss(model, batch, self.config, self.baseline, self.step_metrics)

    def _select_rollout(self, position: int) -> Rollout:
        epoch, index = divmod(position, len(self.rollouts))
        return self.rollouts[shuffle_indices(len(self.rollouts), "dpo", self.seed, epoch)[index]]

    @torch.no_grad()
    def _measure_baseline(self, rollouts: Sequence[Rollout]) -> float:
        """Returns kto's estimate of the KL divergence from the reference: the mean gain of unrelated answers, or 0.

        It is one number for the whole step, of the weights before it, so that it depends on no split of the step.
        """
        context = self.policy.config.context
        batches = pack_rollouts(exchange_answers(rollouts, context + 1), context, self.micro_batch_size, self.bos)
        gains: list[float] = []
        with unsharded(self.policy):
            for batch in batches[self.world.rank :: self.world.size]:
                batch = add_reference_logprobs(batch, self.reference).to(self.policy.head.weight.device)
                answers = collect_answers(self.policy, self.policy(batch.tokens, batch.document_ids), batch)
                gains += answers.gain[answers.weight > 0].tolist()
        every = list(chain(*self.world.all_gather_object(gains)))
        return max(0.0, math.fsum(every) / max(1, len(every)))

    def metrics(self) -> dict[str, float]:
        """Returns the fraction of the step's pairs on the right side of the margin, and the mean margin."""
        sums = self.step_metrics.pop_sums(self.world)
        values = {"accuracy": sums["correct"] / sums["pairs"], "margin": sums["margin"] / sums["pairs"]}
        return values | ({"baseline": self.baseline} if self.config.labels_answers else {})

    def state_dict(self) -> dict:
        """Returns the step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        """Continues where `state_dict` was taken."""
        self.step = int(state["step"])

    def skip(self, steps: int) -> None:
        """Skips the pairs of the next `steps` steps."""
        self.step += steps

    def close(self) -> None:
        """Does nothing: there are no threads."""


def build_dpo_stage(name: str, context: StageContext) -> Stage:
    """Returns the dpo stage as the recipe's [dpo] table describes it."""
    config, recipe = context.recipe.dpo, context.recipe
    labelled = config.labels_answers
    pairs = require_valid_dpo(recipe)
    micro_batch_size, bos = resolve_micro_batch_size(config, context), context.tokenizer.bos
    row_tokens, log = context.model.config.context + 1, context.recorder.log_notice
    rollouts = load_preferences(pairs, labelled, context.tokenizer, row_tokens, log)
    for source, files in list_read_files(recipe, name).items():
        context.preparer.documents.prepared.record_files(source, files)
    reference = context.load_initial_model() if config.uses_reference else None
    stream = PreferenceStream(
        rollouts, config, recipe.seed, micro_batch_size, bos, context.world, context.model, reference
    )
    steps = derive_dpo_steps(config, len(rollouts))
    if (passes := steps * config.batch_size / len(rollouts)) > 1:
        log(f"dpo: each of {len(rollouts):,} {'answers' if labelled else 'pairs'} is read {passes:.1f} times")
    evals = () if config.trains_head else build_evals(config, context, held_out_shards(context), micro_batch_size)
    return Stage(
        name=name,
        steps=steps,
        batches=stream,
        loss=stream.loss,
        schedule=make_schedule(context.recipe, "dpo", steps),
        evals=evals,
        save_every=config.save_every,
        micro_batch_size=micro_batch_size,
        extra_metrics=stream.metrics,
    )


def require_valid_dpo(recipe: Recipe) -> str:
    """Returns the name of the pairs. Raises UserError without one, and for settings that do not go together."""
    config, labelled = recipe.dpo, recipe.dpo.labels_answers
    if config.pairs is None:
        expected = EXPECTED_JUDGED if labelled else EXPECTED_PAIR
        raise UserError(f"dpo.pairs is not set: expected a file of rows like {expected}")
    if labelled and config.batch_size < 2:
        raise UserError('dpo.batch_size is 1: with dpo.objective="kto" an answer is compared with others; expected 2')
    if config.trains_head and recipe.stages[-1] != "dpo":
        raise UserError(
            'dpo.objective="reward" makes a model that scores answers and writes none: let dpo be the last of stages, '
            'and name the run in rl.rewards of another, as "model:RUN"'
        )
    return config.pairs
