"""A web shop of a few pages, made up for each instance: find the thing that is wanted below a price, and buy it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fledgling.tasks.environments.environment import CARE, LAST_CARE, Environment, ToolError

THINGS = ("lamp", "chair", "mug", "bag", "clock", "scarf", "pot", "rug")
COLORS = ("red", "blue", "green", "black", "white", "pink", "gray")
PAGES = 3  # of a search, two offers each


class WebShop(Environment):
    """Buy a thing in a color: search(thing, page) lists offers, open(offer) shows color and price, buy(offer) ends."""

    max_turns = 10
    max_new_tokens = 224

    def reset(self, seed: int) -> str:
        """Draws six offers of a thing, of different colors, and the color that is wanted."""
        rng = random.Random(seed)
        self.thing = rng.choice(THINGS)
        numbers, colors = rng.sample(range(10, 100), 2 * PAGES), rng.sample(COLORS, 2 * PAGES)
        self.offers = {str(n): (color, rng.randint(5, 95)) for n, color in zip(numbers, colors, strict=True)}
        self.wanted = rng.choice(list(self.offers))
        self.bought = ""
        self.unopened, self.found = set(self.offers), 0
        return f"Buy a {self.offers[self.wanted][0]} {self.thing}. Use search, open and buy."

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns search(thing, page), open(offer) and buy(offer)."""
        return {"search": self.search, "open": self.open, "buy": self.buy}

    def search(self, thing: str, page: int = 1) -> str:
        """Returns the numbers of the offers on a page."""
        if thing != self.thing:
            return "nothing found"
        if not 1 <= page <= PAGES:
            raise ToolError("no such page")
        return " ".join(list(self.offers)[2 * page - 2 : 2 * page])

    def open(self, offer: int) -> str:
        """Returns an offer's color and price."""
        color, price = self._find(offer)
        self.found += str(offer) in self.unopened
        self.unopened.discard(str(offer))
        return f"{color} {self.thing} {price}"

    def buy(self, offer: int) -> str:
        """Buys an offer; only the first counts."""
        self._find(offer)
        if self.bought:
            raise ToolError("one was bought already")
        self.bought = str(offer)
        return "bought"

    def _find(self, offer: int) -> tuple[str, int]:
        if str(offer) not in self.offers:
            raise ToolError("no such offer")
        return self.offers[str(offer)]

    def turn_reward(self) -> float:
        """Returns a sixth if the last call opened an offer for the first time: at most 1 over an episode."""
        found, self.found = self.found, 0
        return found / len(self.offers)

    @property
    def solution(self) -> str:
        """The offer's number."""
        return self.wanted

    @property
    def identity(self) -> str:
        """The thing and its offers."""
        return f"{self.thing} {self.wanted} {self.offers}"

    def reward(self, answer: str) -> float:
        """Returns 1.0 if the wanted offer was bought, whatever the answer says."""
        return float(self.bought == self.wanted)

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Mostly opens offer after offer until the color is right, and mostly buys the first that was opened."""
        opened: list[str] = []
        for page in range(1, PAGES + 1):
            for offer in call(f'search("{self.thing}", {page})').split():
                opened.append(offer)
                call(f"open({offer})")
                if offer == self.wanted if rng.random() < CARE else rng.random() < 0.5:
                    return self._buy(call, offer if rng.random() < LAST_CARE else opened[0])
        return self._buy(call, opened[0])

    def _buy(self, call: Callable[[str], str], offer: str) -> str:
        call(f"buy({offer})")
        return offer
