"""How fast CORE is scored: against each choice read from its beginning, and against a bare forward of this machine.

The one idea: the same items, the same weights, one after the other in one process, in processor time, so that the
ratios hold on a busy machine where the times of a clock do not. Four ways: as `eval core` does it; the same without
sharing what choices have in common; as the published evaluator does it, an item at a time with logits of every token;
and full rows through the model with nothing asked of them, which is the limit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from fledgling.evals.core import CoreSettings, tokenize_prompts, zip_prompts
from fledgling.evals.likelihood import ContinuationRow, ContinuationScore, Scorer, stack_padded
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.tasks.core import CoreItem, CoreTask, read_core_items, select_items

ROUNDS = 3  # the best of so many, ways taken in turn


def extend_context(model: Transformer, context: int | None) -> Transformer:
    """The model with room for longer rows, where its positions are computed and not learned."""
    if not context or context == model.config.context:
        return model
    longer = Transformer(replace(model.config, context=context), model.compute_dtype)
    longer.load_state_dict(model.state_dict())
    return longer.to(model.head.weight.device).eval()


def score_items_one_by_one(engine: Engine, items: Sequence[Sequence[ContinuationRow]]) -> list[list[ContinuationScore]]:
    """Every item's choices as one padded batch, logits of all their tokens: as the published evaluator goes."""
    found = []
    for item in items:
        kept = [(row.tokens[-engine.context :], len(row.tokens)) for row in item]
        longest = max(len(tokens) for tokens, _ in kept)
        with torch.inference_mode():
            logits = engine.model.compute_logits(engine.forward(stack_padded([tokens for tokens, _ in kept], longest)))
            logprobs = logits.log_softmax(-1)  # (choices, T, V)
            said = logits.argmax(-1).cpu().numpy()
        scores = []
        for place, (row, (tokens, length)) in enumerate(zip(item, kept, strict=True)):
            start = max(1, row.start - (length - len(tokens)))
            asked = torch.from_numpy(tokens[start:].astype(np.int64)).to(logprobs.device)
            here = logprobs[place, start - 1 : len(tokens) - 1].gather(1, asked[:, None])
            predicted = said[place, start - 1 : len(tokens) - 1]
            greedy = bool((predicted == tokens[start:]).all())
            cropped = length - len(tokens)
            scores.append(
                ContinuationScore(float(here.double().sum()), len(asked), tuple(predicted.tolist()), greedy, cropped)
            )
        found.append(scores)
    return found


def measure_core_speed(
    engine: Engine, tasks: Sequence[CoreTask], max_per_task: int, convention: str = "nanochat"
) -> dict:
    """Time all ways over `most` items of each task.

    Returns, for each task and for all: tokens of all choices, tokens computed, seconds of each way, how many times
    faster than the others ours is, its computed tokens a second as a share of the bare forward's, and the largest
    difference of a score between the ways. "all" is reckoned for the whole files: each task counts as often as it has
    items.
    """
    results, times = {}, {}
    for task in tasks:
        every = read_core_items(task)
        items = select_items(every, CoreSettings(max_per_task, convention).max_per_task, convention)
        results[task.label] = _measure_task(engine, task, items, convention)
        times[task.label] = len(every) / len(items)
        print(f"{task.label}: {results[task.label]['faster']['unshared']:.1f}x", file=sys.stderr)
    parts = list(results.values())
    weights = list(times.values())

    def total(figures: Sequence[float]) -> float:
        return sum(weight * figure for weight, figure in zip(weights, figures, strict=True))

    whole = {key: round(total([part[key] for part in parts])) for key in ("tokens", "computed")}
    whole["seconds"] = {way: total([part["seconds"][way] for part in parts]) for way in parts[0]["seconds"]}
    whole["difference"] = max(part["difference"] for part in parts)
    return {"tasks": results, "all": whole | compute_speed_ratios(whole)}


def read_seconds(engine: Engine) -> float:
    """Seconds: of the processor on a CPU, where other programs take turns; of the clock, all done, on a GPU."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def compute_speed_ratios(part: dict) -> dict:
    """What the seconds of the ways mean beside each other."""
    seconds = part["seconds"]
    return {
        "faster": {way: seconds[way] / seconds["ours"] for way in ("unshared", "published")},
        "share_of_forward": seconds["forward"] / seconds["ours"],
        "tokens_per_second": part["tokens"] / seconds["ours"],
        "computed_per_second": part["computed"] / seconds["ours"],
    }


def _measure_task(engine: Engine, task: CoreTask, items: Sequence[CoreItem], convention: str) -> dict:
    ours, unshared = Scorer(engine), Scorer(engine, share_prefixes=False)

    def rendered() -> list[list[ContinuationRow]]:
        return tokenize_prompts(
            engine.tokenizer, task.kind, [p for _, p in zip_prompts(task, items, convention)], convention
        )

    made = rendered()
    computed = [min(len(row.tokens), engine.context) for item in made for row in item]
    ours.score(made)  # untimed: counts what is computed, and warms up
    fed, typical = ours.stats.computed_tokens, int(median(computed))
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.score(rendered()),  # with all that a run does: text, tokens, scores
        "unshared": lambda: unshared.score(rendered()),
        "published": lambda: score_items_one_by_one(engine, rendered()),
        "forward": lambda: _run_forward(engine, fed, typical, ours.batch_tokens),
    }
    seconds = {way: float("inf") for way in ways}
    found = {}
    for _ in range(ROUNDS):
        for way, go in ways.items():
            began = read_seconds(engine)
            found[way] = go()
            seconds[way] = min(seconds[way], read_seconds(engine) - began)
    means = [
        np.array([score.mean for scores in found[way] for score in scores]) for way in ("ours", "unshared", "published")
    ]
    difference = max(float(np.nanmax(np.abs(means[0] - other))) for other in means[1:])
    part = {"tokens": sum(computed), "computed": fed, "seconds": seconds, "difference": difference}
    return part | compute_speed_ratios(part)


def _run_forward(engine: Engine, tokens: int, length: int, batch_tokens: int) -> None:
    """As many tokens, in full rows of the typical length, through the model."""
    count = max(1, batch_tokens // length)
    generator = torch.Generator().manual_seed(0)
    left = max(1, round(tokens / length))
    while left > 0:
        size = (min(count, left), length)
        engine.forward(torch.randint(engine.model.config.vocab_size, size, generator=generator))
        left -= count


def format_core_speed(result: dict) -> str:
    """Returns the table of `measure_core_speed`: tokens a second by task, and how much faster each way is."""
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
