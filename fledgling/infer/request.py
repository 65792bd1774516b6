"""A request: one prompt, its answer so far, and the state that decides how and when the answer ends.

A request receives tokens one at a time, sampled or forced, and itself checks stop tokens, limits and tool calls, so
the scheduler needs to know none of them. `PromptLookup` proposes draft tokens for it.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fledgling.infer.grammar import GrammarError, GrammarState
from fledgling.infer.prefix_cache import PrefixNode
from fledgling.infer.sampling import UINT64_MASK, LogitAdjuster, SamplingParams, hash_to_uniform, sample_tokens
from fledgling.infer.tools import ToolState
from fledgling.model.cache import CacheRow

MIN_NGRAM, MAX_NGRAM = 2, 3  # tokens that must have occurred before
PAUSE_TOKENS = 16  # tokens without a draft after a draft of which no token was accepted

TopLogprobs = list[tuple[int, float]]  # (token, log-probability), most likely first


@dataclass(frozen=True)
class Completion:
    """A finished answer. `tokens` ends with the stop token where `finish_reason` is "stop"."""

    tokens: list[int]
    logprobs: list[float]  # under softmax(logits / temperature); 0 where forced
    forced: list[bool]  # inserted by a tool, not sampled from the model: excluded from RL losses
    finish_reason: str  # "stop", "length" (max_new_tokens), "context" (is full) or "constraint" (beyond its limits)


class Request:
    """A prompt, its answer so far, and the cache row that holds both except for the newest token.

    Args:
        prompt: token ids, at least one.
        sampling: how the answer is sampled.
        context: the model's context in tokens.
        stop_tokens: token ids that end the answer, in addition to those of `sampling`.
        index: number of the request within its seed; selects its random numbers.
        tool_state: runs tool calls inside the answer; None disables them.
        score_prompt: also compute the log-probability of each prompt token given those before it.
        generate: False computes no answer (for `score_prompt` alone).
        constraint: the state of a grammar that the answer must satisfy (grammar.py); None: any answer.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        context: int,
        stop_tokens: frozenset[int] = frozenset(),
        index: int = 0,
        tool_state: ToolState | None = None,
        score_prompt: bool = False,
        generate: bool = True,
        constraint: GrammarState | None = None,
    ) -> None:
        assert len(prompt), "a prompt has at least one token: bos"
        self.prompt = list(prompt)
        self.sampling = sampling
        self.index = index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.forced: list[bool] = []
        self.top_logprobs: list[TopLogprobs] = []  # of each sampled token, where `sampling` requests them
        self.score_prompt = score_prompt
        self.prompt_logprobs: list[float] = []  # of prompt[1:], at temperature 1
        self.prompt_top_logprobs: list[TopLogprobs] = []
        self.forced_tokens: deque[int] = deque()  # tokens that must come next
        self.tool_state = tool_state
        self.constraint = constraint
        self.stop_tokens = stop_tokens.union(sampling.stop_token_ids)
        free_tokens = context - len(self.prompt)
        self.token_limit = min(sampling.max_new_tokens, free_tokens) if generate else 0
        self.limit_reason = "length" if sampling.max_new_tokens <= free_tokens or not generate else "context"
        self.finish_reason = "" if free_tokens > 0 else "context"  # empty while unfinished
        self.row = CacheRow()
        self.cached_tokens = 0  # of the prompt: found in the cache when the request was admitted
        self.prefix_nodes: list[PrefixNode] = []  # of the row's first blocks
        self.weights_version = (0, 0)  # of the weights that the row was started with
        self.duplicates: list[Request] = []  # requests with the same prompt: they fork the row once it is prefilled
        self.prompt_lookup: PromptLookup | None = None
        self.logit_adjuster: LogitAdjuster | None = None  # made with the first logits, where `sampling` needs one

    @property
    def remaining_prompt_tokens(self) -> int:
        """Tokens of the prompt that the row does not hold yet."""
        return len(self.prompt) - self.row.length

    def append_token(self, token: int, logprob: float) -> None:
        """Appends the sampled token, or the forced token that replaces it, and sets `finish_reason` at the end."""
        forced = bool(self.forced_tokens)
        if forced:
            token, logprob = self.forced_tokens.popleft(), 0.0
        elif self.finish_reason:  # ended by its constraint, or by the token before, which was read late (pipeline.py)
            return
        elif token in self.stop_tokens:
            self.finish_reason = "stop"
        else:
            if self.constraint:
                self.constraint.accept(token)
            if self.tool_state:
                self.forced_tokens.extend(self.tool_state.feed(token))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.forced.append(forced)
        if self.prompt_lookup:
            self.prompt_lookup.extend([token])
        if not self.finish_reason and len(self.tokens) >= self.token_limit:
            self.finish_reason = self.limit_reason

    @property
    def adjusts_logits(self) -> bool:
        """Whether there are penalties, a logit bias or a constraint."""
        return self.constraint is not None or self.sampling.adjusts_logits

    def adjust_logits_(self, logits: Tensor) -> None:
        """Applies penalties, logit bias and the constraint to the row of logits (V,) of the next token, in place.

        A constraint that exceeds its limits ends the answer with "constraint".
        """
        if self.sampling.adjusts_logits:
            if self.logit_adjuster is None:
                self.logit_adjuster = LogitAdjuster(self.sampling, self.prompt, len(logits), logits.device)
            self.logit_adjuster.adjust_(logits, self.tokens)
        if self.constraint and not self.forced_tokens:
            try:
                self.constraint.mask_logits_(logits)
            except GrammarError:
                self.finish_reason = "constraint"

    def propose_draft(self) -> list[int]:
        """Returns draft tokens for the next step; none without prompt lookup or while tokens are forced."""
        if self.prompt_lookup is None or self.forced_tokens:
            return []
        return self.prompt_lookup.propose(self.token_limit - len(self.tokens) - 1)

    def to_completion(self) -> Completion:
        """Returns the answer as a value."""
        return Completion(self.tokens, self.logprobs, self.forced, self.finish_reason)


