"""The stream of an RL stage: rounds of questions, answers, rewards and advantages, with the weights as they are now.

One idea: a round is asked once and learned from several times. `next()` begins a round when the last one is used up:
`epochs` passes of `minibatches` optimizer steps. GRPO and PPO differ in two places alone: what a rollout carries (its
advantage among its group, or its reward) and what is added before the first pass (nothing, or a critic's values).

P prompts, G answers a prompt, B rows, T positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from fledgling.config import RLConfig, UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.mixture import SourceOrder
from fledgling.evals.chat import crop_prompt, encode_question
from fledgling.infer.engine import Engine
from fledgling.infer.request import Completion
from fledgling.infer.sampling import SamplingParams
from fledgling.model.transformer import Transformer
from fledgling.optim.sharded import unsharded
from fledgling.runtime.world import World
from fledgling.tasks.task import Question, Task
from fledgling.train.loss import StepMetrics
from fledgling.train.rl.advantage import EPSILON, adapt_kl_weight, gae, group_advantages, token_weights
from fledgling.train.rl.collapse import CollapseMonitor, measure_round
from fledgling.train.rl.objective import estimate_kl
from fledgling.train.rl.reward import RewardScorer
from fledgling.train.rl.rollout import (
    Rollout,
    add_reference_logprobs,
    batch_from_json,
    batch_to_json,
    empty_batch,
    pack_rollouts,
)


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt by its number, its answers, their rewards (G,) and the parts of these by name."""

    index: int
    prompt: list[int]
    answers: list[Completion]
    rewards: np.ndarray
    parts: dict[str, np.ndarray]


