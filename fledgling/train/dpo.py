"""Builder of the dpo stage: pairs of answers as batches, DPO's loss, the same loop (arXiv 2305.18290).

A pair is two documents of one row, chosen then rejected, so that packing, splitting and counting are those of every
other stage. All tokens of a step share one weight, tokens / pairs: the loop's mean over tokens becomes one over pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import DPOConfig, UserError
from fledgling.data.batch import Batch
from fledgling.files import read_rows
from fledgling.model.transformer import Transformer
from fledgling.plan.stage_length import derive_dpo_steps
from fledgling.runtime.world import World
from fledgling.tasks.task import shuffle_indices
from fledgling.text.conversation import render_conversation, render_prompt
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.context import StageContext, held_out_shards, make_schedule, resolve_micro_batch_size
from fledgling.train.evals import build_evals
from fledgling.train.loss import StepMetrics, dpo_loss
from fledgling.train.rollout import Rollout, add_reference_logprobs, pack_rollouts
from fledgling.train.stage import Stage

EXPECTED_LINE = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


def parse_pair(value: dict[str, Any], where: str) -> tuple[dict, dict]:
    """Returns a JSON row as two conversations that share all but their last turn.

    prompt (or messages) is text, or messages that end with the user's; chosen and rejected are text, or messages whose
    last one is the assistant's answer. Without a prompt, chosen is the whole conversation.

    Raises UserError that begins with `where`, the file and line.
    """
    prompt = value.get("prompt", value.get("messages"))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    conversations = []
    for name in ("chosen", "rejected"):
        answer = value.get(name)
        if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
            messages = messages if messages is not None else answer[:-1]
            answer = answer[-1].get("content")
        if not isinstance(messages, list) or not isinstance(answer, str) or not answer.strip():
            raise UserError(f'{where}: no prompt or no text "{name}"; expected {EXPECTED_LINE}')
        conversations.append({"messages": [*messages, {"role": "assistant", "content": answer}]})
    return conversations[0], conversations[1]


class PairTooLongError(UserError):
    """A pair's prompt and two answers do not fit in a row."""


def render_pair(tokenizer: Tokenizer, pair: Sequence[dict], row_tokens: int, where: str) -> tuple[Rollout, bool]:
    """Returns a pair as one rollout of two documents in at most `row_tokens` tokens, and whether it was cut.

    The answers are targets, the prompts are not.
    """
    try:
        prompt_length = len(render_prompt(tokenizer, {"messages": pair[0]["messages"][:-1]}))
        tokens = [render_conversation(tokenizer, conversation).tokens for conversation in pair]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    limit = max(row_tokens // 2, row_tokens - min(map(len, tokens)))
    documents = [ids[:limit] for ids in tokens] if sum(map(len, tokens)) > row_tokens else tokens
    if min(map(len, documents)) <= prompt_length:
        raise PairTooLongError(
            f"{where}: the prompt and two answers do not fit in {row_tokens} tokens; raise model.context"
        )
    ids = np.concatenate(documents).astype(np.int64)
    is_target = np.concatenate([np.arange(len(document)) >= prompt_length for document in documents])
    rollout = Rollout(ids, is_target, np.zeros(len(ids), np.float32))
    return rollout, sum(map(len, documents)) < sum(map(len, tokens))


def load_pairs(path: str, tokenizer: Tokenizer, row_tokens: int, log: Callable[[str], None]) -> list[Rollout]:
    """Returns the pairs of a JSONL file; leaves out, and counts, those whose prompt leaves no room for two answers.

    Raises UserError that names file and line, also if no pair is left.
    """
    if not Path(path).is_file():
        raise UserError(f"dpo.pairs: cannot read {path}: no such file; expected JSONL lines like {EXPECTED_LINE}")
    pairs, left_out = [], []
    for value, where in read_rows(Path(path)):
        try:
            pairs.append(render_pair(tokenizer, parse_pair(value, where), row_tokens, where))
        except PairTooLongError as error:
            left_out.append(error)
    if not pairs and left_out:
        raise UserError(f"dpo.pairs: none of the {len(left_out):,} pairs can be learned from; {left_out[0]}")
    if not pairs:
        raise UserError(f"dpo.pairs: {path} holds no pair; expected lines like {EXPECTED_LINE}")
    if left_out:
        log(f"dpo: {len(left_out):,} of {len(left_out) + len(pairs):,} pairs are left out (first: {left_out[0]})")
    if cut := sum(was_cut for _, was_cut in pairs):
        log(f"dpo: {cut:,} of {len(pairs):,} pairs are longer than a row and were cut at their ends")
    return [pair for pair, _ in pairs]


class PairStream:
    """The stream of a DPO stage: `batch_size` pairs per step, in an order that is shuffled anew in each epoch.

    All ranks have the same order; each takes its micro-batches.
    """

    def __init__(
        self,
        pairs: Sequence[Rollout],
        config: DPOConfig,
        seed: int,
        micro_batch_size: int,
        bos: int,
        world: World,
        reference: Transformer,
    ) -> None:
        self.pairs, self.config, self.seed, self.micro_batch_size, self.bos = pairs, config, seed, micro_batch_size, bos
        self.world, self.reference, self.step, self.step_metrics = world, reference, 0, StepMetrics()

    def next(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next step."""
        positions = range(self.step * self.config.batch_size, (self.step + 1) * self.config.batch_size)
        pairs = [self._pair(position) for position in positions]
        weight = sum(int(pair.sampled.sum()) for pair in pairs) / len(pairs)
        weighted = [replace(pair, loss_weight=weight) for pair in pairs]
        batches = pack_rollouts(weighted, self.reference.config.context, self.micro_batch_size, self.bos)
        self.step += 1
        return [add_reference_logprobs(batch, self.reference) for batch in batches[self.world.rank :: self.world.size]]

    def _pair(self, position: int) -> Rollout:
        epoch, index = divmod(position, len(self.pairs))
        return self.pairs[shuffle_indices(len(self.pairs), "dpo", self.seed, epoch)[index]]

    def metrics(self) -> dict[str, float]:
        """Returns, of the step's pairs, the fraction whose chosen answer gained more, and the mean margin in nats."""
        sums = self.step_metrics.pop_sums(self.world)
        return {"accuracy": sums["right"] / sums["pairs"], "margin": sums["margin"] / sums["pairs"]}

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
    config = context.recipe.dpo
    if config.pairs is None:
        raise UserError(f"dpo.pairs is not set: expected a JSONL file of lines like {EXPECTED_LINE}")
    micro_batch_size, bos = resolve_micro_batch_size(config, context), context.tokenizer.bos
    pairs = load_pairs(config.pairs, context.tokenizer, context.model.config.context + 1, context.recorder.log_notice)
    context.preparer.documents.prepared.record_files("dpo.pairs", [Path(config.pairs)])
    initial_model = context.load_initial_model()
    stream = PairStream(pairs, config, context.recipe.seed, micro_batch_size, bos, context.world, initial_model)
    steps = derive_dpo_steps(config, len(pairs))
    if (passes := steps * config.batch_size / len(pairs)) > 1:
        context.recorder.log_notice(f"dpo: each of {len(pairs):,} pairs is read {passes:.1f} times")
    return Stage(
        name=name,
        steps=steps,
        batches=stream,
        loss=partial(dpo_loss, beta=config.beta, metrics=stream.step_metrics),
        schedule=make_schedule(config, steps),
        evals=build_evals(config, context, held_out_shards(context), micro_batch_size),
        save_every=config.save_every,
        micro_batch_size=micro_batch_size,
        extra_metrics=stream.metrics,
    )
