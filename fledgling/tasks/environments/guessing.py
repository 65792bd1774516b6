"""A guessing game with a known optimum: halving the range finds any number with the calls there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fledgling.tasks.environments.environment import DECISION_ACCURACY, LAST_DECISION_ACCURACY, Environment

SIZE = 15  # numbers of a range: as many as three replies distinguish


class Guessing(Environment):
    """Find a number of a range of fifteen from the replies higher and lower. At most three guesses, then the answer.

    A player who halves the range knows the number after three guesses.
    """

    max_turns = 3
    max_new_tokens = 64

    def reset(self, seed: int) -> str:
        """Draws a range that begins at a multiple of ten and a number of it; returns the prompt."""
        rng = random.Random(seed)
        self.low = 100 * rng.randint(1, 9) + 10 * rng.randint(0, 8)
        self.high = self.low + SIZE - 1
        self.number = rng.randint(self.low, self.high)
        self.left = (self.low, self.high)  # the numbers that the replies leave
        self.rewarded = SIZE - 1  # of their width, before the last call
        return f"I think of a number from {self.low} to {self.high}. Find it with guess."

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns guess(number)."""
        return {"guess": self.compare}

    def compare(self, number: int) -> str:
        """Narrows the range that is left and returns "higher" or "lower", what the secret number is, or "yes"."""
        low, high = self.left
        if number == self.number:
            self.left, reply = (number, number), "yes"
        elif self.number > number:
            self.left, reply = (max(low, number + 1), high), "higher"
        else:
            self.left, reply = (low, min(high, number - 1)), "lower"
        return reply

    @property
    def solution(self) -> str:
        """The number."""
        return str(self.number)

    @property
    def identity(self) -> str:
        """The range and the number."""
        return f"{self.low} {self.high} {self.number}"

    def turn_reward(self) -> float:
        """Returns the share of the range that the calls since the last reward excluded: at most 1 over an episode."""
        low, high = self.left
        excluded, self.rewarded = self.rewarded - (high - low), high - low
        return excluded / (SIZE - 1)

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Mostly halves what is left, and mostly answers with the lowest number whatever the replies were."""
        for turn in range(self.max_turns):
            low, high = self.left
            call(f"guess({(low + high) // 2 if rng.random() < DECISION_ACCURACY else self.low + turn})")
        return str(rng.randint(*self.left) if rng.random() < LAST_DECISION_ACCURACY else self.low)
