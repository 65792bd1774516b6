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

from fledgling.infer.sample import WORD, Sampling, adjust, sample, uniform
from fledgling.infer.tools import ToolState
from fledgling.model.cache import Row

if TYPE_CHECKING:
    from fledgling.infer.engine import Engine
    from fledgling.infer.lookahead import Lookahead
    from fledgling.infer.prefix import Node

Alternatives = list[tuple[int, float]]  # (token, log-probability), the likeliest first


@dataclass(frozen=True)
class Completion:
    """One answer. `tokens` ends with the stop token where `finish` is "stop"."""

    tokens: list[int]
    logprobs: list[float]  # under softmax(logits / temperature); 0 where forced
    forced: list[bool]  # put there by a tool, not drawn by the model: never to be learned from
    finish: str  # "stop", "length" (max_tokens reached) or "context" (the model's context is full)


class Ticket:
    """A prompt, what has been said so far, and the row of the cache that holds both but the newest token.

    score: also say how likely each token of the prompt is, after those before it. draws False: say only that.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        sampling: Sampling,
        index: int,
        tools: bool,
        score: bool = False,
        draws: bool = True,
    ) -> None:
        assert len(prompt), "a prompt has at least one token: bos"
        self.prompt = list(prompt)
        self.sampling = sampling
        self.index = index
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.forced: list[bool] = []
        self.alternatives: list[Alternatives] = []  # of each token, where the sampling asks for them
        self.score = score
        self.prompt_logprobs: list[float] = []  # of prompt[1:], at temperature 1
        self.prompt_alternatives: list[Alternatives] = []
        self.pending: deque[int] = deque()  # tokens that must come next
        self.tools = ToolState(engine.tokenizer, engine.tool) if tools and engine.can_call else None
        self.stops = engine.stops.union(sampling.stop)
        room = engine.context - len(self.prompt)
        self.limit = min(sampling.max_tokens, room) if draws else 0
        self.full = "length" if sampling.max_tokens <= room or not draws else "context"
        self.finish = "" if room > 0 else "context"  # empty while going on
        self.row = Row()
        self.nodes: list[Node] = []  # of the row's first blocks
        self.version = (0, 0)  # of the weights that it was begun with
        self.followers: list[Ticket] = []  # of the same prompt: they go on from here once it is read
        self.lookahead: Lookahead | None = None

    @property
    def unread(self) -> int:
        """Tokens of the prompt that the row does not hold yet."""
        return len(self.prompt) - self.row.length

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
        if self.lookahead:
            self.lookahead.extend([token])
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
    kinds: dict[tuple, list[int]] = {}  # rows by how they are drawn: most often all in one way
    for row, ticket in enumerate(tickets):
        kinds.setdefault(ticket.sampling.kind, []).append(row)
    for rows in kinds.values():
        part = slice(None) if len(rows) == len(tickets) else torch.tensor(rows, device=logits.device)
        sampling = tickets[rows[0]].sampling
        ids, logprobs = sample(logits[part], sampling, noise[part])
        if sampling.alternatives:
            for row, found in zip(rows, likeliest(logits[part], sampling.alternatives), strict=True):
                tickets[row].alternatives.append(found)
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            tickets[row].take(token, logprob)


def likeliest(logits: Tensor, count: int) -> list[Alternatives]:
    """The `count` most likely tokens of each row of logits (B, V)."""
    top = logits.float().log_softmax(-1).topk(count)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [list(zip(tokens, values, strict=True)) for tokens, values in rows]
