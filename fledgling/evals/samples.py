"""Samples: what the model says, greedily, to a few fixed prompts; for the eye, not for a score."""

from __future__ import annotations

from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.infer.stream import answer_parts
from fledgling.text.conversation import render_prompt

TEXTS = ("Return the", "The list of", "If the argument is", "class Error")
QUESTIONS = ("Who are you?", "What is 47 + 38?", "Spell the word planet.", "How many e are in between?")


def continuations(engine: Engine, max_tokens: int = 48) -> list[tuple[str, str]]:
    """(beginning of a text, how the model goes on) for every one of TEXTS."""
    tokenizer = engine.tokenizer
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in TEXTS]
    done = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=max_tokens), tools=False)
    return [(text, tokenizer.decode(c.tokens)) for text, c in zip(TEXTS, done, strict=True)]


def answers(engine: Engine, max_tokens: int = 64) -> list[tuple[str, str]]:
    """(question, answer with its tool calls) for every one of QUESTIONS."""
    tokenizer = engine.tokenizer
    asked = [render_prompt(tokenizer, {"messages": [{"role": "user", "content": q}]}) for q in QUESTIONS]
    done = engine.generate(asked, Sampling(temperature=0.0, max_tokens=max_tokens))
    return [(q, _shown(answer_parts(tokenizer, c.tokens))) for q, c in zip(QUESTIONS, done, strict=True)]


def _shown(parts: list[dict[str, str]]) -> str:
    marks = {"text": "{}", "python": "[{}]", "output": "={} "}
    return "".join(marks[part["type"]].format(part["text"]) for part in parts)
