"""Samples: what the model says, greedily, to a few fixed prompts; for the eye, not for a score."""

from __future__ import annotations

from fledgling.infer.detokenizer import decode_parts
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.text.conversation import render_prompt

TEXT_PROMPTS = ("Return the", "The list of", "If the argument is", "class Error")
SAMPLE_QUESTIONS = ("Who are you?", "What is 47 + 38?", "Spell the word planet.", "How many e are in between?")


def sample_continuations(engine: Engine, max_new_tokens: int = 48) -> list[tuple[str, str]]:
    """(beginning of a text, how the model goes on) for every one of TEXTS."""
    tokenizer = engine.tokenizer
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in TEXT_PROMPTS]
    done = engine.generate(prompts, SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens), use_tools=False)
    return [(text, tokenizer.decode(c.tokens)) for text, c in zip(TEXT_PROMPTS, done, strict=True)]


def sample_chat_replies(engine: Engine, max_new_tokens: int = 64) -> list[tuple[str, str]]:
    """(question, answer with its tool calls) for every one of QUESTIONS."""
    tokenizer = engine.tokenizer
    asked = [render_prompt(tokenizer, {"messages": [{"role": "user", "content": q}]}) for q in SAMPLE_QUESTIONS]
    done = engine.generate(asked, SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens))
    return [(q, _format_parts(decode_parts(tokenizer, c.tokens))) for q, c in zip(SAMPLE_QUESTIONS, done, strict=True)]


def _format_parts(parts: list[dict[str, str]]) -> str:
    marks = {"text": "{}", "python": "[{}]", "output": "={} "}
    return "".join(marks[part["type"]].format(part["text"]) for part in parts)
