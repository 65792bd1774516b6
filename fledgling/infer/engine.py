"""Prompts in, answers out: the one way in which chat, evaluations and reinforcement learning run a model.

The one idea: there is one path. Whether one prompt or a thousand, a cache with a length per row is prefilled
and then grows by one token a row and step; tool output is forced through the same path as drawn tokens.
By default the engine reads the model's live weights: what training changed is what answers next.

It is not a trainer (no gradient is ever taken), and it knows no roles or messages: see session.py.

B rows, T time, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fledgling.infer.batch import Completion, Decoder, Ticket, draw
from fledgling.infer.pack import can_pack, pack
from fledgling.infer.sample import Sampling
from fledgling.infer.skip import skip
from fledgling.infer.tools import CALCULATOR, Tool
from fledgling.model.attention import Tree
from fledgling.model.cache import KVCache
from fledgling.model.transformer import Transformer

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

PREFILL_TOKENS = 1 << 14  # of one forward: bounds the memory that activations take


@dataclass(frozen=True)
class Token:
    """One more token of a streamed answer."""

    id: int
    logprob: float
    forced: bool


@dataclass(frozen=True)
class Finish:
    """The end of a streamed answer: "stop", "length" or "context"."""

    reason: str


@dataclass
class Prefix:
    """What a conversation has been through: tokens, and a cache of one row that holds at least these."""

    tokens: list[int] = field(default_factory=list)
    cache: KVCache | None = None


class Engine:
    """Runs a model on prompts of token ids.

    Products run in `dtype`, by default the model's own compute dtype. Where the weights are of another dtype
    or on another device, the engine keeps a cast copy of them, on CPU in bf16 packed (pack.py), which answers
    as the model does and spares a cast at every step. `generate` brings the copy up to date by itself; whoever
    trains in between and streams calls `refresh`. Otherwise it reads the model's live weights.

    `skip_zeros` leaves out what meets a zero behind ReLU^2 (skip.py), from a copy of the weights too.
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
        special = tokenizer.special
        ends = (special.get("<|assistant_end|>"), tokenizer.start)
        self.stops = frozenset(token for token in ends if token is not None)
        self.can_call = "<|python_start|>" in special
        live = self.device == weight.device and self.dtype == weight.dtype == model.compute_dtype and not skip_zeros
        self.model = model if live else _cast_copy(model, self.device, self.dtype)
        packs = not live and can_pack(self.device, self.dtype)
        self.packed = dict(skip(self.model, packs)) if skip_zeros else {}
        self.packed |= pack(self.model) if packs else {}

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the source model's weights as they are now; nothing to do when they are read live."""
        if self.model is not self.source:
            theirs = dict(self.source.named_parameters(remove_duplicate=False))
            for name, parameter in self.model.named_parameters():
                parameter.copy_(theirs[name])
            for name, weight in self.packed.items():
                weight.fill(theirs[name])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        rows: int = 256,
        tools: bool = True,
        progress: Callable[[int, int], None] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Answer every prompt, at most `rows` at a time; completions come in the order of the prompts.

        Answer i is drawn with the noise of request `numbers[i]` (else i) of `sampling.seed`: it depends on no other
        prompt (up to rounding: a matrix product may round differently in another batch). An answer ends at
        `assistant_end`, `bos` or one of `sampling.stop`; at `max_tokens`; or when the context is full. `tools` lets
        the model use the tool. `progress(done, total)` is called as answers finish.
        """
        self.refresh()
        sampling = sampling or Sampling()
        decoder = Decoder(self, rows)
        tickets: dict[int, Ticket] = {}
        for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):  # little padding
            number = numbers[index] if numbers is not None else index
            tickets[index] = decoder.add(prompts[index], sampling, number, tools)
        done = sum(1 for ticket in tickets.values() if ticket.finish)
        while decoder.busy:
            finished = len(decoder.step())
            done += finished
            if progress and finished:
                progress(done, len(prompts))
        return [tickets[index].completion() for index in range(len(prompts))]

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling | None = None,
        tools: bool = True,
        prefix: Prefix | None = None,
        index: int = 0,
    ) -> Iterator[Token | Finish]:
        """Answer one prompt token by token, ending with a Finish.

        A `prefix` is read and kept up to date: only what the prompt does not share with it is prefilled. The
        iterator may be abandoned at any point: the prefix then holds what had been computed.
        """
        prefix = Prefix() if prefix is None else prefix
        ticket = Ticket(self, prompt, sampling or Sampling(), index, tools)
        if not ticket.finish:
            unread = self._rewind(prefix, ticket.prompt)
            while not ticket.finish:
                with torch.inference_mode():
                    draw(self.logits(prefix.cache, [unread], [len(unread)]), [ticket])
                prefix.tokens += unread
                unread = [ticket.tokens[-1]]
                yield Token(ticket.tokens[-1], ticket.logprobs[-1], ticket.forced[-1])
        yield Finish(ticket.finish)

    def _rewind(self, prefix: Prefix, prompt: list[int]) -> list[int]:
        """Cut the prefix to what it shares with the prompt; return the rest of the prompt, never empty."""
        shared = 0
        for ours, theirs in zip(prefix.tokens, prompt[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        if prefix.cache is None:
            prefix.cache = self.new_cache(1, self.context)
        prefix.tokens = prompt[:shared]
        with torch.inference_mode():
            prefix.cache.lengths.fill_(shared)  # what lies beyond is overwritten, whatever it was
        return prompt[shared:]

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for this model."""
        with torch.inference_mode():
            return KVCache(self.model.config, rows, capacity, self.dtype, self.device)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[KVCache, Tensor]:
        """Read N prompts into a new cache of N rows; return it and the logits (N, V) after each one."""
        longest = max(map(len, prompts))
        cache = self.new_cache(len(prompts), longest)
        together = max(1, PREFILL_TOKENS // longest)
        if len(prompts) <= together:
            return cache, self.logits(cache, prompts, list(map(len, prompts)))
        logits = []
        for start in range(0, len(prompts), together):
            part, here = self.prefill(prompts[start : start + together])
            span = slice(start, start + part.rows)
            cache.keys[:, span, :, : part.capacity] = part.keys
            cache.values[:, span, :, : part.capacity] = part.values
            cache.lengths[span] = part.lengths
            logits.append(here)
        cache.live = longest
        return cache, torch.cat(logits)

    def read(self, tokens: Tensor, tree: Tree | None = None) -> Tensor:
        """Hidden states (B, T, C) of whole rows (B, T), each read from its beginning, with nothing kept of them.

        What is padded on the right is never looked at. `tree`: rows that fork (see `attention.Tree`), so that what
        several continuations share is computed once.
        """
        with torch.inference_mode():
            return self.model(tokens.to(self.device), tree=tree)

    def logits(
        self,
        cache: KVCache,
        tokens: Sequence[Sequence[int]],
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Read each row's next tokens (at most T) into the cache; logits after the last of them.

        `counts` (B,) are the tokens to keep; a row of none is computed with and changes nothing. The result
        is (B, V), or (len(rows), V) for the rows asked for. Shorter rows are padded on the right: causal
        attention never looks there, and the next tokens overwrite it.
        """
        longest = max(map(len, tokens))
        padded = [[*row, *[0] * (longest - len(row))] for row in tokens]
        kept = torch.tensor(counts, device=self.device)
        hidden = self.model(torch.tensor(padded, device=self.device), cache=cache)  # (B, T, C)
        cache.advance(kept)
        which = torch.tensor(rows if rows is not None else range(len(tokens)), device=self.device)
        return self.model.logits(hidden[which, kept[which] - 1])


def _cast_copy(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A copy of a model for inference: parameters cast, buffers (the rotary tables) as they are."""
    cast = {
        id(weight): torch.nn.Parameter(weight.detach().to(device, dtype, copy=True), requires_grad=False)
        for weight in model.parameters()
    }
    twin = copy.deepcopy(model, cast).to(device)
    twin.compute_dtype = dtype
    return twin
