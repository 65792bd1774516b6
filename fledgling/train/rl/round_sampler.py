"""Samples the answers of rounds: of the round that is asked for, or of later ones in a thread while it is learned from.

With `rl.stale_rounds` = k the answers of round r are those of the weights at the start of round r - k (of the first
rounds: the stage's first weights), whatever the machine's speed. The loss corrects for that: its ratio is to the
policy that sampled, whose log-probabilities are stored with the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from fledgling.config import RLConfig
from fledgling.evals.episodes import make_tools
from fledgling.infer.engine import Engine
from fledgling.infer.request import Completion
from fledgling.infer.sampling import SamplingParams
from fledgling.tasks.task import Question, Task


@dataclass(frozen=True)
class SampledRound:
    """The answers of a round by the index of their prompt, G each, and the seconds that sampling them took."""

    answers: dict[int, list[Completion]]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answers, those of tools included, per second."""
        return sum(len(c.tokens) for group in self.answers.values() for c in group) / max(1e-9, self.seconds)


class RoundSampler:
    """Samples rounds with the weights of `engine`, or with copies of them that are `config.stale_rounds` rounds old.

    Args:
        prompt_tokens: returns a prompt by its index.
        sample_question: returns the task and question of a prompt.
        round_prompts: returns the indices of the prompts of a round that this process answers.
        count_rounds: returns the rounds of the stage, skipped ones included; none beyond them is sampled ahead.
    """

    def __init__(
        self,
        engine: Engine,
        config: RLConfig,
        seed: int,
        prompt_tokens: Callable[[int], list[int]],
        sample_question: Callable[[int], tuple[Task, Question]],
        round_prompts: Callable[[int], Sequence[int]],
        count_rounds: Callable[[], float],
    ) -> None:
        self.engine, self.config, self.seed = engine, config, seed
        self.prompt_tokens, self.sample_question = prompt_tokens, sample_question
        self.round_prompts, self.count_rounds = round_prompts, count_rounds
        self.pending: dict[int, Future[SampledRound]] = {}  # by the number of the round
        self.executor: ThreadPoolExecutor | None = None
        self.copied_engine: Engine | None = None  # the thread's own

    def take(self, number: int) -> SampledRound:
        """Returns round `number`; starts the rounds up to `number` + `stale_rounds` that are not begun."""
        if not self.config.stale_rounds:
            return self.generate(self.engine, number)
        last = max(number, min(number + self.config.stale_rounds, self.count_rounds() - 1))
        if missing := [ahead for ahead in range(number, int(last) + 1) if ahead not in self.pending]:
            self._start(missing)
        return self.pending.pop(number).result()

    def generate(self, engine: Engine, number: int) -> SampledRound:
        """Samples round `number` with an engine's current weights: a pure function of weights, seed and number."""
        start, group_size, indices = time.perf_counter(), self.config.group_size, self.round_prompts(number)
        sampling = SamplingParams(
            temperature=self.config.temperature, max_new_tokens=self.config.max_new_tokens, seed=self.seed
        )
        completions = engine.generate(
            [prompt for index in indices for prompt in [self.prompt_tokens(index)] * group_size],
            sampling,
            max_batch_size=max(1, len(indices) * group_size),
            request_indices=[index * group_size + k for index in indices for k in range(group_size)],
            tools=make_tools(self.sample_question(index) for index in indices for _ in range(group_size)),
        )
        answers = {index: completions[i * group_size : (i + 1) * group_size] for i, index in enumerate(indices)}
        return SampledRound(answers, time.perf_counter() - start)

    def _start(self, numbers: Sequence[int]) -> None:
        """Lets the thread sample rounds with a copy of the weights as they are now."""
        source = self.engine.source
        if self.executor is None or self.copied_engine is None:
            self.executor = ThreadPoolExecutor(1, "rollouts")
            engine = self.engine
            self.copied_engine = Engine(deepcopy(source), engine.tokenizer, engine.device, engine.dtype, engine.tool)
        weights = {name: value.detach().clone() for name, value in source.state_dict().items()}
        for number in numbers:
            self.pending[number] = self.executor.submit(self._generate_with, self.copied_engine, weights, number)

    def _generate_with(self, engine: Engine, weights: Mapping[str, Tensor], number: int) -> SampledRound:
        engine.source.load_state_dict(weights)
        return self.generate(engine, number)

    def state_dict(self) -> dict[str, Any]:
        """Waits for the rounds that were begun and returns them as JSON values; one that failed is left out."""
        finished = {number: future.result() for number, future in self.pending.items() if not future.exception()}
        return {str(number): _round_to_json(sampled) for number, sampled in finished.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with the rounds of `state_dict`."""
        self.forget()
        for number, values in state.items():
            future: Future[SampledRound] = Future()
            future.set_result(_round_from_json(values))
            self.pending[int(number)] = future

    def forget(self) -> None:
        """Drops the rounds that were begun; one that is running is ended by its last token and not read."""
        for future in self.pending.values():
            future.cancel()
        self.pending = {}

    def close(self) -> None:
        """Ends the thread, after the round that it is sampling."""
        self.forget()
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
            self.executor = self.copied_engine = None


def _round_to_json(sampled: SampledRound) -> dict[str, Any]:
    answers = {str(index): [asdict(one) for one in group] for index, group in sampled.answers.items()}
    return {"seconds": sampled.seconds, "answers": answers}


def _round_from_json(values: Mapping[str, Any]) -> SampledRound:
    answers = {int(index): [Completion(**one) for one in group] for index, group in values["answers"].items()}
    return SampledRound(answers, float(values["seconds"]))
