"""The stream of an RL stage: rounds of prompts, answers of the current weights, rewards and advantages.

A round is sampled once (`round_sampler.py`) and trained on for `epochs` passes of `minibatches` optimizer steps;
`next()` starts a round when the last one is used up. What depends on the algorithm is a value of `algorithm.py`.

Shapes: P prompts, G answers per prompt, B rows, T positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch import Tensor

from fledgling.config import RLConfig, UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.mixture import SourceOrder
from fledgling.evals.chat import crop_prompt, encode_question
from fledgling.infer.engine import Engine
from fledgling.infer.request import Completion
from fledgling.model.transformer import Transformer
from fledgling.optim.sharded import unsharded
from fledgling.runtime.world import World
from fledgling.tasks.task import Question, Task
from fledgling.train.loss import StepMetrics, estimate_kl
from fledgling.train.rl.advantage import adapt_kl_weight, token_weights
from fledgling.train.rl.algorithm import make_algorithm, sum_over_ranks
from fledgling.train.rl.collapse import CollapseMonitor, measure_round
from fledgling.train.rl.reward import RewardScorer
from fledgling.train.rl.round_sampler import RoundSampler
from fledgling.train.rollout import (
    Rollout,
    add_reference_logprobs,
    batch_from_json,
    batch_to_json,
    empty_batch,
    pack_rollouts,
)


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt with its answers and their rewards."""

    index: int  # among all prompts of the stage
    prompt: list[int]  # token ids
    answers: list[Completion]  # G
    rewards: np.ndarray  # (G,)
    reward_parts: dict[str, np.ndarray]  # by name, (G,) each
    turns: list[list[tuple[int, float]]]  # of each answer (position in it, reward), included in `rewards`


ScoredAnswer = tuple[
    list[int], Completion, float, float, list[tuple[int, float]]
]  # prompt, ..., reward, advantage, turns


