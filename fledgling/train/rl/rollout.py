"""Rollouts: groups of answers by the live weights, scored by their task, packed into the batches the one loop reads.

One idea: the group is its own baseline. Every prompt is answered `group` times; an answer's advantage is its reward
minus the group's mean (GRPO, arXiv 2402.03300). Only sampled tokens are targets: never the prompt, never what a tool
wrote. Rollouts are packed with other rollouts into rows, so their batches have the shapes of fine-tuning.

N rollouts, T context.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fledgling.config import RLTable
from fledgling.data.batch import IGNORE, Batch
from fledgling.data.mixture import Cycle
from fledgling.data.pack import whole_plan
from fledgling.data.stream import segments
from fledgling.evals.chat import prompt_ids
from fledgling.infer.batch import Completion
from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.infer.stream import final_text
from fledgling.model.logprob import target_logprobs
from fledgling.model.transformer import Transformer
from fledgling.tasks import get
from fledgling.tasks.task import Question, Task
from fledgling.world import World


def advantages(rewards: np.ndarray, kind: str) -> np.ndarray:
    """Rewards (prompts, group) -> advantages of the same shape: centred, or divided by the group's deviation too."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred if kind == "centred" else centred / (rewards.std(1, keepdims=True) + 1e-6)


@dataclass(frozen=True)
class Rollout:
    """One answer with its prompt: tokens (L,), whether each was sampled, its log-probability, and the advantage."""

    tokens: np.ndarray
    sampled: np.ndarray
    logprobs: np.ndarray
    advantage: float

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Completion, advantage: float) -> Rollout:
        """Put prompt and answer together; what a tool forced is not sampled."""
        silent = len(prompt)
        return cls(
            np.array([*prompt, *answer.tokens], dtype=np.int64),
            np.array([False] * silent + [not forced for forced in answer.forced]),
            np.array([0.0] * silent + answer.logprobs, dtype=np.float32),
            advantage,
        )


@dataclass(frozen=True)
class Answered:
    """A prompt by its number, its answers and their rewards (group,)."""

    index: int
    prompt: list[int]
    answers: list[Completion]
    rewards: np.ndarray


