"""Prompts in, answers out: the one way in which chat, evaluations and reinforcement learning run a model.

The one idea: there is one path. Whether one prompt or a thousand, rows of one cache are filled chunk by chunk and
then grow by a token a row and step (batch.py); tool output is forced through the same path as drawn tokens.
By default the engine reads the model's live weights: what training changed is what answers next.

It is not a trainer (no gradient is ever taken), and it knows no roles or messages: see session.py.

B rows, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fledgling.infer.request import Completion, Request
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.infer.tools import CALCULATOR, Tool
from fledgling.kernels.backend import select_backend
from fledgling.model.attention import TreeMask
from fledgling.model.cache import CacheRow, KVCache
from fledgling.model.transformer import Transformer

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class GeneratedToken:
    """One more token of a streamed answer."""

    id: int
    logprob: float
    forced: bool


@dataclass(frozen=True)
class FinishEvent:
    """The end of a streamed answer: "stop", "length" or "context"."""

    finish_reason: str


class Engine:
    """Runs a model on prompts of token ids.

    Products run in `dtype`, by default the model's own compute dtype. Where the weights are of another dtype
    or on another device, the engine keeps a cast copy of them, on CPU in bf16 packed (pack.py), which answers
    as the model does and spares a cast at every step. `generate` brings the copy up to date by itself; whoever
    trains in between and streams calls `refresh`. Otherwise it reads the model's live weights.

    `skip_zeros` leaves out what meets a zero behind ReLU^2 (skip.py), from a copy of the weights too, unless the native
    step of decoding takes the model, which is quicker still.
    `tool` answers what the model writes between `python_start` and `python_end`: the calculator, or `tools.PYTHON`.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        tool: Tool = CALCULATOR,
        skip_zeros: bool = False,
    ) -> None:
        weight = model.embedding.weight
        self.source = model
        self.tokenizer = tokenizer
        self.tool = tool
        self.device = torch.device(device) if device else weight.device
        self.dtype = dtype or model.compute_dtype
        self.context = model.config.context
        special = tokenizer.special_tokens
        ends = (special.get("<|assistant_end|>"), tokenizer.bos_or_none)
        self.stop_tokens = frozenset(token for token in ends if token is not None)
        self.has_tool_tokens = "<|python_start|>" in special
        self.backend = select_backend(model, self.device, self.dtype, skip_zeros)
        self.model = self.backend.model

    @property
    def weights_version(self) -> tuple[int, int]:
        """A value that changes when the weights may have changed; what was computed with another one is not reused."""
        return self.backend.weights_version

    def refresh_weights(self) -> None:
        """Copies the weights of the given model as they are now; live weights need no copy."""
        self.backend.refresh()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | None = None,
        max_batch_size: int = 256,
        use_tools: bool = True,
        progress: Callable[[int, int], None] | None = None,
        request_indices: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Answer every prompt, at most `rows` at a time; completions come in the order of the prompts.

        Answer i is drawn with the noise of request `numbers[i]` (else i) of `sampling.seed`: it depends on no other
        prompt (up to rounding: a matrix product may round differently in another batch). An answer ends at
        `assistant_end`, `bos` or one of `sampling.stop`; at `max_tokens`; or when the context is full. `tools` lets
        the model use the tool. `progress(done, total)` is called as answers finish.
        """
        self.refresh_weights()
        sampling = sampling or SamplingParams()
        decoder = Scheduler(self, max_batch_size)
        tickets: dict[int, Request] = {}
        for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):  # little padding
            number = request_indices[index] if request_indices is not None else index
            tickets[index] = decoder.add_request(prompts[index], sampling, number, use_tools)
        done = sum(1 for ticket in tickets.values() if ticket.finish_reason)
        while decoder.has_unfinished:
            finished = len(decoder.step())
            done += finished
            if progress and finished:
                progress(done, len(prompts))
        return [tickets[index].to_completion() for index in range(len(prompts))]

    def stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        use_tools: bool = True,
        scheduler: Scheduler | None = None,
        index: int = 0,
    ) -> Iterator[GeneratedToken | FinishEvent]:
        """Answer one prompt token by token, ending with a Finish.

        A `decoder` with `keep` remembers: only what the prompt does not share with earlier ones is read. The iterator
        may be abandoned at any point: what had been computed stays known.
        """
        scheduler = scheduler or Scheduler(self, 1, prefix_cache_tokens=None)
        ticket, told = scheduler.add_request(prompt, sampling or SamplingParams(), index, use_tools), 0
        try:
            while True:
                while told < len(ticket.tokens):
                    told += 1
                    yield GeneratedToken(ticket.tokens[told - 1], ticket.logprobs[told - 1], ticket.forced[told - 1])
                if ticket.finish_reason:
                    break
                scheduler.step()
        finally:
            scheduler.cancel(ticket)
        yield FinishEvent(ticket.finish_reason)

    def new_cache(self) -> KVCache:
        """An empty cache for this model."""
        with torch.inference_mode():
            return KVCache(self.model.config, self.dtype, self.device)

    def forward(self, tokens: Tensor, tree: TreeMask | None = None) -> Tensor:
        """Hidden states (B, T, C) of whole rows (B, T), each read from its beginning, with nothing kept of them.

        What is padded on the right is never looked at. `tree`: rows that fork (see `attention.Tree`), so that what
        several continuations share is computed once.
        """
        with torch.inference_mode():
            return self.model(tokens.to(self.device), tree=tree)

    def extend_cache(self, cache: KVCache, rows: Sequence[CacheRow], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read each row's next tokens, at most T, into the cache; hidden states (B, T, C) after each of them.

        Shorter ones are padded on the right; what stands there is nothing.
        """
        counts = [len(part) for part in tokens]
        longest = max(counts)
        padded = [[*part, *[0] * (longest - len(part))] for part in tokens]
        with torch.inference_mode():
            ids = torch.tensor(padded, device=self.device)
            hidden = self.backend.extend(cache, rows, ids, counts)
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., C) -> logits (..., V) in fp32."""
        return self.backend.compute_logits(hidden)
