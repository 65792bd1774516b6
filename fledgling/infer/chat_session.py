"""A conversation of several turns: what is cached of it, and which of its turns fit the model's context.

The conversation is kept as tokens, exactly as they were sampled, so each turn begins with everything that the cache
holds and only new tokens are computed. When the context overflows, the oldest turns are dropped and a notice says so.
An answer may be abandoned at any point; its tokens so far stay in the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fledgling.config import UserError
from fledgling.infer.detokenizer import AnswerDetokenizer, ContentPart, ThoughtSplitter, decode_parts
from fledgling.infer.engine import Engine, FinishEvent
from fledgling.infer.runner import load_model
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.step_graphs import print_notice
from fledgling.infer.tools import CALCULATOR, Tool
from fledgling.kernels.backend import MIN_SPEEDUP
from fledgling.runtime.core_monitor import CoreMonitor
from fledgling.runtime.device import choose_dtype
from fledgling.runtime.world import choose_device
from fledgling.text.conversation import begins_thought, render_prompt
from fledgling.text.truncation import max_prompt_tokens

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

CACHED_CONTEXTS = 2  # cache size in contexts: the conversation, and the one before it was cleared


@dataclass(frozen=True)
class SessionNotice:
    """A message to the user about the conversation itself."""

    text: str


@dataclass
class Turn:
    """The user's text, and the tokens of the answer so far."""

    user_text: str
    answer_tokens: list[int] = field(default_factory=list)


def load_chat_engine(
    checkpoint: Path, device: str = "auto", tool: Tool = CALCULATOR, notify: Callable[[str], None] | None = None
) -> tuple[Engine, dict[str, Any]]:
    """Loads a checkpoint for conversations, in the dtype that is fastest on the device.

    Zeros after ReLU^2 are skipped where that is measured to be faster; `notify` is then called with the result. On a
    CPU the number of threads follows the cores that other processes leave (runtime/core_monitor.py).

    Returns:
        The engine and the checkpoint's state.

    Raises:
        UserError: the checkpoint cannot be loaded, or its tokenizer has no tokens for conversations.
    """
    torch_device = torch.device(choose_device(device))
    model, tokenizer, state = load_model(checkpoint, torch_device)
    if not tokenizer.can_chat:
        raise UserError(
            f"the tokenizer of {checkpoint} has no <|user_start|> and <|assistant_end|>, and no chat template: "
            "it was not made for conversation"
        )
    engine = Engine(model, tokenizer, dtype=choose_dtype(torch_device), tool=tool, skip_zeros="auto")
    if torch_device.type == "cpu":
        engine.runner.core_monitor = CoreMonitor(torch.get_num_threads(), torch.set_num_threads, notify or print_notice)
    if notify and (speedup := engine.runner.backend.skipping_speedup) is not None:
        decision = "skipped" if speedup >= MIN_SPEEDUP else "not skipped"
        notify(f"zeros after ReLU^2 are {decision}: skipping is {speedup:.2f} times as fast for one request")
    return engine, state


