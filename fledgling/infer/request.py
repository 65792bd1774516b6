"""One request on its way to a completion, and how its next token is drawn.

The one idea: a ticket takes tokens one at a time, drawn or forced, and knows by itself when it has ended, so that
whoever decodes need not know of stop tokens, limits or tools.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fledgling.infer.sampling import UINT64_MASK, SamplingParams, adjust_logits_, hash_to_uniform, sample_tokens
from fledgling.infer.tools import ToolState
from fledgling.model.cache import CacheRow

if TYPE_CHECKING:
    from fledgling.infer.engine import Engine
    from fledgling.infer.prefix_cache import PrefixNode
    from fledgling.infer.prompt_lookup import PromptLookup

TopLogprobs = list[tuple[int, float]]  # (token, log-probability), the likeliest first


@dataclass(frozen=True)
class Completion:
    """One answer. `tokens` ends with the stop token where `finish` is "stop"."""

    tokens: list[int]
    logprobs: list[float]  # under softmax(logits / temperature); 0 where forced
    forced: list[bool]  # put there by a tool, not drawn by the model: never to be learned from
    finish_reason: str  # "stop", "length" (max_tokens reached) or "context" (the model's context is full)


class Request:
    """A prompt, what has been said so far, and the row of the cache that holds both but the newest token.

    score: also say how likely each token of the prompt is, after those before it. draws False: say only that.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        sampling: SamplingParams,
        index: int,
        use_tools: bool,
        score_prompt: bool = False,
        generate: bool = True,
    ) -> None:
        assert len(prompt), "a prompt has at least one token: bos"
        self.prompt = list(prompt)
        self.sampling = sampling
        self.index = index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.forced: list[bool] = []
        self.top_logprobs: list[TopLogprobs] = []  # of each token, where the sampling asks for them
        self.score_prompt = score_prompt
        self.prompt_logprobs: list[float] = []  # of prompt[1:], at temperature 1
        self.prompt_top_logprobs: list[TopLogprobs] = []
        self.forced_tokens: deque[int] = deque()  # tokens that must come next
        self.tool_state = ToolState(engine.tokenizer, engine.tool) if use_tools and engine.has_tool_tokens else None
        self.stop_tokens = engine.stop_tokens.union(sampling.stop_token_ids)
        room = engine.context - len(self.prompt)
        self.token_limit = min(sampling.max_new_tokens, room) if generate else 0
        self.limit_reason = "length" if sampling.max_new_tokens <= room or not generate else "context"
        self.finish_reason = "" if room > 0 else "context"  # empty while going on
        self.row = CacheRow()
        self.prefix_nodes: list[PrefixNode] = []  # of the row's first blocks
        self.weights_version = (0, 0)  # of the weights that it was begun with
        self.duplicates: list[Request] = []  # of the same prompt: they go on from here once it is read
        self.prompt_lookup: PromptLookup | None = None

    @property
    def remaining_prompt_tokens(self) -> int:
        """Tokens of the prompt that the row does not hold yet."""
        return len(self.prompt) - self.row.length

    def append_token(self, token: int, logprob: float) -> None:
        """Append a drawn token, or in its place the one that must come; see whether that ends the answer."""
        forced = bool(self.forced_tokens)
        if forced:
            token, logprob = self.forced_tokens.popleft(), 0.0
        elif token in self.stop_tokens:
            self.finish_reason = "stop"
        elif self.tool_state:
            self.forced_tokens.extend(self.tool_state.feed(token))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.forced.append(forced)
        if self.prompt_lookup:
            self.prompt_lookup.extend([token])
        if not self.finish_reason and len(self.tokens) >= self.token_limit:
            self.finish_reason = self.limit_reason

    def to_completion(self) -> Completion:
        return Completion(self.tokens, self.logprobs, self.forced, self.finish_reason)


def sample_batch(logits: Tensor, requests: Sequence[Request]) -> None:
    """Draw the next token of each ticket from its row of logits (B, V); here the host waits."""
    seeds = np.array([ticket.sampling.seed & UINT64_MASK for ticket in requests], np.uint64)
    indices = np.array([ticket.index for ticket in requests], np.uint64)
    positions = np.array([len(ticket.tokens) for ticket in requests], np.uint64)
    noise = torch.from_numpy(hash_to_uniform(seeds, indices, positions)).to(logits.device, non_blocking=True)
    for row, ticket in enumerate(requests):
        if ticket.sampling.logit_bias or ticket.sampling.repetition_penalty != 1:
            adjust_logits_(logits[row], ticket.sampling, [*ticket.prompt, *ticket.tokens])
    kinds: dict[tuple, list[int]] = {}  # rows by how they are drawn: most often all in one way
    for row, ticket in enumerate(requests):
        kinds.setdefault(ticket.sampling.batch_key, []).append(row)
    for rows in kinds.values():
        part = slice(None) if len(rows) == len(requests) else torch.tensor(rows, device=logits.device)
        sampling = requests[rows[0]].sampling
        ids, logprobs = sample_tokens(logits[part], sampling, noise[part])
        if sampling.num_top_logprobs:
            for row, found in zip(rows, top_logprobs(logits[part], sampling.num_top_logprobs), strict=True):
                requests[row].top_logprobs.append(found)
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            requests[row].append_token(token, logprob)


def top_logprobs(logits: Tensor, count: int) -> list[TopLogprobs]:
    """The `count` most likely tokens of each row of logits (B, V)."""
    top = logits.float().log_softmax(-1).topk(count)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [list(zip(tokens, values, strict=True)) for tokens, values in rows]
