"""Measures what draft tokens gain: the same greedy answers with and without prompt lookup.

How many drafts are accepted depends on the text, so each kind of text has a row: code and prose that continue, and
questions. All variants alternate in one process.
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


def make_prompts(tokenizer: Tokenizer, context: int, count: int) -> dict[str, list[list[int]]]:
    """Returns `count` prompts of each kind as token ids; texts to continue fill half the context."""
    texts = {
        "code to continue": [inspect.getsource(module) for module in CODE],
        "prose to continue": [pydoc_data.topics.topics[topic] for topic in TOPICS],
    }
    prompts_by_kind = {
        kind: [[tokenizer.bos, *tokenizer.encode(text)][: context // 2] for text in prompts_of_kind[:count]]
        for kind, prompts_of_kind in texts.items()
    }
    for skill in SKILLS:
        questions = [tasks.load_task(skill).get_practice_question(index, seed=1).prompt for index in range(count)]
        prompts_by_kind[skill] = [
            render_prompt(tokenizer, {"messages": [{"role": "user", "content": text}]}) for text in questions
        ]
    return prompts_by_kind


def measure_prompt_lookup(
    model: Transformer,
    tokenizer: Tokenizer,
    drafts: Sequence[int] = (3, 7),
    count: int = 4,
    tokens: int = 60,
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Returns tokens a second of one row for every dtype, kind of text and number of draft tokens.

    Args:
        drafts: numbers of draft tokens in a step; 0 is always measured too.
        count: prompts of each kind.
        tokens: generated for each prompt, at most.
        repeats: of each measurement; the shortest time counts.

    Returns:
        One row for each combination. "same": answers equal to those without drafts; a product of several tokens may
        round differently from that of one.

    Raises:
        UserError: a number is below 1, or tokens is 1.
    """
    for name, number, least in (
        *(("drafts", draft_tokens, 1) for draft_tokens in drafts),
        ("tokens", tokens, 2),
        ("repeats", repeats, 1),
    ):
        if number < least:
            raise UserError(f"--{name} {number}: expected at least {least}")
    device, rows = model.embedding.weight.device, []
    for dtype in dict.fromkeys((torch.float32, choose_dtype(device))):
        engine = Engine(model, tokenizer, dtype=dtype)
        for kind, prompts_of_kind in make_prompts(tokenizer, engine.context, count).items():
            best: dict[int, tuple] = {}
            for _ in range(repeats):
                for draft_tokens in (0, *drafts):
                    seconds, answers, drafted, accepted = _generate_answers(
                        engine, prompts_of_kind, draft_tokens, tokens
                    )
                    if draft_tokens not in best or seconds < best[draft_tokens][0]:
                        best[draft_tokens] = seconds, answers, drafted, accepted
            for draft_tokens, (seconds, answers, drafted, accepted) in best.items():
                rows.append(
                    {
                        "dtype": str(dtype).removeprefix("torch."),
                        "text": kind,
                        "draft_tokens": draft_tokens,
                        "tokens_per_second": sum(map(len, answers)) / seconds,
                        "faster": best[0][0] / seconds,
                        "drafted": drafted,
                        "accepted": accepted,
                        "same": sum(a == b for a, b in zip(answers, best[0][1], strict=True)),
                        "answers": len(answers),
                    }
                )
            print(f"{rows[-1]['dtype']}, {kind}", file=sys.stderr, flush=True)
    return rows


def _generate_answers(
    engine: Engine, prompts_of_kind: Sequence[Sequence[int]], draft_tokens: int, tokens: int
) -> tuple:
    """Generates an answer to each prompt separately.

    Returns:
        Seconds from the first token to the last, summed; the answers; the drafted and the accepted tokens.
    """
    seconds, answers, drafted, accepted = 0.0, [], 0, 0
    for prompt in prompts_of_kind:
        scheduler = engine.make_scheduler(1, prefix_cache_tokens=None, num_speculative_tokens=draft_tokens)
        request = scheduler.add_request(
            engine.make_request(prompt, SamplingParams(temperature=0, max_new_tokens=tokens), use_tools=False)
        )
        while not request.tokens:
            scheduler.step()
        start = time.perf_counter()
        while scheduler.has_unfinished:
            scheduler.step()
        seconds += time.perf_counter() - start
        answers.append(request.tokens)
        drafted += scheduler.stats.drafted
        accepted += scheduler.stats.accepted
    return seconds, answers, drafted, accepted


def format_prompt_lookup(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the result of `measure_prompt_lookup` as a table."""
    lines = [f"{'dtype':<10}{'text':<20}{'drafts':>7}{'tok/s':>9}{'faster':>8}{'accepted':>18}{'same answers':>14}"]
    for row in rows:
        accepted, same = f"{row['accepted']} of {row['drafted']}", f"{row['same']} of {row['answers']}"
        lines.append(
            f"{row['dtype']:<10}{row['text']:<20}{row['draft_tokens']:>7}{row['tokens_per_second']:>9,.0f}"
            f"{row['faster']:>7.2f}x{accepted:>18}{same:>14}"
        )
    return "\n".join(lines)
