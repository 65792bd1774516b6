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
from fledgling.evals.likelihood import Row, Scorer
from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.text.tokenizer import Tokenizer, begin

if TYPE_CHECKING:
    from lm_eval.api.model import LM

MAX_TOKENS = 256  # of an answer where a task does not say


def pair_row(tokenizer: Tokenizer, context: str, continuation: str) -> Row:
    """A pair as the harness splits it: one text of tokens; spaces at the context's end belong to the continuation."""
    kept = context.rstrip()
    whole = [*begin(tokenizer), *tokenizer.encode(context + continuation)]
    before = len(begin(tokenizer)) + (len(tokenizer.encode(kept)) if kept else 0)
    return Row(np.array(whole, np.int32), max(1, before))


def windows(tokens: Sequence[int], context: int) -> Iterator[Row]:
    """A long text as rows of at most `context` tokens in which every token but the first is asked for once.

    Each window but the first is a full one: its new tokens have as much before them as the context holds.
    """
    array, done = np.array(tokens, np.int32), 1
    while done < len(array):
        end = min(len(array), done + context - 1)
        first = max(0, end - context)
        yield Row(array[first:end], done - first)
        done = end


def loglikelihoods(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(log p of the continuation, whether it is what greedy decoding says) of every (context, continuation)."""
    places: dict[str, list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        places.setdefault(context, []).append(place)
    items = [[pair_row(scorer.engine.tokenizer, *pairs[place]) for place in group] for group in places.values()]
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    for group, scores in zip(places.values(), scorer.score(items), strict=True):
        for place, score in zip(group, scores, strict=True):
            found[place] = (score.logprob, score.greedy)
    return found


def rolling(scorer: Scorer, texts: Sequence[str]) -> list[float]:
    """log p of whole texts, each token given as much before it as the context holds."""
    tokenizer = scorer.engine.tokenizer
    rows = [list(windows([*begin(tokenizer), *tokenizer.encode(text)], scorer.engine.context)) for text in texts]
    return [sum(score.logprob for score in scores) for scores in scorer.score(rows)]


def answers(engine: Engine, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Greedy answers to (context, {"until": [...], "max_gen_toks": n}), each cut before the first of its stops."""
    tokenizer, texts = engine.tokenizer, []
    limits = [int(options.get("max_gen_toks", MAX_TOKENS)) for _, options in asked]
    most = min(max(limits, default=1), engine.context // 2)
    prompts = [[*begin(tokenizer), *tokenizer.encode(context)][-(engine.context - most) :] for context, _ in asked]
    completions = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=most), tools=False)
    for (_, options), limit, completion in zip(asked, limits, completions, strict=True):
        text = tokenizer.decode(t for t in completion.tokens[:limit] if t not in engine.stops)
        stops = options.get("until") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0] if stop else text
        texts.append(text)
    return texts


def language_model(scorer: Scorer) -> LM:
    """The harness's own kind of model around a scorer. Raises UserError where the harness is not installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed; pip install 'fledgling[lm-eval]'") from None

    class Fledgling(LM):
        """Answers the three kinds of requests. Every rank is given all of them: the scorer deals them out."""

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            return loglikelihoods(scorer, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: list) -> list[float]:
            return rolling(scorer, [request.args[0] for request in requests])

        def generate_until(self, requests: list) -> list[str]:
            return answers(scorer.engine, [request.args for request in requests])

    return Fledgling()


def evaluate(
    scorer: Scorer, tasks: Sequence[str], limit: int | None = None, shots: int | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """The harness's results of `tasks`, {task: {metric: value}}; folder: task files of one's own beside its own."""
    model = language_model(scorer)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise UserError(f'no task "{unknown[0]}" in lm-evaluation-harness; `lm-eval ls tasks` lists them')
    found = simple_evaluate(
        model, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager, log_samples=False
    )
    return found["results"] if found else {}  # the harness answers on the first rank alone
