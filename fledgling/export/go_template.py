"""Derives the template of a Modelfile, Go's text/template, from a chat template in Jinja that a model brought.

It can be derived where every turn is a fixed text around its content, as in ChatML and Llama 3: conversations of
marked contents are rendered, and what is between the contents is taken for these texts. A longer conversation is
then rendered both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fledgling.config import UserError
from fledgling.text.template_layout import join_pieces, render_pieces
from fledgling.text.tokenizer import Tokenizer

HOSTILE = ("{{", "}}", '"""')  # what a Modelfile cannot have as text
MARKS = ("system zq0", "question zq1", "answer zq2", "question zq3", "answer zq4", "question zq5")


@dataclass(frozen=True)
class FixedTexts:
    """What is around the contents: before the first question, around answers, and after the last question."""

    start: str
    start_of_system: str
    end_of_system: str
    before_answer: str
    after_answer: str
    ask: str

    def render(self, contents: Sequence[str], system: str = "") -> str:
        """Returns the text of questions and answers in turn, the last of them a question."""
        text = f"{self.start_of_system}{system}{self.end_of_system}" if system else self.start
        for number, content in enumerate(contents):
            text += f"{self.before_answer}{content}{self.after_answer}" if number % 2 else content
        return text + self.ask

    def to_go(self) -> str:
        """Returns the template. Ollama joins messages of one role in a row, and all system messages are .System."""
        system = f"{{{{ if .System }}}}{self.start_of_system}{{{{ .System }}}}{self.end_of_system}"
        answer = f"{self.before_answer}{{{{ .Content }}}}{self.after_answer}"
        return (
            f"{system}{{{{ else }}}}{self.start}{{{{ end }}}}"
            '{{ range .Messages }}{{ if eq .Role "user" }}{{ .Content }}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{ end }}}}{self.ask}'
        )


def derive_go_template(tokenizer: Tokenizer) -> str | None:
    """Returns the template of a tokenizer with a chat layout; None where its turns are no fixed texts."""
    system, *contents = MARKS
    try:
        plain, with_system = (_render(tokenizer, contents[:3], text) for text in ("", system))
        start, before, after, ask = _split(plain, contents[:3])
        start_of_system, end_of_system, *same = _split(with_system, [system, *contents[:3]])
        texts = FixedTexts(start, start_of_system, end_of_system, before, after, ask)
        holds = all(texts.render(contents, text) == _render(tokenizer, contents, text) for text in ("", system))
    except (UserError, ValueError):
        return None
    is_safe = not any(mark in text for mark in HOSTILE for text in vars(texts).values())
    return texts.to_go() if holds and same == [before, after, ask] and is_safe else None


def _render(tokenizer: Tokenizer, contents: Sequence[str], system: str) -> str:
    messages = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(contents)]
    head = [{"role": "system", "content": system}] if system else []
    return join_pieces(render_pieces(tokenizer, [*head, *messages], asks=True))


def _split(text: str, contents: Sequence[str]) -> list[str]:
    """Returns what is before, between and after the contents. Raises ValueError unless each is there once."""
    parts = []
    for content in contents:
        if text.count(content) != 1:
            raise ValueError(content)
        before, _, text = text.partition(content)
        parts.append(before)
    return [*parts, text]
