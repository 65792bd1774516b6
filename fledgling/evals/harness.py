"""A fledgling model as lm-evaluation-harness wants one, so that its hundreds of tasks run on our checkpoints.

The one idea: the harness asks for log-likelihoods of pairs of texts; pairs with one context are one item of the scorer,
whose shared beginning is computed once. Nothing of the harness is imported before it is asked for: it is an extra
(`pip install fledgling[lm-eval]`).

https://github.com/EleutherAI/lm-evaluation-harness, 0.4.13: `lm_eval.api.model.LM`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fledgling.config import UserError
from fledgling.evals.likelihood import ContinuationRow, Scorer
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.text.tokenizer import Tokenizer, bos_prefix

if TYPE_CHECKING:
    from lm_eval.api.model import LM

DEFAULT_MAX_NEW_TOKENS = 256  # of an answer where a task does not say


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> ContinuationRow:
    """A pair as the harness splits it: one text of tokens; spaces at the context's end belong to the continuation."""
    kept = context.rstrip()
    whole = [*bos_prefix(tokenizer), *tokenizer.encode(context + continuation)]
    before = len(bos_prefix(tokenizer)) + (len(tokenizer.encode(kept)) if kept else 0)
    return ContinuationRow(np.array(whole, np.int32), max(1, before))


def rolling_windows(tokens: Sequence[int], context: int) -> Iterator[ContinuationRow]:
    """A long text as rows of at most `context` tokens in which every token but the first is asked for once.

    Each window but the first is a full one: its new tokens have as much before them as the context holds.
    """
    array, done = np.array(tokens, np.int32), 1
    while done < len(array):
        end = min(len(array), done + context - 1)
        first = max(0, end - context)
        yield ContinuationRow(array[first:end], done - first)
        done = end


def compute_loglikelihoods(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(log p of the continuation, whether it is what greedy decoding says) of every (context, continuation)."""
    places: dict[str, list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        places.setdefault(context, []).append(place)
    items = [[encode_pair(scorer.engine.tokenizer, *pairs[place]) for place in group] for group in places.values()]
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    for group, scores in zip(places.values(), scorer.score(items), strict=True):
        for place, score in zip(group, scores, strict=True):
            found[place] = (score.logprob, score.is_greedy)
    return found


def compute_rolling_loglikelihoods(scorer: Scorer, texts: Sequence[str]) -> list[float]:
    """log p of whole texts, each token given as much before it as the context holds."""
    tokenizer = scorer.engine.tokenizer
    rows = [
        list(rolling_windows([*bos_prefix(tokenizer), *tokenizer.encode(text)], scorer.engine.context))
        for text in texts
    ]
    return [sum(score.logprob for score in scores) for scores in scorer.score(rows)]


def generate_until(engine: Engine, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Greedy answers to (context, {"until": [...], "max_gen_toks": n}), each cut before the first of its stops."""
    tokenizer, texts = engine.tokenizer, []
    limits = [int(options.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS)) for _, options in requests]
    most = min(max(limits, default=1), engine.context // 2)
    prompts = [
        [*bos_prefix(tokenizer), *tokenizer.encode(context)][-(engine.context - most) :] for context, _ in requests
    ]
    completions = engine.generate(prompts, SamplingParams(temperature=0.0, max_new_tokens=most), use_tools=False)
    for (_, options), limit, completion in zip(requests, limits, completions, strict=True):
        text = tokenizer.decode(t for t in completion.tokens[:limit] if t not in engine.stop_tokens)
        stops = options.get("until") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0] if stop else text
        texts.append(text)
    return texts


def make_harness_model(scorer: Scorer) -> LM:
    """The harness's own kind of model around a scorer. Raises UserError where the harness is not installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed; pip install 'fledgling[lm-eval]'") from None

    class Fledgling(LM):
        """Answers the three kinds of requests. Every rank is given all of them: the scorer deals them out."""

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            return compute_loglikelihoods(scorer, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: list) -> list[float]:
            return compute_rolling_loglikelihoods(scorer, [request.args[0] for request in requests])

        def generate_until(self, requests: list) -> list[str]:
            return generate_until(scorer.engine, [request.args for request in requests])

    return Fledgling()


def run_harness(
    scorer: Scorer,
    tasks: Sequence[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
) -> dict[str, Any]:
    """The harness's results of `tasks`, {task: {metric: value}}; folder: task files of one's own beside its own."""
    model = make_harness_model(scorer)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise UserError(f'no task "{unknown[0]}" in lm-evaluation-harness; `lm-eval ls tasks` lists them')
    found = simple_evaluate(
        model, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager, log_samples=False
    )
    return found["results"] if found else {}  # the harness answers on the first rank alone
