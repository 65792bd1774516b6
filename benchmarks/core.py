"""Measures the speed of CORE's scoring: with shared prefixes, without, as the published evaluator, and a plain forward.

The four ways run the same items with the same weights in turn, in one process, and are measured in processor time, so
that the ratios are valid on a busy machine where wall-clock times are not:

    fledgling  as `eval core` does it, with text, tokens and scores
    unshared   the same without sharing the prefix of an item's choices
    published  an item at a time, with the logits of every token, as the published evaluator does it
    forward    full rows through the model without any score, the upper limit
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from fledgling.evals.core import tokenize_prompts, zip_prompts
from fledgling.evals.likelihood import ContinuationRow, ContinuationScore, Scorer, stack_padded
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.tasks.core import CoreItem, CoreTask, read_core_items, select_items

ROUNDS = 3  # the best one counts; the ways take turns


def extend_context(model: Transformer, context: int | None) -> Transformer:
    """Returns the model with a longer context, for a model whose positions are computed and not learned."""
    if not context or context == model.config.context:
        return model
    extended = Transformer(replace(model.config, context=context), model.compute_dtype)
    extended.load_state_dict(model.state_dict())
    return extended.to(model.head.weight.device).eval()


def score_items_one_by_one(engine: Engine, items: Sequence[Sequence[ContinuationRow]]) -> list[list[ContinuationScore]]:
    """Returns the scores of items as the published evaluator computes them: one padded batch for each item."""
    results = []
    for item in items:
        cropped_rows = [row.tokens[-engine.context :] for row in item]
        longest = max(map(len, cropped_rows))
        with torch.inference_mode():
            logits = engine.model.compute_logits(engine.forward(stack_padded(cropped_rows, longest)))
            logprobs = logits.log_softmax(-1)  # (choices, T, V)
            most_likely = logits.argmax(-1).cpu().numpy()  # (choices, T)
        scores = []
        for index, (row, tokens) in enumerate(zip(item, cropped_rows, strict=True)):
            cropped = len(row.tokens) - len(tokens)
            start = max(1, row.start - cropped)
            targets = torch.from_numpy(tokens[start:].astype(np.int64)).to(logprobs.device)
            target_logprobs = logprobs[index, start - 1 : len(tokens) - 1].gather(1, targets[:, None])
            predicted = most_likely[index, start - 1 : len(tokens) - 1]
            logprob, is_greedy = float(target_logprobs.double().sum()), bool((predicted == tokens[start:]).all())
            scores.append(ContinuationScore(logprob, len(targets), tuple(predicted.tolist()), is_greedy, cropped))
        results.append(scores)
    return results


def measure_core_speed(
    engine: Engine, tasks: Sequence[CoreTask], max_per_task: int, convention: str = "nanochat"
) -> dict[str, Any]:
    """Times all ways over `max_per_task` items of each task.

    Returns, for each task and for all: tokens of all choices, computed tokens, seconds of each way, the speed-up over
    the other ways, the computed tokens a second as a share of the forward pass, and the largest difference of a score
    in nats a token. "all" is extrapolated to the whole files: each task is weighted by its number of items.
    """
    results, weights = {}, []
    for task in tasks:
        all_items = read_core_items(task)
        items = select_items(all_items, max_per_task, convention)
        results[task.label] = _measure_task(engine, task, items, convention)
        weights.append(len(all_items) / len(items))
        print(f"{task.label}: {results[task.label]['faster']['unshared']:.1f}x", file=sys.stderr)
    parts = list(results.values())

    def weighted_sum(values: Sequence[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    total: dict[str, Any] = {key: round(weighted_sum([part[key] for part in parts])) for key in ("tokens", "computed")}
    total["seconds"] = {way: weighted_sum([part["seconds"][way] for part in parts]) for way in parts[0]["seconds"]}
    total["difference"] = max(part["difference"] for part in parts)
    return {"tasks": results, "all": total | compute_speed_ratios(total)}


def read_seconds(engine: Engine) -> float:
    """Returns processor seconds on a CPU, which other programs share, and wall-clock seconds on a synchronized GPU."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def compute_speed_ratios(part: dict[str, Any]) -> dict[str, Any]:
    """Returns speed-ups and tokens a second from the seconds of the ways."""
    seconds = part["seconds"]
    return {
        "faster": {way: seconds[way] / seconds["fledgling"] for way in ("unshared", "published")},
        "share_of_forward": seconds["forward"] / seconds["fledgling"],
        "tokens_per_second": part["tokens"] / seconds["fledgling"],
        "computed_per_second": part["computed"] / seconds["fledgling"],
    }


def _measure_task(engine: Engine, task: CoreTask, items: Sequence[CoreItem], convention: str) -> dict[str, Any]:
    scorer, unshared = Scorer(engine), Scorer(engine, share_prefixes=False)

    def tokenize() -> list[list[ContinuationRow]]:
        prompts = [prompt for _, prompt in zip_prompts(task, items, convention)]
        return tokenize_prompts(engine.tokenizer, task.kind, prompts, convention)

    rows = tokenize()
    lengths = [min(len(row.tokens), engine.context) for item in rows for row in item]
    scorer.score(rows)  # not timed: counts the computed tokens, and warms up
    computed, typical_length = scorer.stats.computed_tokens, int(median(lengths))
    ways: dict[str, Callable[[], Any]] = {
        "fledgling": lambda: scorer.score(tokenize()),
        "unshared": lambda: unshared.score(tokenize()),
        "published": lambda: score_items_one_by_one(engine, tokenize()),
        "forward": lambda: _run_forward(engine, computed, typical_length, scorer.batch_tokens),
    }
    seconds = dict.fromkeys(ways, float("inf"))
    outputs = {}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            started = read_seconds(engine)
            outputs[way] = run()
            seconds[way] = min(seconds[way], read_seconds(engine) - started)
    means = [
        np.array([score.mean_logprob for scores in outputs[way] for score in scores])
        for way in ("fledgling", "unshared", "published")
    ]
    difference = max(float(np.nanmax(np.abs(means[0] - other))) for other in means[1:])
    part = {"tokens": sum(lengths), "computed": computed, "seconds": seconds, "difference": difference}
    return part | compute_speed_ratios(part)


def _run_forward(engine: Engine, tokens: int, length: int, batch_tokens: int) -> None:
    """Runs about `tokens` tokens through the model, in full batches of rows of `length` tokens."""
    batch_rows = max(1, batch_tokens // length)
    generator = torch.Generator().manual_seed(0)
    remaining_rows = max(1, round(tokens / length))
    while remaining_rows > 0:
        size = (min(batch_rows, remaining_rows), length)
        engine.forward(torch.randint(engine.model.config.vocab_size, size, generator=generator))
        remaining_rows -= batch_rows


def format_core_speed(result: dict[str, Any]) -> str:
    """Returns the table of `measure_core_speed`: tokens a second by task, and the speed-up over each other way."""
    head = f"{'tokens':>9} {'computed':>9} {'tokens/s':>9} {'unshared':>9} {'published':>9} {'forward':>8}"
    lines = [f"{'':32} {head}"]
    for name, part in [*result["tasks"].items(), ("whole files", result["all"])]:
        faster = part["faster"]
        lines.append(
            f"{name:32} {part['tokens']:9,} {part['computed']:9,} {part['tokens_per_second']:9,.0f} "
            f"{faster['unshared']:8.1f}x {faster['published']:8.1f}x {part['share_of_forward']:8.0%}"
        )
    difference = result["all"]["difference"]
    return "\n".join([*lines, f"largest difference of a score between the ways: {difference:.1e} nats a token"])