class PromptLookup:
    """Drafts of at most `max_draft_tokens` tokens for one growing text.

    The last two or three tokens have often occurred earlier in the text; what followed them there is the draft. The
    model reads the draft in one forward pass and samples at each of its positions; the draft is accepted as far as the
    samples agree. Samples are a function of (seed, request, position), so the answer is the same with drafts or
    without, at any temperature. When it is faster: docs/engine.md, Measured.

    Source: prompt lookup decoding; speculative decoding with a deterministic draft, Leviathan et al. 2023,
    arXiv 2211.17192.
    """

    def __init__(self, tokens: Iterable[int], max_draft_tokens: int) -> None:
        self.tokens: list[int] = []
        self.max_draft_tokens = self.draft_tokens = max_draft_tokens
        self.pause = 0  # tokens until the next draft
        self._continuations: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last occurrence
        self._draft_start = 0  # position where the draft begins; 0: there is none
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens to the text."""
        for token in tokens:
            self.tokens.append(token)
            self._draft_start = 0
            for length in range(MIN_NGRAM, MAX_NGRAM + 1):
                ngram = tuple(self.tokens[-length:])
                if len(ngram) == length:
                    self._draft_start = self._continuations.get(ngram, self._draft_start)
                    self._continuations[ngram] = len(self.tokens)

    def propose(self, max_tokens: int) -> list[int]:
        """Returns at most `max_tokens` draft tokens; a repetition that reaches the end of the text is continued.

        During a pause it returns none, and every call shortens the pause by one token.
        """
        if self.pause:
            self.pause -= 1
            return []
        if not self._draft_start:
            return []
        period = len(self.tokens) - self._draft_start
        return [self.tokens[self._draft_start + i % period] for i in range(min(self.draft_tokens, max_tokens))]

    def update(self, drafted: int, accepted: int) -> None:
        """Adapts the draft length to how many of the `drafted` tokens were accepted; pauses where none was."""
        if drafted:
            self.draft_tokens = min(self.max_draft_tokens, max(1, 2 * accepted))
            self.pause = 0 if accepted else PAUSE_TOKENS


def sample_batch(logits: Tensor, requests: Sequence[Request]) -> None:
    """Samples the next token of each request from its row of logits (B, V) and appends it to the request.

    Penalties, logit bias and constraints change `logits` in place. The host waits for the device here.
    """
    noise = _draw_noise(requests).to(logits.device, non_blocking=True)
    for row, request in enumerate(requests):
        if request.adjusts_logits:
            request.adjust_logits_(logits[row])
    groups: dict[tuple, list[int]] = {}  # rows by sampling parameters: most often one group
    for row, request in enumerate(requests):
        groups.setdefault(request.sampling.batch_key, []).append(row)
    for rows in groups.values():
        selected = slice(None) if len(rows) == len(requests) else torch.tensor(rows, device=logits.device)
        sampling = requests[rows[0]].sampling
        ids, logprobs = sample_tokens(logits[selected], sampling, noise[selected])
        if sampling.num_top_logprobs:
            for row, top in zip(rows, top_logprobs(logits[selected], sampling.num_top_logprobs), strict=True):
                if not requests[row].finish_reason:
                    requests[row].top_logprobs.append(top)
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            requests[row].append_token(token, logprob)


def _draw_noise(requests: Sequence[Request]) -> Tensor:
    """Returns the noise (B,) of each request's next token; zeros where all take the most likely one."""
    if not any(request.sampling.temperature for request in requests):
        return torch.zeros(len(requests))
    seeds = np.array([request.sampling.seed & UINT64_MASK for request in requests], np.uint64)
    indices = np.array([request.index for request in requests], np.uint64)
    positions = np.array([len(request.tokens) for request in requests], np.uint64)
    return torch.from_numpy(hash_to_uniform(seeds, indices, positions))


def top_logprobs(logits: Tensor, count: int) -> list[TopLogprobs]:
    """Returns, for each row of logits (B, V), its `count` most likely tokens and their log-probabilities.

    Tokens that a constraint excludes are left out: minus infinity is no JSON number.
    """
    top = logits.float().log_softmax(-1).topk(count)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [[pair for pair in zip(ids, values, strict=True) if pair[1] > -math.inf] for ids, values in rows]
