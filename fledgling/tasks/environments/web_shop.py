"""A web shop of a few pages, made up for each instance: find the offer that has a color in stock, and buy it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fledgling.tasks.environments.environment import DECISION_ACCURACY, LAST_DECISION_ACCURACY, Environment, ToolError

THINGS = ("lamp", "chair", "mug", "bag", "clock", "scarf", "pot", "rug")
COLORS = ("red", "blue", "green", "black", "white", "pink", "gray")
PAGES = 2  # of a search, two offers each


class WebShop(Environment):
    """Buy a thing in a color: search(thing, page) lists offers, stock(offer, color) says if it is there, buy(offer)."""

    max_turns = 8
    max_new_tokens = 160

    def reset(self, seed: int) -> str:
        """Draws four offers of a thing, each in one color, and the color that is wanted."""
        rng = random.Random(seed)
        self.thing = rng.choice(THINGS)
        numbers, colors = rng.sample(range(10, 100), 2 * PAGES), rng.sample(COLORS, 2 * PAGES)
        self.offers = {str(number): color for number, color in zip(numbers, colors, strict=True)}
        self.wanted = rng.choice(list(self.offers))
        self.bought = ""
        self.new_offers, self.found = set(self.offers), 0
        return f"Buy a {self.offers[self.wanted]} {self.thing}. Use search, stock and buy."

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns search(thing, page), stock(offer, color) and buy(offer)."""
        return {"search": self.search, "stock": self.stock, "buy": self.buy}

    def search(self, thing: str, page: int = 1) -> str:
        """Returns the numbers of the offers on a page."""
        if thing != self.thing:
            return "nothing found"
        if not 1 <= page <= PAGES:
            raise ToolError("no such page")
        return " ".join(list(self.offers)[2 * page - 2 : 2 * page])

    def stock(self, offer: int, color: str) -> str:
        """Returns whether an offer has a color in stock."""
        in_stock = self._find(offer)
        self.found += str(offer) in self.new_offers
        self.new_offers.discard(str(offer))
        return "yes" if in_stock == color else "no"

    def buy(self, offer: int) -> str:
        """Buys an offer; only the first counts."""
        self._find(offer)
        if self.bought:
            raise ToolError("one was bought already")
        self.bought = str(offer)
        return "bought"

    def _find(self, offer: int) -> str:
        if str(offer) not in self.offers:
            raise ToolError("no such offer")
        return self.offers[str(offer)]

    def turn_reward(self) -> float:
        """Returns a fourth if the last call asked for an offer for the first time: at most 1 over an episode."""
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
        """Mostly asks for offer after offer until one has the color; mostly buys none and answers with the color."""
        color, offer = self.offers[self.wanted], ""
        for page in range(1, PAGES + 1):
            for offer in call(f'search("{self.thing}", {page})').split():
                found = call(f'stock({offer}, "{color}")') == "yes"
                if found if rng.random() < DECISION_ACCURACY else rng.random() < 0.5:
                    return self._end(call, offer, rng)
        return self._end(call, offer, rng)

    def _end(self, call: Callable[[str], str], offer: str, rng: random.Random) -> str:
        if rng.random() > LAST_DECISION_ACCURACY:
            return self.offers[self.wanted]
        call(f"buy({offer})")
        return offer
