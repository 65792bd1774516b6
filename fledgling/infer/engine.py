"""Prompts in, answers out: the one way in which chat, evaluations and reinforcement learning run a model.

The one idea: there is one path. Whether one prompt or a thousand, rows of one cache are filled chunk by chunk and
then grow by a token a row and step (batch.py); tool output is forced through the same path as drawn tokens.
By default the engine reads the model's live weights: what training changed is what answers next.

It is not a trainer (no gradient is ever taken), and it knows no roles or messages: see session.py.

B rows, T time, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fledgling.infer.batch import Decoder
from fledgling.infer.pack import can_pack, pack
from fledgling.infer.sample import Sampling
from fledgling.infer.skip import skip
from fledgling.infer.ticket import Completion, Ticket
from fledgling.infer.tools import CALCULATOR, Tool
from fledgling.kernels.native import FEW
from fledgling.kernels.step import DecodingStep, can_step
from fledgling.model.attention import Tree
from fledgling.model.cache import KVCache, Row
from fledgling.model.transformer import Transformer

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer


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
        special = tokenizer.special
        ends = (special.get("<|assistant_end|>"), tokenizer.start)
        self.stops = frozenset(token for token in ends if token is not None)
        self.can_call = "<|python_start|>" in special
        live = self.device == weight.device and self.dtype == weight.dtype == model.compute_dtype and not skip_zeros
        self.model = model if live else _cast_copy(model, self.device, self.dtype)
        frozen = not live or not weight.requires_grad
        self.step = DecodingStep(self.model) if frozen and can_step(self.model) else None
        packs = not (live or self.step) and can_pack(self.device, self.dtype)
        self.packed = dict(skip(self.model, packs)) if skip_zeros and not self.step else {}
        self.packed |= pack(self.model) if packs else {}
        self.refreshed = 0

    @property
    def version(self) -> tuple[int, int]:
        """Changes when the weights may have changed: with every `refresh`, and where they are read live with each
        change that autograd sees. What was read with another version is not to be gone on from."""
        weights = self.source.parameters() if self.model is self.source else ()
        return self.refreshed, sum(weight._version for weight in weights if not weight.is_inference())

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the source model's weights as they are now; nothing to copy when they are read live."""
        self.refreshed += 1
        if self.model is not self.source:
            theirs = dict(self.source.named_parameters(remove_duplicate=False))
            for name, parameter in self.model.named_parameters():
                parameter.copy_(theirs[name])
            for name, weight in self.packed.items():
                weight.fill(theirs[name])
            if self.step:
                self.step.refresh()

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
        decoder: Decoder | None = None,
        index: int = 0,
    ) -> Iterator[Token | Finish]:
        """Answer one prompt token by token, ending with a Finish.

        A `decoder` with `keep` remembers: only what the prompt does not share with earlier ones is read. The iterator
        may be abandoned at any point: what had been computed stays known.
        """
        decoder = decoder or Decoder(self, 1, keep=None)
        ticket, told = decoder.add(prompt, sampling or Sampling(), index, tools), 0
        try:
            while True:
                while told < len(ticket.tokens):
                    told += 1
                    yield Token(ticket.tokens[told - 1], ticket.logprobs[told - 1], ticket.forced[told - 1])
                if ticket.finish:
                    break
                decoder.step()
        finally:
            decoder.cancel(ticket)
        yield Finish(ticket.finish)

    def new_cache(self) -> KVCache:
        """An empty cache for this model."""
        with torch.inference_mode():
            return KVCache(self.model.config, self.dtype, self.device)

    def read(self, tokens: Tensor, tree: Tree | None = None) -> Tensor:
        """Hidden states (B, T, C) of whole rows (B, T), each read from its beginning, with nothing kept of them.

        What is padded on the right is never looked at. `tree`: rows that fork (see `attention.Tree`), so that what
        several continuations share is computed once.
        """
        with torch.inference_mode():
            return self.model(tokens.to(self.device), tree=tree)

    def extend(self, cache: KVCache, rows: Sequence[Row], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read each row's next tokens, at most T, into the cache; hidden states (B, T, C) after each of them.

        Shorter ones are padded on the right; what stands there is nothing.
        """
        counts = [len(part) for part in tokens]
        longest = max(counts)
        padded = [[*part, *[0] * (longest - len(part))] for part in tokens]
        with torch.inference_mode():
            ids = torch.tensor(padded, device=self.device)
            if self.step and self.step.takes(counts, cache):
                hidden = self.step(ids, cache, rows, counts)
            else:
                hidden = self.model(ids, cache=cache.reading(rows, counts))
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., C) -> logits (..., V) in fp32."""
        few = hidden[..., 0].numel() <= FEW
        return self.step.logits(hidden) if self.step and few else self.model.logits(hidden)


def _cast_copy(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A copy of a model for inference: parameters cast, buffers (the rotary tables) as they are."""
    cast = {
        id(weight): torch.nn.Parameter(weight.detach().to(device, dtype, copy=True), requires_grad=False)
        for weight in model.parameters()
    }
    twin = copy.deepcopy(model, cast).to(device)
    twin.compute_dtype = dtype
    return twin
