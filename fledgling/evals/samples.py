"""Samples: the model's greedy replies to a few fixed prompts; for reading, not for a score."""

from __future__ import annotations

from fledgling.infer.detokenizer import decode_parts
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.text.conversation import render_prompt

TEXT_PROMPTS = ("Return the", "The list of", "If the argument is", "class Error")
SAMPLE_QUESTIONS = ("Who are you?", "What is 47 + 38?", "Spell the word planet.", "How many e are in between?")


def sample_continuations(engine: Engine, max_new_tokens: int = 48) -> list[tuple[str, str]]:
    """Returns (prompt, continuation) for each of TEXT_PROMPTS."""
    tokenizer = engine.tokenizer
    prompts = [[tokenizer.bos, *tokenizer.encode(text)] for text in TEXT_PROMPTS]
    sampling = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
    completions = engine.generate(prompts, sampling, use_tools=False)
    return [(text, tokenizer.decode(c.tokens)) for text, c in zip(TEXT_PROMPTS, completions, strict=True)]


def sample_chat_replies(engine: Engine, max_new_tokens: int = 64) -> list[tuple[str, str]]:
    """Returns (question, reply with its tool calls) for each of SAMPLE_QUESTIONS."""
    tokenizer = engine.tokenizer
    conversations = [{"messages": [{"role": "user", "content": question}]} for question in SAMPLE_QUESTIONS]
    prompts = [render_prompt(tokenizer, conversation) for conversation in conversations]
    completions = engine.generate(prompts, SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens))
    return [
        (question, _format_parts(decode_parts(tokenizer, completion.tokens)))
        for question, completion in zip(SAMPLE_QUESTIONS, completions, strict=True)
    ]


def _format_parts(parts: list[dict[str, str]]) -> str:
    formats = {"text": "{}", "python": "[{}]", "output": "={} "}
    return "".join(formats[part["type"]].format(part["text"]) for part in parts)
