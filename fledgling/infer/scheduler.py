"""Continuous batching: decides in every step which requests decode and which prompts are prefilled.

A step decodes one token of each running request, then prefills one chunk of prompts. A long prompt therefore delays
running requests by one chunk at most, a finished request frees its row at once, and waiting requests are admitted as
soon as rows are free. Rows are lists of cache blocks (model/cache.py), so prompts of different lengths share a batch,
and a common prefix is computed once (prefix_cache.py).

How a token is sampled is in request.py and sampling.py; runner.py runs the model.

B running rows, N prompts of one chunk, T longest part, C width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from fledgling.infer.pipeline import DecodePipeline
from fledgling.infer.prefix_cache import BlockKey, PrefixCache
from fledgling.infer.request import PromptLookup, Request, sample_batch, top_logprobs
from fledgling.infer.runner import ModelRunner
from fledgling.model.cache import CacheRow
from fledgling.model.logprob import iterate_logits

ADMIT_DIVISOR = 16  # a busy batch admits requests once 1/16 of its rows are free: several prompts share one prefill
PREFILL_TOKENS = 1 << 14  # default chunk: bounds the memory of activations
MAX_ATTENTION_SCORES = 1 << 21  # per head, of a chunk that attends to earlier blocks: 8 MiB a head in fp32


@dataclass
class SchedulerStats:
    """Counters of a scheduler. `drafted` and `accepted` count draft tokens of prompt lookup."""

    prompt_tokens: int = 0  # of all admitted prompts
    cached_tokens: int = 0  # of these: taken from another row or an earlier request
    prefilled_tokens: int = 0  # of these: computed
    prefill_chunks: int = 0
    decode_steps: int = 0
    device_steps: int = 0  # of these: decoded without a host read (pipeline.py)
    drafted: int = 0
    accepted: int = 0

    @property
    def prefix_hit_rate(self) -> float:
        """Share of prompt tokens that were cached, in [0, 1]."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of draft tokens that were accepted, in [0, 1]."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Scheduler:
    """Runs requests in one batch: `add_request` at any time, call `step` while `has_unfinished`.

    None of the arguments changes the tokens of an answer.

    Args:
        runner: the model.
        max_batch_size: requests that are admitted at once.
        prefill_chunk: prompt tokens computed in one step.
        prefix_cache_tokens: the cache keeps prefixes of finished requests while it holds no more tokens than this;
            0 shares prefixes among running requests only, None shares nothing.
        num_speculative_tokens: draft tokens of a request in one step (`PromptLookup`); 0 disables drafts.
    """

    def __init__(
        self,
        runner: ModelRunner,
        max_batch_size: int,
        prefill_chunk: int = PREFILL_TOKENS,
        prefix_cache_tokens: int | None = 0,
        num_speculative_tokens: int = 0,
    ) -> None:
        self.runner = runner
        self.max_batch_size = max_batch_size
        self.prefill_chunk = prefill_chunk
        self.num_speculative_tokens = num_speculative_tokens
        self.waiting: deque[Request] = deque()
        self.prefilling: deque[Request] = deque()
        self.running: list[Request] = []
        self.cache = runner.new_cache()
        self.prefix_cache = None if prefix_cache_tokens is None else PrefixCache(self.cache, prefix_cache_tokens)
        self.weights_version = runner.weights_version
        decoder = runner.make_decoder(self.cache, max_batch_size)
        self.pipeline = DecodePipeline(decoder) if decoder else None
        self.stats = SchedulerStats()

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is waiting, prefilling or running."""
        return bool(self.waiting or self.prefilling or self.running)

    def add_request(self, request: Request) -> Request:
        """Queues a request and returns it. Its tokens are a function of (prompt, weights, sampling, index) alone.

        A request whose prompt fills the model's context is already finished, with "context".
        """
        if not request.finish_reason:
            self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Removes a request and frees its row at once."""
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
            if self.pipeline:
                self.pipeline.discard(request)
            self._release(request)

    def step(self) -> list[Request]:
        """Decodes a token of each running request, prefills one chunk of prompts, returns the finished requests."""
        with torch.inference_mode():
            self._admit()
            finished = [*self._decode(), *self._prefill()]
            if self.prefix_cache:
                self.prefix_cache.evict()
            self.cache.trim()
        return finished

    # ---- admitting and releasing -----------------------------------------------------------------

    def _admit(self) -> None:
        """Admits waiting requests to free rows; a request whose next block is being prefilled waits for it."""
        if not self.waiting:
            return
        if self.prefix_cache and self.weights_version != (current := self.runner.weights_version):
            self.weights_version = current
            self.prefix_cache.clear()
        used_rows = len(self.running) + sum(1 + len(request.duplicates) for request in self.prefilling)
        free_rows = min(self.max_batch_size - used_rows, len(self.waiting))
        if not free_rows or (used_rows and free_rows < min(len(self.waiting), self.max_batch_size // ADMIT_DIVISOR)):
            return
        leaders = {tuple(request.prompt): request for request in self.prefilling}
        pending_blocks = {self._next_block(request) for request in self.prefilling}
        for request in list(islice(self.waiting, free_rows)):
            leader = leaders.get(tuple(request.prompt))
            if leader is not None and _scores_prompt_of(leader, request):
                leader.duplicates.append(request)
            elif not self._allocate(request, pending_blocks):
                continue
            else:
                leaders[tuple(request.prompt)] = request
                self.prefilling.append(request)
                pending_blocks.add(self._next_block(request))
            self.waiting.remove(request)
            self.stats.prompt_tokens += len(request.prompt)

    def _next_block(self, request: Request) -> BlockKey | None:
        """Returns the key of the next whole block that a request must compute."""
        return self.prefix_cache.next_block_key(request.prompt, request.prefix_nodes) if self.prefix_cache else None

    def _allocate(self, request: Request, pending_blocks: set[BlockKey | None]) -> bool:
        """Attaches the cached prefix of a prompt to its row; False where its next block is in `pending_blocks`."""
        request.weights_version = self.weights_version
        if self.prefix_cache and not request.score_prompt:  # scoring needs the hidden states of the whole prompt
            nodes = self.prefix_cache.match_prefix(request.prompt[:-1])[0]
            next_block = self.prefix_cache.next_block_key(request.prompt, nodes)
            if next_block is not None and next_block in pending_blocks:
                return False
            request.prefix_nodes = self.prefix_cache.attach(request.row, request.prompt[:-1])
            request.cached_tokens = request.row.length
            self.stats.cached_tokens += request.row.length
        if self.num_speculative_tokens:
            request.prompt_lookup = PromptLookup(request.prompt, self.num_speculative_tokens)
        return True

    def _release(self, request: Request) -> None:
        """Releases a request's row; its blocks stay in the prefix cache until they are evicted."""
        if self.prefix_cache:
            tokens = [*request.prompt, *request.tokens]
            request.row.length = min(request.row.length, len(tokens))  # an interrupt may leave unverified draft tokens
            self._cache_prefix(request, tokens, include_partial=True)
            self.prefix_cache.detach(request.prefix_nodes)
        self.cache.release_row(request.row)

    def _cache_prefix(self, request: Request, tokens: Sequence[int], include_partial: bool = False) -> None:
        """Inserts a row's blocks into the prefix cache, unless the weights have changed since the row was started."""
        if self.prefix_cache and request.weights_version == self.weights_version == self.runner.weights_version:
            self.prefix_cache.insert(request.row, tokens, request.prefix_nodes, include_partial)

    def _evict(self, requests: Sequence[Request], counts: Sequence[int]) -> None:
        """Evicts cached prefixes until `counts` more tokens of the requests' rows fit."""
        if self.prefix_cache:
            size = self.cache.block_size
            missing = sum(_missing_blocks(r.row, count, size) for r, count in zip(requests, counts, strict=True))
            self.prefix_cache.evict(missing)

    def _collect_finished(self, requests: Sequence[Request]) -> list[Request]:
        """Returns those of the requests that have finished, after releasing their rows."""
        finished = [request for request in requests if request.finish_reason]
        for request in finished:
            self._release(request)
        return finished

    # ---- prefill: one chunk of prompts -----------------------------------------------------------

    def _prefill(self) -> list[Request]:
        """Prefills the next part of some prompts and samples the first token where a prompt is complete."""
        parts = self._select_prefill()
        if not parts:
            return []
        requests, counts = list(parts), list(parts.values())
        self._evict(requests, counts)
        tokens = [r.prompt[r.row.length : r.row.length + count] for r, count in parts.items()]
        hidden = self.runner.extend_cache(self.cache, [r.row for r in requests], tokens)  # (N, T, C)
        self.stats.prefill_chunks += 1
        self.stats.prefilled_tokens += sum(counts)
        for request, count, states in zip(requests, counts, hidden, strict=True):
            if request.score_prompt:
                self._score_prompt(request, states[:count])
            self._cache_prefix(request, request.prompt)
        complete = [i for i, request in enumerate(requests) if not request.remaining_prompt_tokens]
        for request in requests:  # incomplete prompts go to the end of the queue, so that short ones need not wait
            self.prefilling.remove(request)
            if request.remaining_prompt_tokens:
                self.prefilling.append(request)
        if not complete:
            return []
        device = hidden.device
        last = torch.tensor([counts[i] - 1 for i in complete], device=device)
        logits = self.runner.compute_logits(hidden[torch.tensor(complete, device=device), last])  # (n, V)
        return self._sample_first([requests[i] for i in complete], logits)

    def _select_prefill(self) -> dict[Request, int]:
        """Chooses the prompts of the next chunk and how many tokens of each: {request: tokens}.

        The first prompt in the queue is joined by others of its kind: prompts without a cached prefix use the attention
        of training, prompts with one attend to cache blocks, so the two are never in the same forward pass.
        """
        parts: dict[Request, int] = {}
        longest = 0
        for request in self.prefilling:
            first = next(iter(parts), request)
            if bool(request.row.length) != bool(first.row.length):
                continue
            budget = self.prefill_chunk
            if request.row.length:
                budget = min(budget, max(self.cache.block_size, MAX_ATTENTION_SCORES // len(request.prompt)))
            count = min(request.remaining_prompt_tokens, budget)
            if parts and max(longest, count) * (len(parts) + 1) > budget:  # padding counts
                break
            parts[request] = count
            longest = max(longest, count)
        return parts

    def _score_prompt(self, request: Request, hidden: Tensor) -> None:
        """Appends the log-probabilities of the prompt tokens that follow the hidden states (T, C)."""
        start = request.row.length - len(hidden)
        targets = request.prompt[start + 1 : request.row.length + 1]
        vocab_size = self.runner.model.config.vocab_size
        for part, logits in iterate_logits(hidden[: len(targets)], self.runner.compute_logits, vocab_size):
            ids = torch.tensor(targets[part], device=hidden.device)
            request.prompt_logprobs += logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].tolist()
            if request.sampling.num_top_logprobs:
                request.prompt_top_logprobs += top_logprobs(logits, request.sampling.num_top_logprobs)

    def _sample_first(self, leaders: list[Request], logits: Tensor) -> list[Request]:
        """Samples the first token of prefilled requests and their duplicates; returns those that finish with it.

        Args:
            leaders: requests whose prompt is complete.
            logits: (len(leaders), V), after the last token of each prompt.
        """
        self._fork_duplicates(leaders)
        sampled, sources = [], []
        for number, leader in enumerate(leaders):
            for request in (leader, *leader.duplicates):
                if request.token_limit:
                    sampled.append(request)
                    sources.append(number)
                else:
                    request.finish_reason = request.limit_reason
        requests = [request for leader in leaders for request in (leader, *leader.duplicates)]
        if sampled:
            sample_batch(logits[torch.tensor(sources, device=logits.device)], sampled)
        for leader in leaders:
            leader.duplicates = []
        self.running += [request for request in requests if not request.finish_reason]
        return self._collect_finished(requests)

    def _fork_duplicates(self, leaders: Sequence[Request]) -> None:
        """Gives each duplicate a fork of its leader's row."""
        pairs = [(leader, duplicate) for leader in leaders for duplicate in leader.duplicates]
        rows = self.cache.fork([leader.row for leader, _ in pairs])
        for (leader, duplicate), row in zip(pairs, rows, strict=True):
            duplicate.row = row
            if duplicate.score_prompt:
                duplicate.prompt_logprobs = leader.prompt_logprobs
                duplicate.prompt_top_logprobs = leader.prompt_top_logprobs
            duplicate.cached_tokens = leader.cached_tokens  # the prompt was computed for this request too
            self.stats.cached_tokens += len(duplicate.prompt)
            duplicate.weights_version = leader.weights_version
            self._cache_prefix(duplicate, duplicate.prompt)
            if self.num_speculative_tokens:
                duplicate.prompt_lookup = PromptLookup(duplicate.prompt, self.num_speculative_tokens)

    # ---- decode: one token of each running request -----------------------------------------------

    def _decode(self) -> list[Request]:
        """Samples the next token of each running request; several where draft tokens are accepted."""
        waiting_for = self.running  # requests whose tokens are read in this step
        if self.pipeline:
            on_device = [request for request in self.running if self.pipeline.covers(request)]
            waiting_for = [request for request in self.running if not self.pipeline.covers(request)]
            self._evict(on_device, [1] * len(on_device))
            started = bool(self.pipeline.step(on_device))
            self.stats.decode_steps += started
            self.stats.device_steps += started
        if waiting_for:
            self._decode_and_wait(waiting_for)
        requests = self.running
        self.running = [request for request in requests if not request.finish_reason]
        return self._collect_finished(requests)

    def _decode_and_wait(self, requests: list[Request]) -> None:
        """Samples the next tokens of the requests in one forward pass, and reads them at once."""
        drafts = [request.propose_draft() for request in requests]
        counts = [1 + len(draft) for draft in drafts]
        self._evict(requests, counts)
        tokens = [[request.tokens[-1], *draft] for request, draft in zip(requests, drafts, strict=True)]
        lengths = [request.row.length for request in requests]
        hidden = self.runner.extend_cache(self.cache, [request.row for request in requests], tokens)  # (B, T, C)
        logits = self.runner.compute_logits(hidden)  # (B, T, V)
        self.stats.decode_steps += 1
        active, accepted = list(range(len(requests))), [0] * len(requests)
        for position in range(max(counts)):
            rows = slice(None) if len(active) == len(requests) else torch.tensor(active, device=logits.device)
            sample_batch(logits[rows, position], [requests[i] for i in active])
            active = [i for i in active if _draft_matches(requests[i], drafts[i], position)]
            if not active:
                break
            for i in active:
                accepted[i] += 1
        for request, draft, length, count in zip(requests, drafts, lengths, accepted, strict=True):
            request.row.length = length + 1 + count
            if request.prompt_lookup:
                request.prompt_lookup.update(len(draft), count)
        self.stats.drafted += sum(map(len, drafts))
        self.stats.accepted += sum(accepted)


def _missing_blocks(row: CacheRow, count: int, block_size: int) -> int:
    """Returns how many blocks a row lacks for `count` more tokens."""
    return max(0, -(-(row.length + count) // block_size) - len(row.block_table))


def _scores_prompt_of(leader: Request, request: Request) -> bool:
    """Whether the prefill of `leader` computes what `request`, with the same prompt, must have of its prompt."""
    same_count = leader.sampling.num_top_logprobs == request.sampling.num_top_logprobs
    return not request.score_prompt or (leader.score_prompt and same_count)


def _draft_matches(request: Request, draft: Sequence[int], position: int) -> bool:
    """Whether the token just sampled equals the draft token at `position`, and the request is unfinished."""
    return not request.finish_reason and position < len(draft) and request.tokens[-1] == draft[position]
