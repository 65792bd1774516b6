"""Builder of the dpo stage: pairs of answers as batches, DPO's loss, the same loop (arXiv 2305.18290).

The one idea: a pair is two documents side by side in one row, chosen then rejected, so that packing, splitting and
counting are those of every other stage. All tokens of a step share one weight, tokens / pairs: the loop's mean over
tokens becomes the mean over pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import DPOConfig, UserError
from fledgling.data.batch import Batch
from fledgling.files import list_row_blocks
from fledgling.model.transformer import Transformer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.runtime.world import World
from fledgling.tasks.task import shuffle_indices
from fledgling.text.conversation import render_conversation, render_prompt
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.loss import StepMetrics, dpo_loss
from fledgling.train.rl.build import held_out_shards
from fledgling.train.rl.rollout import Rollout, add_reference_logprobs, pack_rollouts
from fledgling.train.stage import Stage
from fledgling.train.supervised import StageContext, build_evals, resolve_micro_batch_size

EXPECTED_LINE = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


def parse_pair(value: dict[str, Any], where: str) -> tuple[dict, dict]:
    """A row as two conversations that share all but their last turn; `where` is file and line for the message.

    prompt (or messages): text, or messages that end with the user's; chosen and rejected: text, or messages whose
    last one is the assistant's answer. Without a prompt, chosen is the whole conversation. Raises UserError.
    """
    said = value.get("prompt", value.get("messages"))
    before = [{"role": "user", "content": said}] if isinstance(said, str) else said
    made = []
    for name in ("chosen", "rejected"):
        answer = value.get(name)
        if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
            before = before if before is not None else answer[:-1]
            answer = answer[-1].get("content")
        if not isinstance(before, list) or not isinstance(answer, str) or not answer.strip():
            raise UserError(f'{where}: no prompt or no text "{name}"; expected {EXPECTED_LINE}')
        made.append({"messages": [*before, {"role": "assistant", "content": answer}]})
    return made[0], made[1]


def render_pair(tokenizer: Tokenizer, pair: Sequence[dict], row_tokens: int, where: str) -> tuple[Rollout, bool]:
    """A pair as one rollout of two documents in at most `row` tokens, its answers learned; and whether it was cut."""
    try:
        prompt = len(render_prompt(tokenizer, {"messages": pair[0]["messages"][:-1]}))
        tokens = [render_conversation(tokenizer, one).tokens for one in pair]
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None
    room = max(row_tokens // 2, row_tokens - min(map(len, tokens)))
    kept = [one[:room] for one in tokens] if sum(map(len, tokens)) > row_tokens else tokens
    if min(map(len, kept)) <= prompt:
        raise UserError(
            f"{where}: the prompt leaves no room for two answers in {row_tokens} tokens; raise model.context"
        )
    learned = [np.arange(len(one)) >= prompt for one in kept]
    whole = np.concatenate(kept).astype(np.int64)
    pair_ = Rollout(whole, np.concatenate(learned), np.zeros(len(whole), np.float32), 0.0)
    return pair_, sum(map(len, kept)) < sum(map(len, tokens))


def load_pairs(path: str, tokenizer: Tokenizer, row_tokens: int, log: Callable[[str], None]) -> list[Rollout]:
    """The pairs of a JSONL file. Raises UserError naming file and line."""
    if not Path(path).is_file():
        raise UserError(f"dpo.pairs: cannot read {path}: no such file; expected JSONL lines like {EXPECTED_LINE}")
    found = [
        render_pair(tokenizer, parse_pair(value, where), row_tokens, where)
        for block in list_row_blocks(Path(path))
        for value, where in block.read_rows()
    ]
    if not found:
        raise UserError(f"dpo.pairs: {path} holds no pair; expected lines like {EXPECTED_LINE}")
    if cut := sum(short for _, short in found):
        log(f"dpo: {cut:,} of {len(found):,} pairs are longer than a row and were cut at their ends")
    return [pair for pair, _ in found]


class PairStream:
    """The stream of a DPO stage: `batch` pairs a step, in an order shuffled anew each epoch, all ranks alike."""

    def __init__(
        self, pairs: Sequence[Rollout], table: DPOConfig, seed: int, micro_batch_size: int, bos: int, world: World,
        reference: Transformer,
    ) -> None:  # fmt: skip
        self.pairs, self.table, self.seed, self.micro_batch_size, self.bos = pairs, table, seed, micro_batch_size, bos
        self.world, self.reference, self.step, self.step_metrics = world, reference, 0, StepMetrics()

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step."""
        places = range(self.step * self.table.batch_size, (self.step + 1) * self.table.batch_size)
        chosen = [self._pair(place) for place in places]
        weight = sum(int(one.sampled.sum()) for one in chosen) / len(chosen)
        weighed = [Rollout(one.tokens, one.sampled, one.logprobs, 0.0, weight) for one in chosen]
        batches = pack_rollouts(weighed, self.reference.config.context, self.micro_batch_size, self.bos)
        self.step += 1
        return [add_reference_logprobs(batch, self.reference) for batch in batches[self.world.rank :: self.world.size]]

    def _pair(self, place: int) -> Rollout:
        epoch, inside = divmod(place, len(self.pairs))
        return self.pairs[shuffle_indices(len(self.pairs), "dpo", self.seed, epoch)[inside]]

    def metrics(self) -> dict[str, float]:
        """Of the step's pairs: the share whose chosen answer gained more, and by how many nats."""
        sums = {"pairs": 0.0, "right": 0.0, "margin": 0.0}
        for told in self.world.all_gather_object(self.step_metrics.pop()):
            for name, values in told.items():
                sums[name] = math.fsum([sums[name], *values])
        count = max(1.0, sums["pairs"])
        return {"accuracy": sums["right"] / count, "margin": sums["margin"] / count}

    def state_dict(self) -> dict:
        """The step is all."""
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        self.step = int(state["step"])

    def skip(self, steps: int) -> None:
        """Leave out the pairs of the next `steps` steps."""
        self.step += steps

    def close(self) -> None:
        """Nothing runs in the background."""


def build_dpo_stage(name: str, context: StageContext) -> Stage:
    """The dpo stage as the recipe's [dpo] table describes it."""
    table: DPOConfig = context.recipe.dpo
    if table.pairs is None:
        raise UserError(f"dpo.pairs is not set: expected a JSONL file of lines like {EXPECTED_LINE}")
    micro, bos = resolve_micro_batch_size(table, context), context.tokenizer.bos
    pairs = load_pairs(table.pairs, context.tokenizer, context.model.config.context + 1, context.recorder.log_notice)
    stream = PairStream(pairs, table, context.recipe.seed, micro, bos, context.world, context.load_initial_model())
    steps = table.steps or max(1, len(pairs) // table.batch_size)
    return Stage(
        name=name,
        steps=steps,
        batches=stream,
        loss=partial(dpo_loss, beta=table.beta, metrics=stream.step_metrics),
        schedule=partial(
            trapezoidal_schedule,
            total_steps=steps,
            warmup_steps=table.warmup_steps,
            decay_fraction=table.decay_fraction,
            final_lr_fraction=table.final_lr_fraction,
        ),
        evals=build_evals(name, table, context, held_out_shards(context), micro),
        save_every=table.save_every,
        micro_batch_size=micro,
        extra_metrics=stream.metrics,
    )