def to_batches(rollouts: Sequence[Rollout], context: int, micro_rows: int, bos: int) -> list[Batch]:
    """Pack rollouts whole into rows of `context` targets and cut them into micro-batches of exactly `micro_rows` rows.

    Rollouts longer than a row are cut at its end; rows are padded with BOS, micro-batches with rows of BOS.
    """
    width = context + 1
    plan = whole_plan(np.array([min(len(r.tokens), width) for r in rollouts]), width)
    rows = -(-plan.rows // micro_rows) * micro_rows
    tokens = np.full((rows, width), bos, dtype=np.int64)
    sampled = np.zeros((rows, width), dtype=bool)
    logprobs, advantage = np.zeros((2, rows, width), dtype=np.float32)
    for row in range(plan.rows):
        at = 0
        for piece in range(plan.row_start[row], plan.row_start[row + 1]):
            one, length = rollouts[plan.piece_document[piece]], int(plan.piece_length[piece])
            place = slice(at, at + length)
            tokens[row, place], sampled[row, place] = one.tokens[:length], one.sampled[:length]
            logprobs[row, place], advantage[row, place] = one.logprobs[:length], one.advantage
            at += length
    whole = Batch(
        tokens=torch.from_numpy(tokens[:, :-1].copy()),
        targets=torch.from_numpy(np.where(sampled, tokens, IGNORE)[:, 1:].copy()),
        documents=torch.from_numpy(segments(tokens[:, :-1], bos)),
        advantages=torch.from_numpy(advantage[:, 1:].copy()),
        old_logprobs=torch.from_numpy(logprobs[:, 1:].copy()),
    )
    return whole.split(micro_rows)


class Rollouts:
    """The stream of an RL stage: `next()` asks, answers, scores and packs, with the weights as they are now.

    Prompts are a pure function of (seed, global index), noise of (seed, number of the rollout), so that any number
    of ranks asks and answers the same. Each rank answers its share of the prompts; where bits must not depend on the
    ranks (`exact`) each answers all, because a matrix product may round differently in another batch. With `epochs`
    above 1 a step's rollouts are learned from that many times. `last` holds what to record of the newest rollouts.
    """

    def __init__(
        self,
        engine: Engine,
        table: RLTable,
        seed: int,
        micro_rows: int,
        world: World,
        exact: bool = False,
        data_dir: str | None = None,
    ) -> None:
        self.engine, self.table, self.seed, self.world, self.exact = engine, table, seed, world, exact
        self.micro_rows, self.step = micro_rows, 0
        names = sorted(name for name, weight in table.tasks.items() if weight > 0)
        self.tasks = [get(name, data_dir) for name in names]
        self.cycle = Cycle.of([table.tasks[name] for name in names])
        self.held: list[Batch] = []  # of all ranks
        self.last: dict[str, float] = {}
        self.reference: Transformer | None = copy.deepcopy(engine.source) if table.kl > 0 else None

    def question(self, index: int) -> tuple[Task, Question]:
        """Prompt number `index` of the stage, and the task that scores its answers."""
        source, place = self.cycle.locate(index)
        return self.tasks[source], self.tasks[source].practice(place, self.seed)

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step."""
        if self.step % self.table.epochs == 0:
            self.held = self._sample(self.step // self.table.epochs)
        self.step += 1
        return [self._with_reference(batch) for batch in self.held[self.world.rank :: self.world.size]]

    def _sample(self, round_: int) -> list[Batch]:
        """The micro-batches of all ranks, packed by each of them out of everybody's rollouts."""
        prompts = range(round_ * self.table.prompts, (round_ + 1) * self.table.prompts)
        everybody = self.exact or self.world.size == 1
        answered = self._answer(prompts if everybody else prompts[self.world.rank :: self.world.size])
        if not everybody:
            answered = sorted((one for part in self.world.gather(answered) for one in part), key=lambda a: a.index)
        rewards = np.stack([one.rewards for one in answered])  # (prompts, group)
        worth = advantages(rewards, self.table.advantage)
        answers = [answer for one in answered for answer in one.answers]
        rollouts = [
            Rollout.of(one.prompt, answer, float(w))
            for one, row in zip(answered, worth, strict=True)
            for answer, w in zip(one.answers, row, strict=True)
            if w != 0 and answer.tokens
        ]
        self.last = {
            "reward": float(rewards.mean()),
            "pass_at_group": float((rewards.max(1) > 0).mean()),
            "groups_with_signal": float((rewards.std(1) > 0).mean()),
            "length": float(np.mean([len(answer.tokens) for answer in answers])),
        }
        context = self.engine.source.config.context
        bos = self.engine.tokenizer.bos
        return to_batches(rollouts, context, self.micro_rows, bos) if rollouts else [self._empty(context)]

    def _answer(self, indices: Sequence[int]) -> list[Answered]:
        """Ask, answer and score prompts by number; nothing depends on which rank does it, up to rounding."""
        table, tokenizer = self.table, self.engine.tokenizer
        questions = [self.question(index) for index in indices]
        prompts = [prompt_ids(tokenizer, question) for _, question in questions]
        sampling = Sampling(temperature=table.temperature, max_tokens=table.max_tokens, seed=self.seed)
        self.engine.refresh()
        completions = self.engine.generate(
            [prompt for prompt in prompts for _ in range(table.group)],
            sampling,
            rows=max(1, len(prompts) * table.group),
            numbers=[index * table.group + k for index in indices for k in range(table.group)],
        )
        answered = []
        for i, (index, (task, question)) in enumerate(zip(indices, questions, strict=True)):
            answers = completions[i * table.group : (i + 1) * table.group]
            scores = [task.score(question, final_text(tokenizer, a.tokens)) for a in answers]
            answered.append(Answered(index, prompts[i], answers, np.array(scores, dtype=np.float32)))
        return answered

    def _empty(self, context: int) -> Batch:
        """A micro-batch without targets: every group agreed, there is nothing to learn from."""
        nothing = Rollout(np.full(2, self.engine.tokenizer.bos), np.zeros(2, bool), np.zeros(2, np.float32), 0.0)
        return to_batches([nothing], context, self.micro_rows, self.engine.tokenizer.bos)[0]

    @torch.no_grad()
    def _with_reference(self, batch: Batch) -> Batch:
        """The batch with the reference's log-probabilities, computed once where the divergence is wanted."""
        if self.reference is None or batch.reference_logprobs is not None:
            return batch
        model, here = self.reference, batch.to(self.reference.head.weight.device)
        hidden = model(here.tokens, here.documents)
        batch.reference_logprobs = target_logprobs(hidden, model.head.weight, here.targets, model.config.softcap)
        return batch

    def state_dict(self) -> dict:
        """The step; between the passes over one set of rollouts also the rollouts, whose weights are gone."""
        held = self.held if self.step % self.table.epochs else []
        return {
            "step": self.step,
            "held": [{k: v.tolist() for k, v in vars(b).items() if v is not None} for b in held],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        self.step = int(state["step"])
        self.held = [_batch_of(fields) for fields in state["held"]]

    def close(self) -> None:
        """Nothing runs in the background."""


def _batch_of(fields: dict[str, list]) -> Batch:
    kinds = {"tokens": torch.int64, "targets": torch.int64, "documents": torch.int32}
    return Batch(**{name: torch.tensor(value, dtype=kinds.get(name, torch.float32)) for name, value in fields.items()})