class ChatSession:
    """A conversation: `reply` to each text in turn. The `system` prompt precedes the first turn that is kept.

    Args:
        engine: generates the answers.
        tokenizer: the engine's by default.
        system: the system prompt; "" for none.
        without_tools: the system prompt of an answer whose context `system`, which describes tools, does not fit into.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer | None = None, system: str = "", without_tools: str | None = None
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer or engine.tokenizer
        self.system, self.without_tools = system, without_tools
        self.turns: list[Turn] = []
        self.scheduler = engine.make_scheduler(1, prefix_cache_tokens=CACHED_CONTEXTS * engine.context)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far as messages; answers are lists of parts."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.user_text})
            messages.append({"role": "assistant", "content": decode_parts(self.tokenizer, turn.answer_tokens)})
        return messages

    def clear(self) -> None:
        """Drops all turns; the cache keeps their keys and values for a conversation that begins the same."""
        self.turns = []

    def pop_turn(self) -> str | None:
        """Drops the newest turn and returns its user text; None where there is no turn."""
        return self.turns.pop().user_text if self.turns else None

    def reply(
        self, text: str, sampling: SamplingParams | None = None
    ) -> Generator[ContentPart | SessionNotice | FinishEvent, None, None]:
        """Answers `text`: yields content parts as they are sampled, notices, and a FinishEvent at the end.

        Abandoning the iterator (close, Ctrl-C) ends the turn with the answer so far; a turn without an answer is
        dropped. A text that is too long for the context is rejected with a notice and the finish reason "context".
        """
        sampling = sampling or SamplingParams()
        if not text.strip():
            yield SessionNotice("the message is empty")
            yield FinishEvent("stop")
            return
        turn = Turn(text)
        self.turns.append(turn)
        try:
            prompt, dropped = self._fit_context(sampling, self.system)
            if not prompt and self.without_tools is not None:
                prompt, dropped = self._fit_context(sampling, self.without_tools)
                if prompt:
                    yield SessionNotice("the tools do not fit into the model's context: it answers without them")
            if not prompt:
                yield SessionNotice(self._describe_excess(turn))
                yield FinishEvent("context")
                return
            if dropped:
                turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
                yield SessionNotice(f"the conversation exceeds the model's context: {turns} dropped")
            yield from self._answer(turn, prompt, sampling)
        finally:
            if not turn.answer_tokens:
                self.turns = [other for other in self.turns if other is not turn]

    def _answer(self, turn: Turn, prompt: list[int], sampling: SamplingParams) -> Iterator[ContentPart | FinishEvent]:
        detokenizer = AnswerDetokenizer(self.tokenizer)
        thoughts = ThoughtSplitter(begins_thought(self.tokenizer, prompt))
        for event in self.engine.stream(prompt, sampling, scheduler=self.scheduler, index=len(self.turns) - 1):
            if isinstance(event, FinishEvent):
                yield from thoughts.split_parts(detokenizer.finish(), last=True)
                yield event
            else:
                turn.answer_tokens.append(event.id)
                yield from thoughts.split_parts(detokenizer.push(event.id), last=False)

    def _describe_excess(self, turn: Turn) -> str:
        """Returns why a turn does not fit even alone: the sizes of its message and of the system prompt."""
        system = self.system if self.without_tools is None else self.without_tools
        size, alone = (len(self._render_prompt([turn], text)) for text in (system, ""))
        before = f", the system prompt before it {size - alone}" if size > alone else ""
        return f"the message has {alone} tokens{before} and the model's context {self.engine.context}: shorten it"

    def _fit_context(self, sampling: SamplingParams, system: str) -> tuple[list[int], int]:
        """Drops the oldest turns until the prompt and an answer fit in the context.

        Returns:
            The prompt and the number of dropped turns; an empty prompt if the newest turn alone is too long.
        """
        limit = max_prompt_tokens(self.engine.context, sampling.max_new_tokens)
        for first in range(len(self.turns)):
            prompt = self._render_prompt(self.turns[first:], system)
            if len(prompt) <= limit:
                self.turns = self.turns[first:]
                return prompt, first
        return [], 0

    def _render_prompt(self, turns: list[Turn], system: str | None = None) -> list[int]:
        """Returns the tokens up to where the answer of the last turn begins, and that answer's tokens so far.

        system: the system prompt; None: that of the session.
        """
        tokens: list[int] = []
        system = self.system if system is None else system
        if self.tokenizer.chat_layout:  # whose template may write another text for each turn than for all of them
            messages = [{"role": "system", "content": system}] if system else []
            for turn in turns:
                messages.append({"role": "user", "content": turn.user_text})
                if turn is not turns[-1]:
                    text = self.tokenizer.decode(t for t in turn.answer_tokens if t not in self.tokenizer.end_tokens)
                    messages.append({"role": "assistant", "content": text})
            return render_prompt(self.tokenizer, {"messages": messages}) + turns[-1].answer_tokens
        for turn in turns:
            messages = [{"role": "user", "content": turn.user_text}]
            if not tokens and system:
                messages.insert(0, {"role": "system", "content": system})
            prompt = render_prompt(self.tokenizer, {"messages": messages})
            tokens += prompt[1:] if tokens else prompt  # bos only once
            tokens += turn.answer_tokens
            if turn is not turns[-1] and tokens[-1] != self.tokenizer.assistant_end:
                tokens.append(self.tokenizer.assistant_end)
        return tokens
