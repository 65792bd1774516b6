"""The engine: prompts in, answers out. Chat, the server, evaluations and RL rollouts all generate through it.

`Engine.generate` answers a list of prompts, `Engine.stream` one prompt token by token. Both make requests
(request.py), which a scheduler (scheduler.py) decodes in one batch with a model runner (runner.py). The engine adds
what a tokenizer knows: stop tokens and tools. By default it reads the model's live weights, so training's current
weights answer. Roles and messages are chat_session.py's and the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fledgling.infer.grammar import Grammar, GrammarCompiler
from fledgling.infer.request import Completion, Request
from fledgling.infer.runner import DeviceDecode, ModelRunner
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import PREFILL_TOKENS, Scheduler
from fledgling.infer.tools import CALCULATOR, Tool, ToolState
from fledgling.model.attention import TreeMask
from fledgling.model.transformer import Transformer

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

MEASURED_TEXT = "Water boils at a lower temperature on a mountain, because the air there presses less on its surface."


@dataclass(frozen=True)
class GeneratedToken:
    """One token of an answer."""

    id: int
    logprob: float
    forced: bool  # inserted by a tool
    top_logprobs: tuple[tuple[int, float], ...] = ()  # (token, log-probability), where requested


@dataclass(frozen=True)
class FinishEvent:
    """The end of a streamed answer: "stop", "length" or "context"."""

    finish_reason: str


class Engine:
    """Generates answers to prompts of token ids.

    Args:
        model: the model whose weights are used; see `ModelRunner` for `device` and `dtype`.
        tokenizer: gives the stop tokens, and encodes tool results.
        tool: answers what the model writes between `python_start` and `python_end`: CALCULATOR or PYTHON (tools.py).
        skip_zeros: skip the weights that meet a zero after ReLU^2, in single rows on a CPU: True, False, or "auto" to
            measure once whether that is faster for this model on this machine. Skipping changes results by rounding, so
            training and evaluations leave it off.
        device_decode: see `ModelRunner`.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        tool: Tool = CALCULATOR,
        skip_zeros: bool | Literal["auto"] = False,
        device_decode: DeviceDecode = "auto",
    ) -> None:
        tokens: list[int] = []
        if skip_zeros == "auto":
            tokens = [tokenizer.bos, *tokenizer.encode(MEASURED_TEXT)][: model.config.context]
        self.runner = ModelRunner(model, device, dtype, bool(skip_zeros), tokens, device_decode)
        self.tokenizer = tokenizer
        self.tool = tool
        special = tokenizer.special_tokens
        self.stop_tokens = tokenizer.end_tokens
        self.has_tool_tokens = "<|python_start|>" in special

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles constraints of answers for this vocabulary."""
        special = self.tokenizer.special_tokens
        end = special.get("<|assistant_end|>")
        return GrammarCompiler(self.tokenizer, self.tokenizer.bos if end is None else end)

    @property
    def source(self) -> Transformer:
        """The model that was given, with its live weights."""
        return self.runner.source

    @property
    def model(self) -> Transformer:
        """The model that computes: `source` itself, or a cast copy of it."""
        return self.runner.model

    @property
    def tool_name(self) -> str:
        """The tool that answers can call, "none" where the vocabulary has no tokens for a call."""
        return self.tool.name if self.has_tool_tokens else "none"

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's matrix products."""
        return self.runner.dtype

    @property
    def context(self) -> int:
        """The model's context in tokens."""
        return self.runner.model.config.context

    def refresh_weights(self) -> None:
        """Takes over the source model's current weights; `generate` does so by itself, `stream` does not."""
        self.runner.refresh_weights()

    def forward(self, tokens: Tensor, tree: TreeMask | None = None) -> Tensor:
        """Returns hidden states (B, T, C) of whole rows of tokens (B, T); see `ModelRunner.forward`."""
        return self.runner.forward(tokens, tree)

    def make_scheduler(
        self,
        max_batch_size: int,
        prefill_chunk: int = PREFILL_TOKENS,
        prefix_cache_tokens: int | None = 0,
        num_speculative_tokens: int = 0,
    ) -> Scheduler:
        """Returns a scheduler with a cache of its own; see `Scheduler` for the arguments."""
        return Scheduler(self.runner, max_batch_size, prefill_chunk, prefix_cache_tokens, num_speculative_tokens)

    def make_request(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        index: int = 0,
        use_tools: bool = True,
        score_prompt: bool = False,
        generate: bool = True,
        grammar: Grammar | None = None,
        client_calls: bool = False,
        tool: Tool | None = None,
    ) -> Request:
        """Returns a request for a scheduler of this engine.

        See `Request` and `ToolState` for the arguments; `grammar` constrains the answer; `tool` answers this request's
        calls, None: the engine's.
        """
        calls_tool = use_tools and self.has_tool_tokens
        tool_state = ToolState(self.tokenizer, tool or self.tool, client_calls) if calls_tool else None
        constraint = grammar.start() if grammar else None
        return Request(
            prompt, sampling, self.context, self.stop_tokens, index, tool_state, score_prompt, generate, constraint
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | None = None,
        max_batch_size: int = 256,
        use_tools: bool = True,
        progress: Callable[[int, int], None] | None = None,
        request_indices: Sequence[int] | None = None,
        tools: Sequence[Tool | None] | None = None,
    ) -> list[Completion]:
        """Answers every prompt.

        The answer to prompt i is sampled with the noise of request `request_indices[i]` (default i) of
        `sampling.seed`: it depends on no other prompt, up to rounding (a matrix product may round differently in
        another batch). An answer ends at `assistant_end`, `bos` or one of `sampling.stop_token_ids`, at
        `sampling.max_new_tokens`, or when the context is full.

        Args:
            prompts: token ids of each prompt.
            sampling: default SamplingParams().
            max_batch_size: prompts that are answered at once.
            use_tools: let the model call the tool.
            progress: called with (finished, total) as answers finish.
            request_indices: numbers of the requests.
            tools: for each prompt the tool that answers its calls; None: the engine's.

        Returns:
            Completions in the order of the prompts.
        """
        self.refresh_weights()
        sampling = sampling or SamplingParams()
        scheduler = self.make_scheduler(max_batch_size)
        requests: dict[int, Request] = {}
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):  # similar lengths need little padding
            index = request_indices[i] if request_indices is not None else i
            tool = tools[i] if tools is not None else None
            requests[i] = scheduler.add_request(self.make_request(prompts[i], sampling, index, use_tools, tool=tool))
        done = sum(1 for request in requests.values() if request.finish_reason)
        while scheduler.has_unfinished:
            finished = len(scheduler.step())
            done += finished
            if progress and finished:
                progress(done, len(prompts))
        return [requests[i].to_completion() for i in range(len(prompts))]

    def stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        use_tools: bool = True,
        scheduler: Scheduler | None = None,
        index: int = 0,
    ) -> Iterator[GeneratedToken | FinishEvent]:
        """Yields the tokens of one answer, then a FinishEvent.

        A `scheduler` with `prefix_cache_tokens` computes only what the prompt does not share with earlier ones. The
        iterator may be abandoned at any point; what has been computed stays in the cache.
        """
        scheduler = scheduler or self.make_scheduler(1, prefix_cache_tokens=None)
        request = scheduler.add_request(self.make_request(prompt, sampling or SamplingParams(), index, use_tools))
        yielded = 0
        try:
            while True:
                while yielded < len(request.tokens):
                    i, yielded = yielded, yielded + 1
                    yield GeneratedToken(request.tokens[i], request.logprobs[i], request.forced[i])
                if request.finish_reason:
                    break
                scheduler.step()
        finally:
            scheduler.cancel(request)
        yield FinishEvent(request.finish_reason)
