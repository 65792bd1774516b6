"""Continuous batching: many different answers decoded at once, each in its own row of one cache.

The one idea: rows are seats. The cache keeps a length for each row, so prompts of different length sit
side by side; whoever finishes stands up, and a waiting prompt is prefilled and takes the seat while the
others go on. When nobody waits and a quarter of the seats is empty, the batch closes ranks.

It does not know how a token is drawn (sample.py) nor what a model is (engine.py runs it).

B rows (seats), N prompts prefilled together, T their longest length, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fledgling.infer.sample import WORD, Sampling, adjust, sample, uniform
from fledgling.infer.tools import ToolState

if TYPE_CHECKING:
    from fledgling.infer.engine import Engine
    from fledgling.model.cache import KVCache

ADMIT_SHARE = 16  # a full house admits newcomers by sixteenths: one prefill for several prompts
SPARE_CAPACITY = 32  # tokens: a cache with little to spare is read whole, and grows this often


@dataclass(frozen=True)
class Completion:
    """One answer. `tokens` ends with the stop token where `finish` is "stop"."""

    tokens: list[int]
    logprobs: list[float]  # under softmax(logits / temperature); 0 where forced
    forced: list[bool]  # put there by a tool, not drawn by the model: never to be learned from
    finish: str  # "stop", "length" (max_tokens reached) or "context" (the model's context is full)


class Ticket:
    """One request on its way to a completion: its prompt, and what has been said so far."""

    def __init__(self, engine: Engine, prompt: Sequence[int], sampling: Sampling, index: int, tools: bool) -> None:
        assert len(prompt), "a prompt has at least one token: bos"
        self.prompt = list(prompt)
        self.sampling = sampling
        self.index = index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.forced: list[bool] = []
        self.alternatives: list[list[tuple[int, float]]] = []  # of each token, where the sampling asks for them
        self.pending: deque[int] = deque()  # tokens that must come next
        self.tools = ToolState(engine.tokenizer, engine.tool) if tools and engine.can_call else None
        self.stops = engine.stops.union(sampling.stop)
        room = engine.context - len(self.prompt)
        self.limit = min(sampling.max_tokens, room)
        self.full = "length" if sampling.max_tokens <= room else "context"
        self.finish = "" if room > 0 else "context"  # empty while going on

    @property
    def length(self) -> int:
        """Tokens that the cache holds for this request: all but the newest one."""
        return len(self.prompt) + len(self.tokens) - 1

    def take(self, token: int, logprob: float) -> None:
        """Append a drawn token, or in its place the one that must come; see whether that ends the answer."""
        forced = bool(self.pending)
        if forced:
            token, logprob = self.pending.popleft(), 0.0
        elif token in self.stops:
            self.finish = "stop"
        elif self.tools:
            self.pending.extend(self.tools.feed(token))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.forced.append(forced)
        if not self.finish and len(self.tokens) >= self.limit:
            self.finish = self.full

    def completion(self) -> Completion:
        return Completion(self.tokens, self.logprobs, self.forced, self.finish)


def draw(logits: Tensor, tickets: Sequence[Ticket]) -> None:
    """Draw the next token of each ticket from its row of logits (B, V); here the host waits."""
    seeds = np.array([ticket.sampling.seed & WORD for ticket in tickets], np.uint64)
    requests = np.array([ticket.index for ticket in tickets], np.uint64)
    positions = np.array([len(ticket.tokens) for ticket in tickets], np.uint64)
    noise = torch.from_numpy(uniform(seeds, requests, positions)).to(logits.device, non_blocking=True)
    for row, ticket in enumerate(tickets):
        if ticket.sampling.bias or ticket.sampling.repetition != 1:
            adjust(logits[row], ticket.sampling, [*ticket.prompt, *ticket.tokens])
    kinds: dict[int, list[int]] = {}  # rows by how they are drawn: most often all in one way
    for row, ticket in enumerate(tickets):
        kinds.setdefault(id(ticket.sampling), []).append(row)
    for rows in kinds.values():
        part = slice(None) if len(rows) == len(tickets) else torch.tensor(rows, device=logits.device)
        sampling = tickets[rows[0]].sampling
        ids, logprobs = sample(logits[part], sampling, noise[part])
        if sampling.alternatives:
            likeliest = logits[part].float().log_softmax(-1).topk(sampling.alternatives)
            for row, values, tokens in zip(rows, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
                tickets[row].alternatives.append(list(zip(tokens, values, strict=True)))
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            tickets[row].take(token, logprob)


class Decoder:
    """A batch of at most `rows` answers under way. `add` requests at any time, `step` until not `busy`."""

    def __init__(self, engine: Engine, rows: int) -> None:
        self.engine = engine
        self.rows = rows
        self.waiting: deque[Ticket] = deque()
        self.seats: list[Ticket | None] = []
        self.cache: KVCache | None = None  # row i belongs to seat i

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(self.seats)

    def add(self, prompt: Sequence[int], sampling: Sampling, index: int = 0, tools: bool = True) -> Ticket:
        """Queue a prompt. Its tokens are a function of (prompt, weights, sampling, index) alone.

        A prompt that leaves no room in the model's context is finished at once, with "context".
        """
        ticket = Ticket(self.engine, prompt, sampling, index, tools)
        if not ticket.finish:
            self.waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop working for a ticket; its seat is free at the next step."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        if ticket in self.seats:
            with torch.inference_mode():
                self._leave(self.seats.index(ticket))

    def step(self) -> list[Ticket]:
        """Seat who can be seated, then decode one token for every row; return the tickets now finished."""
        with torch.inference_mode():
            finished = self._admit()
            self._close_ranks()
            live = [row for row, ticket in enumerate(self.seats) if ticket]
            if not live:
                return finished
            tickets = [self.seats[row] for row in live]
            self._reserve(max(ticket.length for ticket in tickets) + 1)
            tokens = [ticket.tokens[-1] if ticket else 0 for ticket in self.seats]
            counts = [1 if ticket else 0 for ticket in self.seats]
            draw(self.engine.logits(self.cache, [[token] for token in tokens], counts, live), tickets)
            for row, ticket in zip(live, tickets, strict=True):
                if ticket.finish:
                    self._leave(row)
                    finished.append(ticket)
        return finished

    def _admit(self) -> list[Ticket]:
        """Prefill waiting prompts, each distinct one once, and draw their first tokens."""
        taken = sum(ticket is not None for ticket in self.seats)
        count = min(self.rows - taken, len(self.waiting))
        if not count or (taken and count < min(len(self.waiting), self.rows // ADMIT_SHARE)):
            return []
        tickets = [self.waiting.popleft() for _ in range(count)]
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(tuple(t.prompt) for t in tickets))}
        cache, logits = self.engine.prefill(list(distinct))
        sources = [distinct[tuple(ticket.prompt)] for ticket in tickets]
        draw(logits[torch.tensor(sources, device=logits.device)], tickets)
        going = [(t, source) for t, source in zip(tickets, sources, strict=True) if not t.finish]
        if going:
            self._seat(going, cache)
        return [ticket for ticket in tickets if ticket.finish]

    def _seat(self, newcomers: list[tuple[Ticket, int]], prefilled: KVCache) -> None:
        """Give each (ticket, row of the prefilled cache) a seat, free or new, and copy the row there."""
        free = [row for row, ticket in enumerate(self.seats) if ticket is None][: len(newcomers)]
        added = len(newcomers) - len(free)
        rows = [*free, *range(len(self.seats), len(self.seats) + added)]
        self.seats += [None] * added
        self._reserve(max(ticket.length for ticket, _ in newcomers) + 1)
        copy_rows(self.cache, rows, prefilled, [source for _, source in newcomers])
        for row, (ticket, _) in zip(rows, newcomers, strict=True):
            self.seats[row] = ticket

    def _reserve(self, tokens: int) -> None:
        """Let the cache hold every seat, and `tokens` in each row; when it must grow, by an eighth or a few tokens."""
        old = self.cache
        if old is not None and len(self.seats) <= old.rows and tokens <= old.capacity:
            return
        capacity = max(tokens + max(SPARE_CAPACITY, tokens // 8), old.capacity if old else 0)
        self.cache = self.engine.new_cache(len(self.seats), min(capacity, self.engine.context))
        if old is not None:
            everyone = list(range(old.rows))
            copy_rows(self.cache, everyone, old, everyone)

    def _leave(self, row: int) -> None:
        self.seats[row] = None
        self.cache.reset(row)

    def _close_ranks(self) -> None:
        """Drop empty seats once they are a quarter of all, and nobody waits for one."""
        live = [row for row, ticket in enumerate(self.seats) if ticket]
        if not live:
            self.seats, self.cache = [], None
        elif not self.waiting and 4 * len(live) <= 3 * len(self.seats):
            self.seats = [self.seats[row] for row in live]
            self.cache = self.cache.select(torch.tensor(live, device=self.cache.lengths.device))


def copy_rows(to: KVCache, rows: Sequence[int], source: KVCache, source_rows: Sequence[int]) -> None:
    """Copy rows of one cache, and their lengths, into rows of another, which must have the capacity."""
    device = to.lengths.device
    here, there = torch.tensor(rows, device=device), torch.tensor(source_rows, device=device)
    to.lengths[here] = source.lengths[there]
    span = min(source.live, to.capacity)
    to.keys[:, here, :, :span] = source.keys[:, there, :, :span]
    to.values[:, here, :, :span] = source.values[:, there, :, :span]
