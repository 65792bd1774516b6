"""A conversation that remembers: turns, what the model has already read of them, and what fits its context.

The one idea: the conversation is kept in tokens, as they were drawn, so that each turn begins with all that
the cache holds and only what is new is read. When the context overflows the oldest turns are forgotten, and
it is said. An answer may be abandoned at any point: what was said of it stays said.

It prints nothing: cli/chat.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fledgling.infer.detokenizer import AnswerDetokenizer, ContentPart, decode_parts
from fledgling.infer.engine import Engine, FinishEvent
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.text.conversation import render_prompt

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

CACHED_CONTEXTS = 2  # contexts' worth of tokens: the conversation, and what was said before it was cleared
ANSWER_DIVISOR = 4  # a quarter of the context is kept free for the answer, or max_tokens where that is less


@dataclass(frozen=True)
class SessionNotice:
    """Something the person should know about the conversation itself."""

    text: str


@dataclass
class Turn:
    """What the user said, and the tokens of the answer so far."""

    user_text: str
    answer_tokens: list[int] = field(default_factory=list)


class ChatSession:
    """Talks with a model: `reply` to each text in turn. `system` goes before the first turn that is kept."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None = None, system: str = "") -> None:
        self.engine = engine
        self.tokenizer = tokenizer or engine.tokenizer
        self.system = system
        self.turns: list[Turn] = []
        self.scheduler = Scheduler(engine, 1, prefix_cache_tokens=CACHED_CONTEXTS * engine.context)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far as messages, the answers in parts."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.user_text})
            messages.append({"role": "assistant", "content": decode_parts(self.tokenizer, turn.answer_tokens)})
        return messages

    def clear(self) -> None:
        """Forget the conversation; what was read of its beginning is still good when it is said again."""
        self.turns = []

    def pop_turn(self) -> str | None:
        """Forget the newest turn; returns what the user said in it, None where nothing was said yet."""
        return self.turns.pop().user_text if self.turns else None

    def reply(
        self, text: str, sampling: SamplingParams | None = None
    ) -> Iterator[ContentPart | SessionNotice | FinishEvent]:
        """Answer `text`: pieces as they are drawn, notices, and a Finish at the end.

        Abandoning the iterator (close, Ctrl-C) ends the turn with what was said by then; a turn without an
        answer is taken back. A text too long for the context is refused with a notice, and "context".
        """
        sampling = sampling or SamplingParams()
        if not text.strip():
            yield SessionNotice("nothing was said")
            yield FinishEvent("stop")
            return
        turn = Turn(text)
        self.turns.append(turn)
        try:
            prompt, forgotten = self._fit_context(sampling)
            if not prompt:
                size, context = len(self._prompt([turn])), self.engine.context
                yield SessionNotice(f"that is {size} tokens, and the model's whole context is {context}: say less")
                yield FinishEvent("context")
                return
            if forgotten:
                turns = "the oldest turn" if forgotten == 1 else f"the {forgotten} oldest turns"
                yield SessionNotice(f"the conversation no longer fits the model's context: {turns} forgotten")
            yield from self._answer(turn, prompt, sampling)
        finally:
            if not turn.answer_tokens:
                self.turns = [kept for kept in self.turns if kept is not turn]

    def _answer(self, turn: Turn, prompt: list[int], sampling: SamplingParams) -> Iterator[ContentPart | FinishEvent]:
        stream = AnswerDetokenizer(self.tokenizer)
        for event in self.engine.stream(prompt, sampling, scheduler=self.scheduler, index=len(self.turns) - 1):
            if isinstance(event, FinishEvent):
                yield from stream.finish()
                yield event
            else:
                turn.answer_tokens.append(event.id)
                yield from stream.push(event.id)

    def _fit_context(self, sampling: SamplingParams) -> tuple[list[int], int]:
        """Drop the oldest turns until the prompt leaves room for an answer.

        Returns the prompt, and how many turns were dropped; no prompt if the newest turn alone leaves none.
        """
        room = self.engine.context - min(sampling.max_new_tokens, self.engine.context // ANSWER_DIVISOR)
        for first in range(len(self.turns)):
            prompt = self._prompt(self.turns[first:])
            if len(prompt) <= room:
                self.turns = self.turns[first:]
                return prompt, first
        return [], 0

    def _prompt(self, turns: list[Turn]) -> list[int]:
        """The tokens up to where the newest answer begins."""
        tokens: list[int] = []
        for turn in turns:
            messages = [{"role": "user", "content": turn.user_text}]
            if not tokens and self.system:
                messages.insert(0, {"role": "system", "content": self.system})
            asked = render_prompt(self.tokenizer, {"messages": messages})
            tokens += asked[1:] if tokens else asked  # bos only once
            tokens += turn.answer_tokens
            if turn is not turns[-1] and tokens[-1] != self.tokenizer.assistant_end:
                tokens.append(self.tokenizer.assistant_end)
        return tokens
