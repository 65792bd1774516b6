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

from fledgling.config import RLTable, UserError
from fledgling.data.batch import IGNORE, Batch
from fledgling.data.mixture import Cycle
from fledgling.evals.chat import crop, prompt_ids
from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.infer.ticket import Completion
from fledgling.model.transformer import Transformer
from fledgling.optim.sharded import whole
from fledgling.runtime.world import World
from fledgling.tasks.task import Question, Task
from fledgling.train.loss import Tally
from fledgling.train.rl.advantage import EPSILON, adapted, generalized, group_advantages, token_weights
from fledgling.train.rl.objective import kl_estimate
from fledgling.train.rl.reward import Rewards
from fledgling.train.rl.rollout import Rollout, empty, from_json, to_batches, to_json, with_reference
from fledgling.train.rl.watch import Watch, round_figures


@dataclass(frozen=True)
class Answered:
    """A prompt by its number, its answers, their rewards (G,) and the parts of these by name."""

    index: int
    prompt: list[int]
    answers: list[Completion]
    rewards: np.ndarray
    parts: dict[str, np.ndarray]


class Rounds:
    """Prompts are a pure function of (seed, global index), noise of (seed, number of the rollout), so that any number
    of ranks asks and answers the same. Each rank answers its share of the prompts; where bits must not depend on the
    ranks (`exact`) each answers all, because a matrix product may round differently in another batch.

    reference: the weights the stage began with, where the divergence from them is wanted. `figures()` is the record.
    """

    def __init__(
        self,
        engine: Engine,
        table: RLTable,
        tasks: Mapping[str, Task],
        seed: int,
        micro_rows: int,
        world: World,
        exact: bool = False,
        reference: Transformer | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.engine, self.table, self.seed, self.world, self.exact = engine, table, seed, world, exact
        self.micro_rows, self.step, self.reference = micro_rows, 0, reference
        names = sorted(name for name in tasks if table.tasks.get(name, 0) > 0)
        self.tasks = [tasks[name] for name in names]
        self.cycle = Cycle.of([table.tasks[name] for name in names])
        self.rewards = Rewards(table, engine.tokenizer)
        self.held: list[list[Batch]] = []  # by minibatch, the micro-batches of all ranks
        self.kl, self.tally, self.watch = table.kl, Tally(), Watch(say)
        self.last: dict[str, float] = {}  # of the newest round
        self.seconds = {"rollouts": 0.0, "scoring": 0.0}  # of this step
        self.spent = {"rollouts": 0.0, "scoring": 0.0, "update": 0.0}  # in all
        self.since, self.speed, self.say = time.perf_counter(), 0.0, say

    @property
    def per_round(self) -> int:
        """Optimizer steps of one round."""
        return self.table.epochs * self.table.minibatches

    def question(self, index: int) -> tuple[Task, Question]:
        """Prompt number `index` of the stage, and the task that scores its answers."""
        source, place = self.cycle.locate(index)
        return self.tasks[source], self.tasks[source].practice(place, self.seed)

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step."""
        self.since, self.seconds = time.perf_counter(), {"rollouts": 0.0, "scoring": 0.0}
        if self.step % self.per_round == 0:
            with whole(self.engine.source):
                self.held = self._round(self.step // self.per_round)
        batches = self._mine(self.held[self.step % self.table.minibatches])
        self.step += 1
        return [with_reference(batch, self.reference, self.table.temperature) for batch in batches]

    def _mine(self, batches: Sequence[Batch]) -> list[Batch]:
        return list(batches[self.world.rank :: self.world.size])

    # ---- a round: ask, answer, score -----------------------------------------------------------------

    def _round(self, number: int) -> list[list[Batch]]:
        """The micro-batches of all ranks by minibatch, packed by each of them out of everybody's rollouts."""
        size, count = self.world.size, self.table.prompts
        prompts = range(number * count, (number + 1) * count)
        share = prompts[self.world.rank :: size]
        answers = self._answers(prompts if self.exact or size == 1 else share)
        answered = self._scored({index: answers[index] for index in share})
        rewards = np.stack([one.rewards for one in answered])  # (P, G)
        parts = {name: np.stack([one.parts[name] for one in answered]) for name in answered[0].parts}
        self.last = round_figures(rewards, parts, [answer for one in answered for answer in one.answers])
        worth = rewards if self.table.algorithm == "ppo" else group_advantages(rewards, self.table.advantage)
        quiet = np.ptp(rewards, axis=1) == 0 if self.table.algorithm == "grpo" and self.table.drop_silent else None
        split = self.table.minibatches
        held = [
            self._packed(
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
        self.watch.look(self.last)
        return held

    def _answers(self, indices: Sequence[int]) -> dict[int, list[Completion]]:
        """Ask prompts by number; nothing depends on which rank does it, up to rounding."""
        began, table = time.perf_counter(), self.table
        prompts = [self.prompt(index) for index in indices]
        sampling = Sampling(temperature=table.temperature, max_tokens=table.max_tokens, seed=self.seed)
        found = self.engine.generate(
            [prompt for prompt in prompts for _ in range(table.group)],
            sampling,
            rows=max(1, len(prompts) * table.group),
            numbers=[index * table.group + k for index in indices for k in range(table.group)],
        )
        self.seconds["rollouts"] = time.perf_counter() - began
        written = sum(len(one.tokens) for one in found)
        self.speed = written / max(1e-9, self.seconds["rollouts"])
        return {index: found[i * table.group : (i + 1) * table.group] for i, index in enumerate(indices)}

    def prompt(self, index: int) -> list[int]:
        """Prompt number `index` as token ids."""
        ids = prompt_ids(self.engine.tokenizer, self.question(index)[1])
        return crop(ids, self.engine.context - min(self.table.max_tokens, self.engine.context // 2))[0]

    def _scored(self, answers: Mapping[int, list[Completion]]) -> list[Answered]:
        """Score this rank's share, and get everybody's; a reward that fails on one rank ends the round on all."""
        began, group = time.perf_counter(), self.table.group
        asked = [self.question(index) for index in answers for _ in range(group)]
        problem, mine = None, []
        try:
            total, parts = self.rewards.score(asked, [answer for given in answers.values() for answer in given])
        except UserError as error:
            problem = str(error)
        else:
            for i, (index, given) in enumerate(answers.items()):
                place = slice(i * group, (i + 1) * group)
                here = {name: part[place].astype(np.float32) for name, part in parts.items()}
                mine.append(Answered(index, self.prompt(index), given, total[place].astype(np.float32), here))
        everybody = self.world.gather((problem, mine))
        self.seconds["scoring"] = time.perf_counter() - began
        for told, _ in everybody:
            if told is not None:
                raise UserError(told)
        return sorted(chain(*(part for _, part in everybody)), key=lambda one: one.index)

    def _packed(self, rollouts: Sequence[tuple[list[int], Completion, float]]) -> list[Batch]:
        """Micro-batches of (prompt, answer, worth); one without targets where there is none."""
        context, bos = self.engine.source.config.context, self.engine.tokenizer.bos
        if not rollouts:
            return [empty(context, self.micro_rows, bos)]
        room = [context + 1 - len(prompt) for prompt, _, _ in rollouts]
        lengths = [a.forced[:most].count(False) for (_, a, _), most in zip(rollouts, room, strict=True)]
        weights = token_weights(lengths, self.table.normalize)
        made = [Rollout.of(*one, float(weight)) for one, weight in zip(rollouts, weights, strict=True)]
        return to_batches(made, context, self.micro_rows, bos)

    # ---- before the first pass: reference, critic -----------------------------------------------------

    def _prepare(self, held: list[list[Batch]]) -> None:
        """Add what the weights of this moment are needed for, to this rank's micro-batches and to those of all."""
        mine = [batch for part in held for batch in self._mine(part)]
        for batch in mine:
            with_reference(batch, self.reference, self.table.temperature)
        if self.reference is not None:
            self._adapt(mine)
        if self.table.algorithm == "ppo":
            self._criticize(mine)
        if self.world.size > 1 and self.per_round > 1:  # a checkpoint within the round holds all of it
            everybody = [iter(part) for part in self.world.gather([vars(batch) for batch in mine])]
            for part in held:
                for i in range(len(part)):
                    part[i] = Batch(**next(everybody[i % self.world.size]))

    def _adapt(self, mine: Iterable[Batch]) -> None:
        """Measure the divergence of the policy that sampled, and let its weight follow the target."""
        sums = []
        for batch in mine:
            kept = batch.targets != IGNORE
            k3 = kl_estimate(batch.old_logprobs, batch.reference_logprobs)
            sums.append((float(k3[kept].double().sum()), int(kept.sum())))
        total, count = self._over_all(sums)
        self.last["kl"] = total / max(1, count)
        if self.table.kl_target is not None and count:
            self.kl = adapted(self.kl, self.last["kl"], self.table.kl_target)
        self.last["kl_weight"] = self.kl

    @torch.no_grad()
    def _criticize(self, mine: Sequence[Batch]) -> None:
        """Turn rewards into returns and advantages by the critic's values of now."""
        model, table, sums = self.engine.source, self.table, []
        for batch in mine:
            here = batch.to(model.head.weight.device)
            batch.old_values = model.critic(model(here.tokens, here.documents)).to(batch.tokens.device)
            kept = (batch.targets != IGNORE).numpy()
            rewards, values = batch.advantages.double().numpy(), batch.old_values.double().numpy()
            found = generalized(rewards, values, kept, batch.documents.numpy(), table.discount, table.trace)
            batch.returns = torch.from_numpy(np.where(kept, found + values, 0.0)).float()
            batch.advantages = torch.from_numpy(found).float()
            sums.append((math.fsum(found[kept]), math.fsum(found[kept] ** 2), int(kept.sum())))
        total, square, count = self._over_all(sums) if sums or self.world.size > 1 else (0.0, 0.0, 0)
        mean = total / max(1, count)
        deviation = max(0.0, square / max(1, count) - mean**2) ** 0.5
        scale = 1 / (deviation + EPSILON) if table.advantage == "zscore" else 1.0
        for batch in mine:
            batch.advantages = torch.where(batch.targets != IGNORE, (batch.advantages - mean) * scale, 0.0)

    def _over_all(self, sums: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        """Sums over the micro-batches of all ranks, without rounding in between: the same in any order."""
        everybody = list(chain(*self.world.gather(list(sums))))
        return tuple(math.fsum(column) for column in zip(*everybody, strict=True))

    # ---- record, resume ------------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """What to record of the step that has just ended: the newest round's figures, what the loss saw, and where the
        step's time went."""
        now = time.perf_counter()
        parts = {**self.seconds, "update": max(0.0, now - self.since - sum(self.seconds.values()))}
        self.spent = {name: self.spent[name] + seconds for name, seconds in parts.items()}
        seen: dict[str, float] = {}
        for told in self.world.gather(self.tally.take()):
            for name, values in told.items():
                seen[name] = math.fsum([seen.get(name, 0.0), *values])
        count = max(1.0, seen.pop("targets", 0.0))
        names = {"clipped": "clip_share", "kl": "kl_after", "value_loss": "value_loss"}
        return {
            **self.last,
            **{names[name]: value / count for name, value in seen.items()},
            "rollout_tokens_per_second": self.speed,
            **{f"share_{name}": spent / sum(parts.values()) for name, spent in parts.items()},
        }

    def state_dict(self) -> dict:
        """The step, the divergence's weight; within a round also its rollouts, whose weights are gone."""
        within = self.step % self.per_round > 0
        held = [[to_json(batch) for batch in part] for part in self.held] if within else []
        return {"step": self.step, "kl": self.kl, "held": held, "last": dict(self.last) if within else {}}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.kl = int(state["step"]), float(state["kl"])
        self.held = [[from_json(fields) for fields in part] for part in state["held"]]
        self.last = dict(state["last"])

    def skip(self, steps: int) -> None:
        """Leave out the next `steps` steps, and what is left of their last round."""
        self.step = -(-(self.step + steps) // self.per_round) * self.per_round
        self.held = []

    def close(self) -> None:
        """End what runs beside, the processes of the user's rewards, and say where the time went."""
        self.rewards.close()
        if total := sum(self.spent.values()):
            shares = ", ".join(f"{100 * spent / total:.0f} % {name}" for name, spent in self.spent.items())
            self.say(f"rl: {total:.0f} s, of these {shares}; rollouts at {self.speed:,.0f} tokens a second")