class RolloutStream:
    """Prompts are a pure function of (seed, global index), noise of (seed, number of the rollout), so that any number
    of ranks asks and answers the same. Each rank answers its share of the prompts; where bits must not depend on the
    ranks (`exact`) each answers all, because a matrix product may round differently in another batch.

    reference: the weights the stage began with, where the divergence from them is wanted. `figures()` is the record.
    """

    def __init__(
        self,
        engine: Engine,
        config: RLConfig,
        tasks: Mapping[str, Task],
        seed: int,
        micro_batch_size: int,
        world: World,
        deterministic: bool = False,
        reference: Transformer | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.engine, self.config, self.seed, self.world, self.deterministic = engine, config, seed, world, deterministic
        self.micro_batch_size, self.step, self.reference = micro_batch_size, 0, reference
        names = sorted(name for name in tasks if config.tasks.get(name, 0) > 0)
        self.tasks = [tasks[name] for name in names]
        self.cycle = SourceOrder.from_weights([config.tasks[name] for name in names])
        self.reward_scorer = RewardScorer(config, engine.tokenizer)
        self.minibatches: list[list[Batch]] = []  # by minibatch, the micro-batches of all ranks
        self.kl_weight, self.step_metrics, self.collapse_monitor = config.kl_weight, StepMetrics(), CollapseMonitor(log)
        self.round_metrics: dict[str, float] = {}  # of the newest round
        self.step_seconds = {"rollouts": 0.0, "scoring": 0.0}  # of this step
        self.total_seconds = {"rollouts": 0.0, "scoring": 0.0, "update": 0.0}  # in all
        self.step_start, self.tokens_per_second, self.log = time.perf_counter(), 0.0, log

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of one round."""
        return self.config.epochs * self.config.minibatches

    def sample_question(self, index: int) -> tuple[Task, Question]:
        """Prompt number `index` of the stage, and the task that scores its answers."""
        source, place = self.cycle.locate(index)
        return self.tasks[source], self.tasks[source].get_practice_question(place, self.seed)

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step."""
        self.step_start, self.step_seconds = time.perf_counter(), {"rollouts": 0.0, "scoring": 0.0}
        if self.step % self.steps_per_round == 0:
            with unsharded(self.engine.source):
                self.minibatches = self._run_round(self.step // self.steps_per_round)
        batches = self._local_batches(self.minibatches[self.step % self.config.minibatches])
        self.step += 1
        return [add_reference_logprobs(batch, self.reference, self.config.temperature) for batch in batches]

    def _local_batches(self, batches: Sequence[Batch]) -> list[Batch]:
        return list(batches[self.world.rank :: self.world.size])

    # ---- a round: ask, answer, score -----------------------------------------------------------------

    def _run_round(self, number: int) -> list[list[Batch]]:
        """The micro-batches of all ranks by minibatch, packed by each of them out of everybody's rollouts."""
        size, count = self.world.size, self.config.prompts_per_round
        prompts = range(number * count, (number + 1) * count)
        share = prompts[self.world.rank :: size]
        answers = self._generate(prompts if self.deterministic or size == 1 else share)
        answered = self._score({index: answers[index] for index in share})
        rewards = np.stack([one.rewards for one in answered])  # (P, G)
        parts = {name: np.stack([one.parts[name] for one in answered]) for name in answered[0].parts}
        self.round_metrics = measure_round(rewards, parts, [answer for one in answered for answer in one.answers])
        worth = (
            rewards
            if self.config.algorithm == "ppo"
            else group_advantages(rewards, self.config.advantage_normalization)
        )
        quiet = (
            np.ptp(rewards, axis=1) == 0
            if self.config.algorithm == "grpo" and self.config.drop_uniform_groups
            else None
        )
        split = self.config.minibatches
        held = [
            self._pack(
                [
                    (one.prompt, answer, float(w))
                    for i, (one, row) in list(enumerate(zip(answered, worth, strict=True)))[part::split]
                    for answer, w in zip(one.answers, row, strict=True)
                    if answer.tokens and (quiet is None or not quiet[i])
                ]
            )
            for part in range(split)
        ]
        self._prepare(held)
        self.collapse_monitor.update(self.round_metrics)
        return held

    def _generate(self, indices: Sequence[int]) -> dict[int, list[Completion]]:
        """Ask prompts by number; nothing depends on which rank does it, up to rounding."""
        began, table = time.perf_counter(), self.config
        prompts = [self.prompt_tokens(index) for index in indices]
        sampling = SamplingParams(temperature=table.temperature, max_new_tokens=table.max_new_tokens, seed=self.seed)
        found = self.engine.generate(
            [prompt for prompt in prompts for _ in range(table.group_size)],
            sampling,
            max_batch_size=max(1, len(prompts) * table.group_size),
            request_indices=[index * table.group_size + k for index in indices for k in range(table.group_size)],
        )
        self.step_seconds["rollouts"] = time.perf_counter() - began
        written = sum(len(one.tokens) for one in found)
        self.tokens_per_second = written / max(1e-9, self.step_seconds["rollouts"])
        return {index: found[i * table.group_size : (i + 1) * table.group_size] for i, index in enumerate(indices)}

    def prompt_tokens(self, index: int) -> list[int]:
        """Prompt number `index` as token ids."""
        ids = encode_question(self.engine.tokenizer, self.sample_question(index)[1])
        return crop_prompt(ids, self.engine.context - min(self.config.max_new_tokens, self.engine.context // 2))[0]

    def _score(self, answers: Mapping[int, list[Completion]]) -> list[ScoredPrompt]:
        """Score this rank's share, and get everybody's; a reward that fails on one rank ends the round on all."""
        began, group = time.perf_counter(), self.config.group_size
        asked = [self.sample_question(index) for index in answers for _ in range(group)]
        problem, mine = None, []
        try:
            total, parts = self.reward_scorer.score(asked, [answer for given in answers.values() for answer in given])
        except UserError as error:
            problem = str(error)
        else:
            for i, (index, given) in enumerate(answers.items()):
                place = slice(i * group, (i + 1) * group)
                here = {name: part[place].astype(np.float32) for name, part in parts.items()}
                mine.append(
                    ScoredPrompt(index, self.prompt_tokens(index), given, total[place].astype(np.float32), here)
                )
        everybody = self.world.all_gather_object((problem, mine))
        self.step_seconds["scoring"] = time.perf_counter() - began
        for told, _ in everybody:
            if told is not None:
                raise UserError(told)
        return sorted(chain(*(part for _, part in everybody)), key=lambda one: one.index)

    def _pack(self, rollouts: Sequence[tuple[list[int], Completion, float]]) -> list[Batch]:
        """Micro-batches of (prompt, answer, worth); one without targets where there is none."""
        context, bos = self.engine.source.config.context, self.engine.tokenizer.bos
        if not rollouts:
            return [empty_batch(context, self.micro_batch_size, bos)]
        room = [context + 1 - len(prompt) for prompt, _, _ in rollouts]
        lengths = [a.forced[:most].count(False) for (_, a, _), most in zip(rollouts, room, strict=True)]
        weights = token_weights(lengths, self.config.loss_normalization)
        made = [Rollout.from_completion(*one, float(weight)) for one, weight in zip(rollouts, weights, strict=True)]
        return pack_rollouts(made, context, self.micro_batch_size, bos)

    # ---- before the first pass: reference, critic -----------------------------------------------------

    def _prepare(self, held: list[list[Batch]]) -> None:
        """Add what the weights of this moment are needed for, to this rank's micro-batches and to those of all."""
        mine = [batch for part in held for batch in self._local_batches(part)]
        for batch in mine:
            add_reference_logprobs(batch, self.reference, self.config.temperature)
        if self.reference is not None:
            self._adapt_kl_weight(mine)
        if self.config.algorithm == "ppo":
            self._add_critic_advantages(mine)
        if self.world.size > 1 and self.steps_per_round > 1:  # a checkpoint within the round holds all of it
            everybody = [iter(part) for part in self.world.all_gather_object([vars(batch) for batch in mine])]
            for part in held:
                for i in range(len(part)):
                    part[i] = Batch(**next(everybody[i % self.world.size]))

    def _adapt_kl_weight(self, mine: Iterable[Batch]) -> None:
        """Measure the divergence of the policy that sampled, and let its weight follow the target."""
        sums = []
        for batch in mine:
            kept = batch.targets != IGNORE_INDEX
            k3 = estimate_kl(batch.old_logprobs, batch.reference_logprobs)
            sums.append((float(k3[kept].double().sum()), int(kept.sum())))
        total, count = self._sum_over_ranks(sums)
        self.round_metrics["kl"] = total / max(1, count)
        if self.config.kl_target is not None and count:
            self.kl_weight = adapt_kl_weight(self.kl_weight, self.round_metrics["kl"], self.config.kl_target)
        self.round_metrics["kl_weight"] = self.kl_weight

    @torch.no_grad()
    def _add_critic_advantages(self, mine: Sequence[Batch]) -> None:
        """Turn rewards into returns and advantages by the critic's values of now."""
        model, table, sums = self.engine.source, self.config, []
        for batch in mine:
            here = batch.to(model.head.weight.device)
            batch.old_values = model.critic(model(here.tokens, here.document_ids)).to(batch.tokens.device)
            kept = (batch.targets != IGNORE_INDEX).numpy()
            rewards, values = batch.advantages.double().numpy(), batch.old_values.double().numpy()
            found = gae(rewards, values, kept, batch.document_ids.numpy(), table.gamma, table.gae_lambda)
            batch.returns = torch.from_numpy(np.where(kept, found + values, 0.0)).float()
            batch.advantages = torch.from_numpy(found).float()
            sums.append((math.fsum(found[kept]), math.fsum(found[kept] ** 2), int(kept.sum())))
        total, square, count = self._sum_over_ranks(sums) if sums or self.world.size > 1 else (0.0, 0.0, 0)
        mean = total / max(1, count)
        deviation = max(0.0, square / max(1, count) - mean**2) ** 0.5
        scale = 1 / (deviation + EPSILON) if table.advantage_normalization == "zscore" else 1.0
        for batch in mine:
            batch.advantages = torch.where(batch.targets != IGNORE_INDEX, (batch.advantages - mean) * scale, 0.0)

    def _sum_over_ranks(self, sums: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        """Sums over the micro-batches of all ranks, without rounding in between: the same in any order."""
        everybody = list(chain(*self.world.all_gather_object(list(sums))))
        return tuple(math.fsum(column) for column in zip(*everybody, strict=True))

    # ---- record, resume ------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """What to record of the step that has just ended: the newest round's figures, what the loss saw, and where the
        step's time went."""
        now = time.perf_counter()
        parts = {**self.step_seconds, "update": max(0.0, now - self.step_start - sum(self.step_seconds.values()))}
        self.total_seconds = {name: self.total_seconds[name] + seconds for name, seconds in parts.items()}
        seen: dict[str, float] = {}
        for told in self.world.all_gather_object(self.step_metrics.pop()):
            for name, values in told.items():
                seen[name] = math.fsum([seen.get(name, 0.0), *values])
        count = max(1.0, seen.pop("targets", 0.0))
        names = {"clipped": "clip_share", "kl": "kl_after", "value_loss": "value_loss"}
        return {
            **self.round_metrics,
            **{names[name]: value / count for name, value in seen.items()},
            "rollout_tokens_per_second": self.tokens_per_second,
            **{f"share_{name}": spent / sum(parts.values()) for name, spent in parts.items()},
        }

    def state_dict(self) -> dict:
        """The step, the divergence's weight; within a round also its rollouts, whose weights are gone."""
        within = self.step % self.steps_per_round > 0
        held = [[batch_to_json(batch) for batch in part] for part in self.minibatches] if within else []
        return {
            "step": self.step,
            "kl": self.kl_weight,
            "held": held,
            "last": dict(self.round_metrics) if within else {},
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.kl_weight = int(state["step"]), float(state["kl"])
        self.minibatches = [[batch_from_json(fields) for fields in part] for part in state["held"]]
        self.round_metrics = dict(state["last"])

    def skip(self, steps: int) -> None:
        """Leave out the next `steps` steps, and what is left of their last round."""
        self.step = -(-(self.step + steps) // self.steps_per_round) * self.steps_per_round
        self.minibatches = []

    def close(self) -> None:
        """End what runs beside, the processes of the user's rewards, and say where the time went."""
        self.reward_scorer.close()
        if total := sum(self.total_seconds.values()):
            shares = ", ".join(f"{100 * spent / total:.0f} % {name}" for name, spent in self.total_seconds.items())
            self.log(f"rl: {total:.0f} s, of these {shares}; rollouts at {self.tokens_per_second:,.0f} tokens a second")
