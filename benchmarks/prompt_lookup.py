"""Measures what draft tokens gain: the same greedy answers with and without prompt lookup.

How many drafts are accepted depends on the text, so each kind of text has a row: code and prose that continue, and
questions. All ways generate in turn, in one process.
"""

from __future__ import annotations

import bisect
import heapq
import inspect
import pydoc_data.topics
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import torch

from fledgling import tasks
from fledgling.config import UserError
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.model.transformer import Transformer
from fledgling.runtime.device import choose_dtype
from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer

CODE = (textwrap, heapq, bisect, inspect)
TOPICS = ("assignment", "exceptions", "typesseq", "function")  # of Python's reference
SKILLS = ("stdlib", "spelling", "counting", "arithmetic")


def prompts(tokenizer: Tokenizer, context: int, count: int) -> dict[str, list[list[int]]]:
    """`count` prompts of each kind, as token ids; texts that go on fill half the context."""
    begun = {
        "code that goes on": [inspect.getsource(module) for module in CODE],
        "prose that goes on": [pydoc_data.topics.topics[topic] for topic in TOPICS],
    }
    found = {
        kind: [[tokenizer.bos, *tokenizer.encode(text)][: context // 2] for text in many[:count]]
        for kind, many in begun.items()
    }
    for skill in SKILLS:
        requested = [tasks.load_task(skill).get_practice_question(index, seed=1).prompt for index in range(count)]
        found[skill] = [
            render_prompt(tokenizer, {"messages": [{"role": "user", "content": text}]}) for text in requested
        ]
    return found


def measure_prompt_lookup(
    model: Transformer,
    tokenizer: Tokenizer,
    ahead: Sequence[int] = (3, 7),
    count: int = 4,
    tokens: int = 60,
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Tokens a second of one row, least time of `repeats`, for every dtype, kind of text and number of tokens guessed.

    `same`: answers that are those without guesses; products of several tokens may round otherwise than those of one.
    Raises UserError for numbers below 1, and for answers of one token.
    """
    for name, number, least in (
        *(("ahead", most, 1) for most in ahead),
        ("tokens", tokens, 2),
        ("repeats", repeats, 1),
    ):
        if number < least:
            raise UserError(f"--{name} {number}: expected at least {least}")
    device, rows = model.embedding.weight.device, []
    for dtype in dict.fromkeys((torch.float32, choose_dtype(device))):
        engine = Engine(model, tokenizer, dtype=dtype)
        for kind, many in prompts(tokenizer, engine.context, count).items():
            best: dict[int, tuple] = {}
            for _ in range(repeats):
                for most in (0, *ahead):
                    seconds, printed_value, drafted, accepted = _answer(engine, many, most, tokens)
                    if most not in best or seconds < best[most][0]:
                        best[most] = seconds, printed_value, drafted, accepted
            for most, (seconds, printed_value, drafted, accepted) in best.items():
                rows.append(
                    {
                        "dtype": str(dtype).removeprefix("torch."),
                        "text": kind,
                        "ahead": most,
                        "tokens_per_second": sum(map(len, printed_value)) / seconds,
                        "faster": best[0][0] / seconds,
                        "drafted": drafted,
                        "accepted": accepted,
                        "same": sum(a == b for a, b in zip(printed_value, best[0][1], strict=True)),
                        "answers": len(printed_value),
                    }
                )
            print(f"{rows[-1]['dtype']}, {kind}", file=sys.stderr, flush=True)
    return rows


def _answer(engine: Engine, many: Sequence[Sequence[int]], most: int, tokens: int) -> tuple:
    """Answer each prompt alone: seconds from the first token to the last, the answers, tokens guessed and held."""
    seconds, printed, drafted, accepted = 0.0, [], 0, 0
    for prompt in many:
        decoder = engine.make_scheduler(1, prefix_cache_tokens=None, lookahead_tokens=most)
        request = decoder.add_request(
            engine.make_request(prompt, SamplingParams(temperature=0, max_new_tokens=tokens), use_tools=False)
        )
        while not request.tokens:
            decoder.step()
        began = time.perf_counter()
        while decoder.has_unfinished:
            decoder.step()
        seconds += time.perf_counter() - began
        printed.append(request.tokens)
        drafted += decoder.stats.drafted
        accepted += decoder.stats.accepted
    return seconds, printed, drafted, accepted


def format_prompt_lookup(rows: Sequence[dict[str, Any]]) -> str:
    """The result of `measure` as lines for people."""
    lines = [
        f"{'dtype':<10}{'text':<20}{'ahead':>6}{'tok/s':>9}{'faster':>8}{'held, of guessed':>18}{'same answers':>14}"
    ]
    for row in rows:
        held, same = f"{row['accepted']} of {row['drafted']}", f"{row['same']} of {row['answers']}"
        lines.append(
            f"{row['dtype']:<10}{row['text']:<20}{row['ahead']:>6}{row['tokens_per_second']:>9,.0f}"
            f"{row['faster']:>7.2f}x{held:>18}{same:>14}"
        )
    return "\n".join(lines)
