"""An lm-evaluation-harness model around a scorer, so that the harness's tasks run on fledgling checkpoints.

The harness requests log-likelihoods of pairs of texts; pairs with the same context are one item of the scorer, which
computes their prefix once. The harness is an extra (`pip install fledgling[lm-eval]`) and imported only when used.

https://github.com/EleutherAI/lm-evaluation-harness, 0.4.13: `lm_eval.api.model.LM`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fledgling.config import UserError
from fledgling.evals.likelihood import ContinuationRow, Scorer, common_prefix_length
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.text.tokenizer import BOS_NAMES, Tokenizer, bos_prefix

if TYPE_CHECKING:
    from lm_eval.api.model import LM

DEFAULT_MAX_NEW_TOKENS = 256  # of an answer where a task gives none


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> ContinuationRow:
    """Returns a pair as one row: the text is tokenized as a whole, as the model was trained to read it.

    Scored are the tokens from the first one that differs from the context's own. Where a token extends over the join
    (context "the answer is 1", continuation "2", and "12" is a token), it is scored with the last characters of the
    context that it contains, given the shorter context before it. Its log-probability is that of both, so it is a lower
    bound of the continuation's own, and never 0. Counting tokens of the context instead would pass over this token.
    Spaces at the context's end belong to the continuation, as in the harness.

    Raises:
        UserError: nothing to score, or nothing before it.
    """
    bos = bos_prefix(tokenizer)
    tokens = np.array([*bos, *tokenizer.encode(context + continuation)], np.int32)
    before = np.array([*bos, *tokenizer.encode(context.rstrip())], np.int32)
    start = common_prefix_length([tokens, before])
    if not continuation or start == len(tokens):
        raise UserError(
            f"the continuation {continuation!r} of {context[-40:]!r} has no token to score; expected text: an empty "
            "continuation has probability 1 and would be the best of all choices"
        )
    return ContinuationRow(tokens, require_prefix(start, context + continuation))


def require_prefix(start: int, text: str) -> int:
    """Returns `start`. Raises UserError for 0: a tokenizer without bos gives the first token nothing to follow."""
    if start < 1:
        raise UserError(
            f"the first token of {text[:40]!r} is to be scored, but nothing precedes it: the tokenizer has none of "
            f"{', '.join(BOS_NAMES)}; expected a longer context, or a tokenizer with one of them"
        )
    return start


def compute_loglikelihoods(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Returns (log p of the continuation, whether greedy decoding gives it) of each (context, continuation)."""
    indices: dict[str, list[int]] = {}
    for index, (context, _) in enumerate(pairs):
        indices.setdefault(context, []).append(index)
    items = [[encode_pair(scorer.engine.tokenizer, *pairs[index]) for index in group] for group in indices.values()]
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    for group, scores in zip(indices.values(), scorer.score(items), strict=True):
        for index, score in zip(group, scores, strict=True):
            results[index] = (score.logprob, score.is_greedy)
    return results


def compute_rolling_loglikelihoods(scorer: Scorer, texts: Sequence[str]) -> list[float]:
    """Returns log p of whole texts, every token once, in nats.

    Texts longer than the context are read in windows (`likelihood.split_windows`). An empty text has log p = 0: it has
    no token. Raises UserError where the tokenizer has no bos for the first token to follow.
    """
    bos = bos_prefix(scorer.engine.tokenizer)
    encoded = [scorer.engine.tokenizer.encode(text) for text in texts]
    items = [
        [ContinuationRow(np.array([*bos, *tokens], np.int32), require_prefix(len(bos), text))] if tokens else []
        for text, tokens in zip(texts, encoded, strict=True)
    ]
    return [sum(score.logprob for score in scores) for scores in scorer.score(items)]


def generate_until(
    engine: Engine,
    requests: Sequence[tuple[str, dict[str, Any]]],
    log: Callable[[str], None] = print,
) -> list[str]:
    """Returns greedy answers to (context, {"until": [...], "max_gen_toks": n}), each cut before its first stop.

    An answer takes at most half of the model's context, and a context loses its beginning where no room is left for the
    answer. `log` is called with one line for each of these, and for sampling that a task asks for, with the number of
    requests.
    """
    tokenizer, texts = engine.tokenizer, []
    requested = [int(options.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS)) for _, options in requests]
    limits = [min(limit, engine.context // 2) for limit in requested]
    longest = max(limits, default=1)
    encoded = [[*bos_prefix(tokenizer), *tokenizer.encode(context)] for context, _ in requests]
    prompts = [prompt[-(engine.context - limit) :] for prompt, limit in zip(encoded, limits, strict=True)]
    for count, what in (
        (
            sum(map(int.__gt__, requested, limits)),
            f"answers may take {engine.context // 2} tokens, not those of the task",
        ),
        (sum(map(int.__gt__, map(len, encoded), map(len, prompts))), "contexts were too long and lost their beginning"),
        (sum(bool(options.get("do_sample")) for _, options in requests), "answers are greedy where the task samples"),
    ):
        if count:
            log(f"{count:,} of {len(requests):,} requests: {what}")
    completions = engine.generate(prompts, SamplingParams(temperature=0.0, max_new_tokens=longest), use_tools=False)
    for (_, options), limit, completion in zip(requests, limits, completions, strict=True):
        text = tokenizer.decode([token for token in completion.tokens[:limit] if token not in engine.stop_tokens])
        stops = options.get("until") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0] if stop else text
        texts.append(text)
    return texts


def make_harness_model(scorer: Scorer) -> LM:
    """Returns the harness's model interface around a scorer. Raises UserError where the harness is not installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed; pip install 'fledgling[lm-eval]'") from None

    class Fledgling(LM):
        """Answers the three kinds of requests. Every rank gets all of them: the scorer distributes the work."""

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            return compute_loglikelihoods(scorer, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: list) -> list[float]:
            return compute_rolling_loglikelihoods(scorer, [request.args[0] for request in requests])

        def generate_until(self, requests: list) -> list[str]:
            return generate_until(
                scorer.engine, [request.args for request in requests], partial(print, file=sys.stderr)
            )

    return Fledgling()


def run_harness(
    scorer: Scorer,
    tasks: Sequence[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
) -> dict[str, Any]:
    """Returns the harness's results of `tasks`, {task: {metric: value}}.

    Only the main rank gets results.

    Args:
        scorer: of the model.
        tasks: names that the harness knows.
        limit: items of each task; None: all.
        num_fewshot: examples before each question; None: the task's own number.
        include_path: a folder of own task files.
    """
    model = make_harness_model(scorer)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path) if include_path else None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise UserError(f'no task "{unknown[0]}" in lm-evaluation-harness; `lm-eval ls tasks` lists them')
    results = simple_evaluate(
        model, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager, log_samples=False
    )
    return results["results"] if results else {}
