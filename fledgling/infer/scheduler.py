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

from fledgling.infer.prefix_cache import PrefixCache
from fledgling.infer.prompt_lookup import PromptLookup
from fledgling.infer.request import Request, sample_batch, top_logprobs
from fledgling.infer.sampling import SamplingParams
from fledgling.model.cache import CacheRow
from fledgling.model.logprob import iterate_logits

if TYPE_CHECKING:
    from fledgling.infer.engine import Engine

ADMIT_DIVISOR = 16  # a full house admits newcomers by sixteenths: one reading for several prompts
PREFILL_TOKENS = 1 << 14  # of one chunk where nobody waits for a step: bounds the memory that activations take
MAX_ATTENTION_SCORES = 1 << 21  # attention scores of a head, of one chunk that has a past: 8 MiB a head in fp32


@dataclass
class SchedulerStats:
    """What a decoder has done; `drafted` and `accepted` are tokens of guesses (lookahead.py)."""

    prompt_tokens: int = 0  # of all prompts that were begun
    cached_tokens: int = 0  # of them: known already, by another row or an earlier request
    prefilled_tokens: int = 0  # of them: computed
    prefill_chunks: int = 0
    decode_steps: int = 0  # in which somebody spoke
    drafted: int = 0
    accepted: int = 0

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the prompts' tokens that need not be computed."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of guessed tokens that held."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Scheduler:
    """A batch of at most `rows` answers under way. `add` requests at any time, `step` until not `busy`.

    chunk: tokens of prompts read in one step. keep: prompts share what they begin with, also with earlier ones while
    the cache holds no more than so many tokens (0: only those under way; None: nothing is shared). lookahead: tokens
    guessed ahead in a step (lookahead.py; 0: none). None of them changes what is said.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch_size: int,
        prefill_chunk: int = PREFILL_TOKENS,
        prefix_cache_tokens: int | None = 0,
        lookahead_tokens: int = 0,
    ) -> None:
        self.engine, self.max_batch_size, self.prefill_chunk, self.lookahead_tokens = (
            engine,
            max_batch_size,
            prefill_chunk,
            lookahead_tokens,
        )
        self.waiting: deque[Request] = deque()
        self.prefilling: deque[Request] = deque()
        self.running: list[Request] = []
        self.cache = engine.new_cache()
        self.prefix_cache = None if prefix_cache_tokens is None else PrefixCache(self.cache, prefix_cache_tokens)
        self.weights_version = engine.weights_version
        self.stats = SchedulerStats()

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.prefilling or self.running)

    def add_request(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        index: int = 0,
        use_tools: bool = True,
        score_prompt: bool = False,
        generate: bool = True,
    ) -> Request:
        """Queue a prompt. Its tokens are a function of (prompt, weights, sampling, index) alone.

        A prompt that leaves no room in the model's context is finished at once, with "context".
        """
        ticket = Request(self.engine, prompt, sampling, index, use_tools, score_prompt, generate)
        if not ticket.finish_reason:
            self.waiting.append(ticket)
        return ticket

    def cancel(self, request: Request) -> None:
        """Stop working for a ticket; its row is free at once."""
        if request in self.waiting:
            self.waiting.remove(request)
        for leader in self.prefilling:
            if request in leader.duplicates:
                leader.duplicates.remove(request)
        if request in self.prefilling:
            self.prefilling.remove(request)
            self.waiting.extendleft(reversed(request.duplicates))
            request.duplicates = []
            self._release(request)
        if request in self.running:
            self.running.remove(request)
            self._release(request)

    def step(self) -> list[Request]:
        """One token for everybody who speaks, then one chunk of prompts; return the tickets now finished."""
        with torch.inference_mode():
            self._admit()
            finished = [*self._decode(), *self._prefill()]
            if self.prefix_cache:
                self.prefix_cache.evict()
            self.cache.trim()
        return finished

    # ---- coming and going ------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let waiting tickets begin, as many as there are rows; who needs a block that is being read waits for it."""
        if not self.waiting:
            return
        if self.prefix_cache and self.weights_version != (now := self.engine.weights_version):
            self.weights_version = now
            self.prefix_cache.clear()
        taken = len(self.running) + sum(1 + len(ticket.duplicates) for ticket in self.prefilling)
        room = min(self.max_batch_size - taken, len(self.waiting))
        if not room or (taken and room < min(len(self.waiting), self.max_batch_size // ADMIT_DIVISOR)):
            return
        leaders = {tuple(ticket.prompt): ticket for ticket in self.prefilling}
        claims = {self._next_block(ticket) for ticket in self.prefilling}
        for ticket in list(islice(self.waiting, room)):
            leader = leaders.get(tuple(ticket.prompt))
            if leader is not None and (leader.score_prompt or not ticket.score_prompt):
                leader.duplicates.append(ticket)
            elif not self._allocate(ticket, claims):
                continue
            else:
                leaders[tuple(ticket.prompt)] = ticket
                self.prefilling.append(ticket)
                claims.add(self._next_block(ticket))
            self.waiting.remove(ticket)
            self.stats.prompt_tokens += len(ticket.prompt)

    def _next_block(self, ticket: Request):
        return self.prefix_cache.next_block_key(ticket.prompt, ticket.prefix_nodes) if self.prefix_cache else None

    def _allocate(self, ticket: Request, claims: set) -> bool:
        """Give the ticket what is known of its prompt; False where somebody is about to read what it needs next."""
        ticket.weights_version = self.weights_version
        if self.prefix_cache and not ticket.score_prompt:  # who wants all log-probabilities must read all
            nodes = self.prefix_cache.match_prefix(ticket.prompt[:-1])[0]
            wanted = self.prefix_cache.next_block_key(ticket.prompt, nodes)
            if wanted is not None and wanted in claims:
                return False
            ticket.prefix_nodes = self.prefix_cache.attach(ticket.row, ticket.prompt[:-1])
            self.stats.cached_tokens += ticket.row.length
        if self.lookahead_tokens:
            ticket.prompt_lookup = PromptLookup(ticket.prompt, self.lookahead_tokens)
        return True

    def _release(self, ticket: Request) -> None:
        """Let go of a ticket's row; what it held stays known where there is room."""
        if self.prefix_cache:
            said = [*ticket.prompt, *ticket.tokens]
            ticket.row.length = min(ticket.row.length, len(said))  # interrupted between reading a guess and judging it
            self._cache_prefix(ticket, said, ended=True)
            self.prefix_cache.detach(ticket.prefix_nodes)
        self.cache.release_row(ticket.row)

    def _cache_prefix(self, ticket: Request, tokens: Sequence[int], ended: bool = False) -> None:
        """Note what a row holds, unless the weights have changed since it began."""
        if self.prefix_cache and ticket.weights_version == self.weights_version == self.engine.weights_version:
            self.prefix_cache.insert(ticket.row, tokens, ticket.prefix_nodes, ended)

    # ---- one chunk of prompts --------------------------------------------------------------------

    def _prefill(self) -> list[Request]:
        """Read the next part of some prompts; whose prompt is read draws a first token."""
        parts = self._select_prefill()
        if not parts:
            return []
        tickets, counts = list(parts), list(parts.values())
        self._evict(tickets, counts)
        tokens = [t.prompt[t.row.length : t.row.length + n] for t, n in parts.items()]
        hidden = self.engine.extend_cache(self.cache, [t.row for t in tickets], tokens)  # (N, T, C)
        self.stats.prefill_chunks += 1
        self.stats.prefilled_tokens += sum(counts)
        for ticket, count, states in zip(tickets, counts, hidden, strict=True):
            if ticket.score_prompt:
                self._score_prompt(ticket, states[:count])
            self._cache_prefix(ticket, ticket.prompt)
        read = [number for number, ticket in enumerate(tickets) if not ticket.remaining_prompt_tokens]
        for ticket in tickets:  # those with more to read queue up again: a short prompt does not wait for a long one
            self.prefilling.remove(ticket)
            if ticket.remaining_prompt_tokens:
                self.prefilling.append(ticket)
        if not read:
            return []
        device = hidden.device
        last = torch.tensor([counts[number] - 1 for number in read], device=device)
        logits = self.engine.compute_logits(hidden[torch.tensor(read, device=device), last])  # (n, V)
        return self._sample_first([tickets[number] for number in read], logits)

    def _select_prefill(self) -> dict[Request, int]:
        """How many tokens of which prompts are read next: the first in the queue, and others of its kind beside it.

        Prompts from their beginning are read as training rows are; those that go on attend to blocks, in another step.
        """
        parts: dict[Request, int] = {}
        longest = 0
        for ticket in self.prefilling:
            first = next(iter(parts), ticket)
            if bool(ticket.row.length) != bool(first.row.length):
                continue
            budget = self.prefill_chunk
            if ticket.row.length:
                budget = min(budget, max(self.cache.block_size, MAX_ATTENTION_SCORES // len(ticket.prompt)))
            count = min(ticket.remaining_prompt_tokens, budget)
            if parts and max(longest, count) * (len(parts) + 1) > budget:
                break
            parts[ticket] = count
            longest = max(longest, count)
        return parts

    def _score_prompt(self, ticket: Request, states: Tensor) -> None:
        """Note how likely the prompt's tokens after these hidden states (T, C) were."""
        begin = ticket.row.length - len(states)
        targets = ticket.prompt[begin + 1 : ticket.row.length + 1]
        vocab_size, states = self.engine.model.config.vocab_size, states[: len(targets)]
        for part, logits in iterate_logits(states, self.engine.compute_logits, vocab_size):
            ids = torch.tensor(targets[part], device=states.device)
            ticket.prompt_logprobs += logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist()
            if ticket.sampling.num_top_logprobs:
                ticket.prompt_top_logprobs += top_logprobs(logits, ticket.sampling.num_top_logprobs)

    def _sample_first(self, leaders: list[Request], logits: Tensor) -> list[Request]:
        """Draw the first token of every ticket whose prompt (of `logits`, a row each) is read, and seat who goes on."""
        self._fork_duplicates(leaders)
        tickets, sources = [], []
        for number, leader in enumerate(leaders):
            for ticket in (leader, *leader.duplicates):
                if ticket.token_limit:
                    tickets.append(ticket)
                    sources.append(number)
                else:
                    ticket.finish_reason = ticket.limit_reason
        everybody = [ticket for leader in leaders for ticket in (leader, *leader.duplicates)]
        if tickets:
            sample_batch(logits[torch.tensor(sources, device=logits.device)], tickets)
        for leader in leaders:
            leader.duplicates = []
        self.running += [ticket for ticket in everybody if not ticket.finish_reason]
        return self._collect_finished(everybody)

    def _fork_duplicates(self, leaders: Sequence[Request]) -> None:
        """Let the tickets of the same prompt go on from where their leaders are."""
        pairs = [(leader, follower) for leader in leaders for follower in leader.duplicates]
        rows = self.cache.fork([leader.row for leader, _ in pairs])
        for (leader, follower), row in zip(pairs, rows, strict=True):
            follower.row = row
            follower.prompt_logprobs, follower.prompt_top_logprobs = leader.prompt_logprobs, leader.prompt_top_logprobs
            self.stats.cached_tokens += len(follower.prompt)
            follower.weights_version = leader.weights_version
            self._cache_prefix(follower, follower.prompt)
            if self.lookahead_tokens:
                follower.prompt_lookup = PromptLookup(follower.prompt, self.lookahead_tokens)

    # ---- one token for everybody -----------------------------------------------------------------

    def _decode(self) -> list[Request]:
        """Draw the next token of every live ticket; more than one where its guess holds."""
        tickets = self.running
        if not tickets:
            return []
        guesses = [self._propose_draft(ticket) for ticket in tickets]
        counts = [1 + len(guess) for guess in guesses]
        self._evict(tickets, counts)
        tokens = [[ticket.tokens[-1], *guess] for ticket, guess in zip(tickets, guesses, strict=True)]
        lengths = [ticket.row.length for ticket in tickets]
        hidden = self.engine.extend_cache(self.cache, [ticket.row for ticket in tickets], tokens)  # (B, T, C)
        logits = self.engine.compute_logits(hidden)  # (B, T, V)
        self.stats.decode_steps += 1
        going, agreed = list(range(len(tickets))), [0] * len(tickets)
        for place in range(max(counts)):
            rows = slice(None) if len(going) == len(tickets) else torch.tensor(going, device=logits.device)
            sample_batch(logits[rows, place], [tickets[number] for number in going])
            going = [number for number in going if _draft_matches(tickets[number], guesses[number], place)]
            if not going:
                break
            for number in going:
                agreed[number] += 1
        for ticket, guess, length, held in zip(tickets, guesses, lengths, agreed, strict=True):
            ticket.row.length = length + 1 + held
            if ticket.prompt_lookup:
                ticket.prompt_lookup.update(len(guess), held)
        self.stats.drafted += sum(map(len, guesses))
        self.stats.accepted += sum(agreed)
        self.running = [ticket for ticket in tickets if not ticket.finish_reason]
        return self._collect_finished(tickets)

    def _propose_draft(self, ticket: Request) -> list[int]:
        if ticket.prompt_lookup is None or ticket.forced_tokens:
            return []
        return ticket.prompt_lookup.propose(ticket.token_limit - len(ticket.tokens) - 1)

    def _collect_finished(self, tickets: Sequence[Request]) -> list[Request]:
        """Those of the tickets that have ended, their rows let go."""
        ended = [ticket for ticket in tickets if ticket.finish_reason]
        for ticket in ended:
            self._release(ticket)
        return ended

    def _evict(self, tickets: Sequence[Request], counts: Sequence[int]) -> None:
        """Have as many blocks let go as these tokens may need."""
        if self.prefix_cache:
            size = self.cache.block_size
            needed = sum(_missing_blocks(t.row, n, size) for t, n in zip(tickets, counts, strict=True))
            self.prefix_cache.evict(needed)


def _missing_blocks(row: CacheRow, count: int, size: int) -> int:
    """Blocks that a row lacks for `count` more tokens."""
    return max(0, -(-(row.length + count) // size) - len(row.block_table))


def _draft_matches(ticket: Request, guess: Sequence[int], place: int) -> bool:
    """Whether the token just drawn is the guessed one, and the answer goes on."""
    return not ticket.finish_reason and place < len(guess) and ticket.tokens[-1] == guess[place]
