"""Continuous batching: many different answers decoded at once, each in a row of its own.

The one idea: a step is one chunk of unread prompts and one token for everybody who speaks. So a long prompt never
keeps an answer waiting for longer than a chunk, whoever ends makes room, and whoever waits is read meanwhile. Rows are
lists of blocks (model/cache.py): prompts of different length lie side by side, and what begins alike is read once.

It does not know how a token is drawn (ticket.py, sample.py) nor what a model is (engine.py runs it).

B rows, N prompts read together, T their longest part, C width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fledgling.infer.lookahead import Lookahead
from fledgling.infer.prefix import Prefixes
from fledgling.infer.sample import Sampling
from fledgling.infer.ticket import Ticket, draw, likeliest
from fledgling.model.cache import Row

if TYPE_CHECKING:
    from fledgling.infer.engine import Engine

ADMIT_SHARE = 16  # a full house admits newcomers by sixteenths: one reading for several prompts
PREFILL_TOKENS = 1 << 14  # of one chunk where nobody waits for a step: bounds the memory that activations take
SCORES = 1 << 21  # attention scores of a head, of one chunk that has a past: 8 MiB a head in fp32
SCORED = 1 << 23  # values of one chunk of logits while a prompt is scored: 32 MiB


@dataclass
class Figures:
    """What a decoder has done; `drafted` and `accepted` are tokens of guesses (lookahead.py)."""

    prompt_tokens: int = 0  # of all prompts that were begun
    shared_tokens: int = 0  # of them: known already, by another row or an earlier request
    read_tokens: int = 0  # of them: computed
    chunks: int = 0
    steps: int = 0  # in which somebody spoke
    drafted: int = 0
    accepted: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that need not be computed."""
        return self.shared_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def acceptance(self) -> float:
        """Share of guessed tokens that held."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Decoder:
    """A batch of at most `rows` answers under way. `add` requests at any time, `step` until not `busy`.

    chunk: tokens of prompts read in one step. keep: prompts share what they begin with, also with earlier ones while
    the cache holds no more than so many tokens (0: only those under way; None: nothing is shared). lookahead: tokens
    guessed ahead in a step (lookahead.py; 0: none). None of them changes what is said.
    """

    def __init__(
        self, engine: Engine, rows: int, chunk: int = PREFILL_TOKENS, keep: int | None = 0, lookahead: int = 0
    ) -> None:
        self.engine, self.rows, self.chunk, self.lookahead = engine, rows, chunk, lookahead
        self.waiting: deque[Ticket] = deque()
        self.reading: deque[Ticket] = deque()
        self.live: list[Ticket] = []
        self.cache = engine.new_cache()
        self.prefixes = None if keep is None else Prefixes(self.cache, keep)
        self.version = engine.version
        self.figures = Figures()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.reading or self.live)

    def add(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        index: int = 0,
        tools: bool = True,
        score: bool = False,
        draws: bool = True,
    ) -> Ticket:
        """Queue a prompt. Its tokens are a function of (prompt, weights, sampling, index) alone.

        A prompt that leaves no room in the model's context is finished at once, with "context".
        """
        ticket = Ticket(self.engine, prompt, sampling, index, tools, score, draws)
        if not ticket.finish:
            self.waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop working for a ticket; its row is free at once."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        for leader in self.reading:
            if ticket in leader.followers:
                leader.followers.remove(ticket)
        if ticket in self.reading:
            self.reading.remove(ticket)
            self.waiting.extendleft(reversed(ticket.followers))
            ticket.followers = []
            self._leave(ticket)
        if ticket in self.live:
            self.live.remove(ticket)
            self._leave(ticket)

    def step(self) -> list[Ticket]:
        """One token for everybody who speaks, then one chunk of prompts; return the tickets now finished."""
        with torch.inference_mode():
            self._admit()
            finished = [*self._speak(), *self._read()]
            if self.prefixes:
                self.prefixes.make_room()
            self.cache.trim()
        return finished

    # ---- coming and going ------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let waiting tickets begin, as many as there are rows; who needs a block that is being read waits for it."""
        if not self.waiting:
            return
        if self.prefixes and self.version != (now := self.engine.version):
            self.version = now
            self.prefixes.forget()
        taken = len(self.live) + sum(1 + len(ticket.followers) for ticket in self.reading)
        room = min(self.rows - taken, len(self.waiting))
        if not room or (taken and room < min(len(self.waiting), self.rows // ADMIT_SHARE)):
            return
        leaders = {tuple(ticket.prompt): ticket for ticket in self.reading}
        claims = {self._frontier(ticket) for ticket in self.reading}
        for ticket in list(islice(self.waiting, room)):
            leader = leaders.get(tuple(ticket.prompt))
            if leader is not None and (leader.score or not ticket.score):
                leader.followers.append(ticket)
            elif not self._begin(ticket, claims):
                continue
            else:
                leaders[tuple(ticket.prompt)] = ticket
                self.reading.append(ticket)
                claims.add(self._frontier(ticket))
            self.waiting.remove(ticket)
            self.figures.prompt_tokens += len(ticket.prompt)

    def _frontier(self, ticket: Ticket):
        return self.prefixes.frontier(ticket.prompt, ticket.nodes) if self.prefixes else None

    def _begin(self, ticket: Ticket, claims: set) -> bool:
        """Give the ticket what is known of its prompt; False where somebody is about to read what it needs next."""
        ticket.version = self.version
        if self.prefixes and not ticket.score:  # who wants all log-probabilities must read all
            nodes = self.prefixes.find(ticket.prompt[:-1])[0]
            wanted = self.prefixes.frontier(ticket.prompt, nodes)
            if wanted is not None and wanted in claims:
                return False
            ticket.nodes = self.prefixes.begin(ticket.row, ticket.prompt[:-1])
            self.figures.shared_tokens += ticket.row.length
        if self.lookahead:
            ticket.lookahead = Lookahead(ticket.prompt, self.lookahead)
        return True

    def _leave(self, ticket: Ticket) -> None:
        """Let go of a ticket's row; what it held stays known where there is room."""
        if self.prefixes:
            said = [*ticket.prompt, *ticket.tokens]
            ticket.row.length = min(ticket.row.length, len(said))  # interrupted between reading a guess and judging it
            self._learn(ticket, said, ended=True)
            self.prefixes.leave(ticket.nodes)
        self.cache.drop(ticket.row)

    def _learn(self, ticket: Ticket, tokens: Sequence[int], ended: bool = False) -> None:
        """Note what a row holds, unless the weights have changed since it began."""
        if self.prefixes and ticket.version == self.version == self.engine.version:
            self.prefixes.learn(ticket.row, tokens, ticket.nodes, ended)

    # ---- one chunk of prompts --------------------------------------------------------------------

    def _read(self) -> list[Ticket]:
        """Read the next part of some prompts; whose prompt is read draws a first token."""
        parts = self._parts()
        if not parts:
            return []
        tickets, counts = list(parts), list(parts.values())
        self._make_room(tickets, counts)
        tokens = [t.prompt[t.row.length : t.row.length + n] for t, n in parts.items()]
        hidden = self.engine.extend(self.cache, [t.row for t in tickets], tokens)  # (N, T, C)
        self.figures.chunks += 1
        self.figures.read_tokens += sum(counts)
        for ticket, count, states in zip(tickets, counts, hidden, strict=True):
            if ticket.score:
                self._score(ticket, states[:count])
            self._learn(ticket, ticket.prompt)
        read = [number for number, ticket in enumerate(tickets) if not ticket.unread]
        for ticket in tickets:  # those with more to read queue up again: a short prompt does not wait for a long one
            self.reading.remove(ticket)
            if ticket.unread:
                self.reading.append(ticket)
        if not read:
            return []
        device = hidden.device
        last = torch.tensor([counts[number] - 1 for number in read], device=device)
        logits = self.engine.logits(hidden[torch.tensor(read, device=device), last])  # (n, V)
        return self._first([tickets[number] for number in read], logits)

    def _parts(self) -> dict[Ticket, int]:
        """How many tokens of which prompts are read next: the first in the queue, and others of its kind beside it.

        Prompts from their beginning are read as training rows are; those that go on attend to blocks, in another step.
        """
        parts: dict[Ticket, int] = {}
        longest = 0
        for ticket in self.reading:
            first = next(iter(parts), ticket)
            if bool(ticket.row.length) != bool(first.row.length):
                continue
            budget = self.chunk
            if ticket.row.length:
                budget = min(budget, max(self.cache.block, SCORES // len(ticket.prompt)))
            count = min(ticket.unread, budget)
            if parts and max(longest, count) * (len(parts) + 1) > budget:
                break
            parts[ticket] = count
            longest = max(longest, count)
        return parts

    def _score(self, ticket: Ticket, states: Tensor) -> None:
        """Note how likely the prompt's tokens after these hidden states (T, C) were."""
        begin = ticket.row.length - len(states)
        targets = ticket.prompt[begin + 1 : ticket.row.length + 1]
        rows = max(1, SCORED // self.engine.model.config.vocab_size)
        for start in range(0, len(targets), rows):
            here = torch.tensor(targets[start : start + rows], device=states.device)
            logits = self.engine.logits(states[start : start + len(here)])  # (n, V)
            found = logits.log_softmax(-1).gather(-1, here[:, None])[:, 0]
            ticket.prompt_logprobs += found.tolist()
            if ticket.sampling.alternatives:
                ticket.prompt_alternatives += likeliest(logits, ticket.sampling.alternatives)

    def _first(self, leaders: list[Ticket], logits: Tensor) -> list[Ticket]:
        """Draw the first token of every ticket whose prompt (of `logits`, a row each) is read, and seat who goes on."""
        self._follow(leaders)
        tickets, sources = [], []
        for number, leader in enumerate(leaders):
            for ticket in (leader, *leader.followers):
                if ticket.limit:
                    tickets.append(ticket)
                    sources.append(number)
                else:
                    ticket.finish = ticket.full
        everybody = [ticket for leader in leaders for ticket in (leader, *leader.followers)]
        if tickets:
            draw(logits[torch.tensor(sources, device=logits.device)], tickets)
        for leader in leaders:
            leader.followers = []
        self.live += [ticket for ticket in everybody if not ticket.finish]
        return self._finished(everybody)

    def _follow(self, leaders: Sequence[Ticket]) -> None:
        """Let the tickets of the same prompt go on from where their leaders are."""
        pairs = [(leader, follower) for leader in leaders for follower in leader.followers]
        rows = self.cache.fork([leader.row for leader, _ in pairs])
        for (leader, follower), row in zip(pairs, rows, strict=True):
            follower.row = row
            follower.prompt_logprobs, follower.prompt_alternatives = leader.prompt_logprobs, leader.prompt_alternatives
            self.figures.shared_tokens += len(follower.prompt)
            follower.version = leader.version
            self._learn(follower, follower.prompt)
            if self.lookahead:
                follower.lookahead = Lookahead(follower.prompt, self.lookahead)

    # ---- one token for everybody -----------------------------------------------------------------

    def _speak(self) -> list[Ticket]:
        """Draw the next token of every live ticket; more than one where its guess holds."""
        tickets = self.live
        if not tickets:
            return []
        guesses = [self._guess(ticket) for ticket in tickets]
        counts = [1 + len(guess) for guess in guesses]
        self._make_room(tickets, counts)
        tokens = [[ticket.tokens[-1], *guess] for ticket, guess in zip(tickets, guesses, strict=True)]
        lengths = [ticket.row.length for ticket in tickets]
        hidden = self.engine.extend(self.cache, [ticket.row for ticket in tickets], tokens)  # (B, T, C)
        logits = self.engine.logits(hidden)  # (B, T, V)
        self.figures.steps += 1
        going, agreed = list(range(len(tickets))), [0] * len(tickets)
        for place in range(max(counts)):
            rows = slice(None) if len(going) == len(tickets) else torch.tensor(going, device=logits.device)
            draw(logits[rows, place], [tickets[number] for number in going])
            going = [number for number in going if _holds(tickets[number], guesses[number], place)]
            if not going:
                break
            for number in going:
                agreed[number] += 1
        for ticket, guess, length, held in zip(tickets, guesses, lengths, agreed, strict=True):
            ticket.row.length = length + 1 + held
            if ticket.lookahead:
                ticket.lookahead.judge(len(guess), held)
        self.figures.drafted += sum(map(len, guesses))
        self.figures.accepted += sum(agreed)
        self.live = [ticket for ticket in tickets if not ticket.finish]
        return self._finished(tickets)

    def _guess(self, ticket: Ticket) -> list[int]:
        if ticket.lookahead is None or ticket.pending:
            return []
        return ticket.lookahead.guess(ticket.limit - len(ticket.tokens) - 1)

    def _finished(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Those of the tickets that have ended, their rows let go."""
        ended = [ticket for ticket in tickets if ticket.finish]
        for ticket in ended:
            self._leave(ticket)
        return ended

    def _make_room(self, tickets: Sequence[Ticket], counts: Sequence[int]) -> None:
        """Have as many blocks let go as these tokens may need."""
        if self.prefixes:
            size = self.cache.block
            needed = sum(_blocks(t.row, n, size) for t, n in zip(tickets, counts, strict=True))
            self.prefixes.make_room(needed)


def _blocks(row: Row, count: int, size: int) -> int:
    """Blocks that a row lacks for `count` more tokens."""
    return max(0, -(-(row.length + count) // size) - len(row.table))


def _holds(ticket: Ticket, guess: Sequence[int], place: int) -> bool:
    """Whether the token just drawn is the guessed one, and the answer goes on."""
    return not ticket.finish and place < len(guess) and ticket.tokens[-1] == guess[place]