class RolloutStream:
    """Samples, scores and packs the rounds of an RL stage.

    Prompts are a pure function of (seed, index of the prompt) and noise one of (seed, index of the rollout), so that
    any number of ranks sees the same. Each rank answers its share of the prompts; if `deterministic`, each answers all,
    because a matrix product may round differently in a batch of another size.

    Args:
        tasks: by name, those that the recipe weights.
        reference: the stage's initial weights, if the KL divergence from them is measured.
        log: receives notices for the user.
        steps: of the stage, beyond which no round is sampled ahead; None: endless.
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
        steps: int | None = None,
    ) -> None:
        self.engine, self.config, self.seed, self.world, self.deterministic = engine, config, seed, world, deterministic
        self.micro_batch_size, self.step, self.reference, self.log = micro_batch_size, 0, reference, log
        self.algorithm = make_algorithm(config)
        names = sorted(name for name in tasks if config.tasks.get(name, 0) > 0)
        self.tasks = [tasks[name] for name in names]
        self.source_order = SourceOrder.from_weights([config.tasks[name] for name in names])
        self.reward_scorer = RewardScorer(config, engine.tokenizer, engine.source.head.weight.device)
        self.sampler = RoundSampler(
            engine, config, seed, self.prompt_tokens, self.sample_question, self._round_prompts, self._count_rounds
        )
        self.steps, self.skipped = steps, 0  # skipped: of `step`, those that no update was made with
        self.minibatches: list[list[Batch]] = []  # of the current round: the micro-batches of all ranks
        self.kl_weight, self.step_metrics, self.collapse_monitor = config.kl_weight, StepMetrics(), CollapseMonitor(log)
        self.round_metrics: dict[str, float] = {}  # of the newest round
        self.step_seconds = {"rollouts": 0.0, "scoring": 0.0}
        self.total_seconds = {"rollouts": 0.0, "scoring": 0.0, "update": 0.0}
        self.step_start, self.tokens_per_second = time.perf_counter(), 0.0

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of one round."""
        return self.config.epochs * self.config.minibatches

    def sample_question(self, index: int) -> tuple[Task, Question]:
        """Returns prompt number `index` of the stage, and the task that scores its answers."""
        source, position = self.source_order.locate(index)
        return self.tasks[source], self.tasks[source].get_practice_question(position, self.seed)

    def loss(self, model: Transformer, batch: Batch) -> Tensor:
        """Returns the algorithm's loss, summed over the batch's targets."""
        return self.algorithm.loss(model, batch, self.kl_weight, self.step_metrics)

    def next(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next step."""
        self.step_start, self.step_seconds = time.perf_counter(), {"rollouts": 0.0, "scoring": 0.0}
        if self.step % self.steps_per_round == 0:
            with unsharded(self.engine.source):
                self.minibatches = self._run_round(self.step // self.steps_per_round)
        batches = self._local_batches(self.minibatches[self.step % self.config.minibatches])
        self.step += 1
        return [add_reference_logprobs(batch, self.reference, self.config.temperature) for batch in batches]

    def _local_batches(self, batches: Sequence[Batch]) -> list[Batch]:
        return list(batches[self.world.rank :: self.world.size])

    # ---- a round: sample, score, pack ----------------------------------------------------------------

    def _run_round(self, number: int) -> list[list[Batch]]:
        """Returns the micro-batches of all ranks by minibatch; every rank packs the rollouts of all of them."""
        start = time.perf_counter()
        sampled = self.sampler.take(number)
        self.step_seconds["rollouts"] = time.perf_counter() - start
        self.tokens_per_second = sampled.tokens_per_second
        local_prompts = self._select_prompts(number)[self.world.rank :: self.world.size]
        scored = self._score({index: sampled.answers[index] for index in local_prompts})
        rewards = np.stack([prompt.rewards for prompt in scored])  # (P, G)
        parts = {name: np.stack([prompt.reward_parts[name] for prompt in scored]) for name in scored[0].reward_parts}
        self.round_metrics = measure_round(rewards, parts, [answer for prompt in scored for answer in prompt.answers])
        advantages, keep = self.algorithm.advantages(rewards), self.algorithm.keep_groups(rewards)
        minibatches = []
        for part in range(self.config.minibatches):
            rollouts = [
                (scored[i].prompt, answer, float(rewards[i, k]), float(advantages[i, k]), scored[i].turns[k])
                for i in range(part, len(scored), self.config.minibatches)
                for k, answer in enumerate(scored[i].answers)
                if answer.tokens and keep[i]
            ]
            minibatches.append(self._pack(rollouts))
        self._add_model_values(minibatches)
        self.collapse_monitor.update(self.round_metrics)
        return minibatches

    def _select_prompts(self, number: int) -> range:
        """Returns the indices of the prompts of a round."""
        count = self.config.prompts_per_round
        return range(number * count, (number + 1) * count)

    def _round_prompts(self, number: int) -> range:
        """Returns the prompts of a round that this rank answers."""
        prompts = self._select_prompts(number)
        return prompts if self.deterministic or self.world.size == 1 else prompts[self.world.rank :: self.world.size]

    def _count_rounds(self) -> float:
        """Returns the rounds of the stage, those included of which steps were skipped."""
        return math.inf if self.steps is None else math.ceil((self.steps + self.skipped) / self.steps_per_round)

    @property
    def max_prompt_tokens(self) -> int:
        """The tokens that a prompt may have."""
        return self.engine.context - min(self.config.max_new_tokens, self.engine.context // 2)

    def crop_prompt(self, index: int) -> tuple[list[int], bool]:
        """Returns prompt number `index` as token ids, and whether it was too long and lost its beginning."""
        return crop_prompt(
            encode_question(self.engine.tokenizer, self.sample_question(index)[1]), self.max_prompt_tokens
        )

    def prompt_tokens(self, index: int) -> list[int]:
        """Returns prompt number `index` as token ids."""
        return self.crop_prompt(index)[0]

    def _score(self, answers: Mapping[int, list[Completion]]) -> list[ScoredPrompt]:
        """Scores this rank's answers and returns the scored prompts of all ranks.

        Raises UserError on all ranks if a reward fails on one.
        """
        start, group_size = time.perf_counter(), self.config.group_size
        questions = [self.sample_question(index) for index in answers for _ in range(group_size)]
        error_message, local = None, []
        try:
            completions = [answer for group in answers.values() for answer in group]
            scores = self.reward_scorer.score(questions, completions)
        except UserError as error:
            error_message = str(error)
        else:
            for i, (index, group) in enumerate(answers.items()):
                span = slice(i * group_size, (i + 1) * group_size)
                parts = {name: part[span].astype(np.float32) for name, part in scores.parts.items()}
                rewards, turns = scores.total[span].astype(np.float32), scores.turns[span]
                local.append(ScoredPrompt(index, self.prompt_tokens(index), group, rewards, parts, turns))
        gathered = self.world.all_gather_object((error_message, local))
        self.step_seconds["scoring"] = time.perf_counter() - start
        for message, _ in gathered:
            if message is not None:
                raise UserError(message)
        return sorted(chain(*(prompts for _, prompts in gathered)), key=lambda prompt: prompt.index)

    def _pack(self, rollouts: Sequence[ScoredAnswer]) -> list[Batch]:
        """Returns micro-batches of answers; one without targets if there are none."""
        context, bos = self.engine.source.config.context, self.engine.tokenizer.bos
        if not rollouts:
            return [empty_batch(context, self.micro_batch_size, bos)]
        lengths = [answer.forced[: context + 1 - len(prompt)].count(False) for prompt, answer, *_ in rollouts]
        weights = token_weights(lengths, self.algorithm.loss_normalization, self.config.max_new_tokens)
        packed = [
            Rollout.from_completion(prompt, answer, reward, advantage, float(weight), turns)
            for (prompt, answer, reward, advantage, turns), weight in zip(rollouts, weights, strict=True)
        ]
        return pack_rollouts(packed, context, self.micro_batch_size, bos)

    # ---- before the first pass: reference, critic -----------------------------------------------------

    def _add_model_values(self, minibatches: list[list[Batch]]) -> None:
        """Adds to the batches what needs the weights that sampled them: KL weight, values, advantages."""
        local = [batch for part in minibatches for batch in self._local_batches(part)]
        for batch in local:
            add_reference_logprobs(batch, self.reference, self.config.temperature)
        if self.reference is not None:
            self._update_kl_weight(local)
        self.algorithm.add_token_advantages(local, self.engine.source, self.world)
        if self.world.size > 1 and self.steps_per_round > 1:  # a checkpoint within the round holds all of it
            gathered = [iter(part) for part in self.world.all_gather_object([vars(batch) for batch in local])]
            for part in minibatches:
                for i in range(len(part)):
                    part[i] = Batch(**next(gathered[i % self.world.size]))

    def _update_kl_weight(self, batches: Iterable[Batch]) -> None:
        """Measures the KL divergence of the sampling policy from the reference, and adapts the weight to its target."""
        sums = []
        for batch in batches:
            assert batch.old_logprobs is not None and batch.reference_logprobs is not None
            mask = batch.targets != IGNORE_INDEX
            kl = estimate_kl(batch.old_logprobs, batch.reference_logprobs)
            sums.append((float(kl[mask].double().sum()), int(mask.sum())))
        total, count = sum_over_ranks(sums, 2, self.world)
        if count:  # a round without a sampled token has no divergence
            self.round_metrics["kl"] = total / count
            if self.config.kl_target is not None:
                self.kl_weight = adapt_kl_weight(self.kl_weight, self.round_metrics["kl"], self.config.kl_target)
        self.round_metrics["kl_weight"] = self.kl_weight

    # ---- metrics, resume -----------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the step that has just ended: of its round, of its loss, and of its time."""
        update = max(0.0, time.perf_counter() - self.step_start - sum(self.step_seconds.values()))
        seconds = {**self.step_seconds, "update": update}
        self.total_seconds = {name: self.total_seconds[name] + spent for name, spent in seconds.items()}
        sums = self.step_metrics.pop_sums(self.world)
        count = sums.pop("targets", 0.0)
        names = {"clipped": "clip_fraction", "kl": "kl_after", "value_loss": "value_loss"}
        return {
            **self.round_metrics,
            **({names[name]: value / count for name, value in sums.items()} if count else {}),
            "rollout_tokens_per_second": self.tokens_per_second,
            **{f"share_{name}": spent / sum(seconds.values()) for name, spent in seconds.items()},
        }

    def state_dict(self) -> dict:
        """Returns steps, KL weight and counts, within a round its batches, and rounds that were sampled ahead."""
        within_round = self.step % self.steps_per_round > 0
        held = [[batch_to_json(batch) for batch in part] for part in self.minibatches] if within_round else []
        last = dict(self.round_metrics) if within_round else {}
        collapse = self.collapse_monitor.state_dict()
        state = {"step": self.step, "kl": self.kl_weight, "held": held, "last": last, "collapse": collapse}
        state |= {"skipped": self.skipped} if self.skipped else {}
        return state | ({"pending": self.sampler.state_dict()} if self.config.stale_rounds else {})

    def load_state_dict(self, state: dict) -> None:
        """Continues where `state_dict` was taken."""
        self.step, self.skipped = int(state["step"]), int(state.get("skipped", 0))
        if self.config.kl_target is not None:  # else the recipe's weight holds, also where it was changed
            self.kl_weight = float(state["kl"])
        self.minibatches = [[batch_from_json(values) for values in part] for part in state["held"]]
        self.round_metrics = dict(state["last"])
        self.collapse_monitor.load_state_dict(state.get("collapse", {}))
        self.sampler.load_state_dict(state.get("pending", {}))

    def skip(self, steps: int) -> None:
        """Skips the next `steps` steps, and the rest of the round of the last one; gives as many more at the end."""
        before = self.step
        self.step = -(-(before + steps) // self.steps_per_round) * self.steps_per_round
        self.skipped += self.step - before
        self.minibatches = []
        self.sampler.forget()

    def close(self) -> None:
        """Ends the thread of rollouts and the processes of custom rewards, and logs what the time was spent on."""
        self.sampler.close()
        self.reward_scorer.close()
        if total := sum(self.total_seconds.values()):
            shares = ", ".join(f"{100 * spent / total:.0f} % {name}" for name, spent in self.total_seconds.items())
            speed = f"{self.tokens_per_second:,.0f} tokens a second"
            self.log(f"rl: {total:.0f} s in this session, of these {shares}; rollouts at {speed}")
