"""Guessing what comes next from what has been said: a text that repeats itself is read several tokens a step.

The one idea: the last two or three tokens have often stood in the text before, and what followed them then is a free
guess. The model reads the guess in one forward and draws at each of its places as ever; the guess holds as far as the
draws agree with it. Draws are a function of (seed, request, place), so the answer is the same with guesses or without,
at any temperature (prompt lookup; Leviathan et al. 2023, arXiv 2211.17192, with a draft that is certain).

What it is not: a second model. Whether it pays depends on the text and on what a few tokens more cost the machine
(docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_NGRAM, MIN_NGRAM = 3, 2  # tokens that must have stood there before
PAUSE_TOKENS = 16  # tokens without a guess after one that failed at once


class PromptLookup:
    """Guesses of at most `most` tokens for one growing text."""

    def __init__(self, tokens: Iterable[int], max_draft_tokens: int) -> None:
        self.tokens: list[int] = []
        self.max_draft_tokens = self.draft_tokens = max_draft_tokens
        self.pause = 0
        self._places: dict[tuple[int, ...], int] = {}  # of the last tokens: where what followed them stands
        self._found = 0  # where the guess begins; 0: nowhere
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on."""
        for token in tokens:
            self.tokens.append(token)
            self._found = 0
            for length in range(MIN_NGRAM, MAX_NGRAM + 1):
                key = tuple(self.tokens[-length:])
                if len(key) == length:
                    self._found = self._places.get(key, self._found)
                    self._places[key] = len(self.tokens)

    def propose(self, max_tokens: int) -> list[int]:
        """What may come next, at most `room` tokens; a repetition that reaches the end is taken to go on."""
        if self.pause:
            self.pause -= 1
            return []
        if not self._found:
            return []
        period = len(self.tokens) - self._found
        return [self.tokens[self._found + i % period] for i in range(min(self.draft_tokens, max_tokens))]

    def update(self, drafted: int, accepted: int) -> None:
        """How much of a guess held: guess more when all of it did, less when not, and rest when none."""
        if drafted:
            self.draft_tokens = min(self.max_draft_tokens, max(1, 2 * accepted))
            self.pause = 0 if accepted else PAUSE_TOKENS
