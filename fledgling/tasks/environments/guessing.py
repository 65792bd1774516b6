"""A guessing game with a known optimum: halving the range finds any number with the calls there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fledgling.tasks.environments.environment import Environment

MIN_SIZE, MAX_SIZE, MAX_LOW = 24, 31, 60  # four answers tell apart at most 31 numbers


class Guessing(Environment):
    """Find a number of a range from the replies higher and lower. At most four guesses, then the answer.

    A player who halves the range knows the number after four guesses; one who guesses at random without regard to the
    replies is right for about one number in six.
    """

    max_turns = 4
    max_new_tokens = 96

    def reset(self, seed: int) -> str:
        """Draws a range of 24 to 31 numbers and a number of it."""
        rng = random.Random(seed)
        self.low = rng.randint(1, MAX_LOW)
        self.high = self.low + rng.randint(MIN_SIZE, MAX_SIZE) - 1
        self.number = rng.randint(self.low, self.high)
        return f"I think of a number from {self.low} to {self.high}. Find it with guess."

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns guess(number)."""
        return {"guess": self.compare}

    def compare(self, number: int) -> str:
        """Returns whether the number is higher or lower, or yes."""
        return "yes" if number == self.number else "higher" if self.number > number else "lower"

    @property
    def solution(self) -> str:
        """The number."""
        return str(self.number)

    @property
    def identity(self) -> str:
        """The range and the number."""
        return f"{self.low} {self.high} {self.number}"

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Guesses at random, without regard to the replies: the form of the game, not how to win it."""
        for _ in range(self.max_turns):
            number = rng.randint(self.low, self.high)
            if call(f"guess({number})") == "yes":
                return str(number)
        return str(rng.randint(self.low, self.high))
