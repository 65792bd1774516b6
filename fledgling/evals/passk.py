"""pass@k: how often at least one of k drawn answers is right, estimated from n >= k answers to each question.

The one idea: with c of n answers right, the share of all k-subsets of the n that hold a right one is known
exactly, 1 - C(n - c, k) / C(n, k); its mean over questions is unbiased, where 1 - (1 - c/n)^k is not (Chen et
al. 2021, arXiv 2107.03374, equation 1). Answers are drawn with the noise of (seed, question, draw), so more
draws later begin with the same ones.

What it is not: a greedy score; that is chat.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

import numpy as np

from fledgling.evals.chat import DRAWS, Answer, Exam, crop, prompt_ids
from fledgling.evals.measurement import Measurement
from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.infer.stream import final_text

MOST = 1 << 16  # draws of one question that have numbers of their own


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k from n draws of which c are right; 1 <= k <= n, 0 <= c <= n."""
    assert 1 <= k <= n and 0 <= c <= n, f"k {k}, n {n}, c {c}"
    return 1.0 - comb(n - c, k) / comb(n, k)  # comb(a, k) is 0 where a < k


def draw(
    engine: Engine,
    paper: Exam,
    samples: int,
    temperature: float,
    first: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Answer]]:
    """`samples` answers to each question of the exam, whose own numbers begin at `first`."""
    assert 1 <= samples <= MOST, samples
    room = engine.context - min(paper.task.longest, engine.context // 2)
    cut = [crop(prompt_ids(engine.tokenizer, question), room) for question in paper.questions]
    numbers = [(first + i) * MOST + s for i in range(len(cut)) for s in range(samples)]
    sampling = Sampling(temperature=temperature, max_tokens=paper.task.longest, seed=seed)
    prompts = [ids for ids, _ in cut for _ in range(samples)]
    completions = engine.generate(prompts, sampling, numbers=numbers, progress=progress)
    pairs = [
        (question, final_text(engine.tokenizer, completions[i * samples + s].tokens))
        for i, question in enumerate(paper.questions)
        for s in range(samples)
    ]
    scores = paper.task.scores(pairs)
    answers = [
        Answer(question, text, score, cut[at // samples][1], len(said.tokens), sum(said.logprobs))
        for at, ((question, text), score, said) in enumerate(zip(pairs, scores, completions, strict=True))
    ]
    return [answers[i * samples : (i + 1) * samples] for i in range(len(paper.questions))]


def measure(name: str, right: Sequence[int], n: int, ks: Sequence[int], seed: int = 0) -> list[Measurement]:
    """pass@k for each k, from the number of right ones among n draws of each question.

    The 95 % interval is the bootstrap's over questions: percentiles of `DRAWS` means of as many questions, drawn
    with replacement.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(right), size=(DRAWS, len(right)))
    found = []
    for k in ks:
        estimates = np.array([pass_at_k(n, c, k) for c in right])
        low, high = np.percentile(estimates[chosen].mean(1), [2.5, 97.5])
        found.append(Measurement(f"{name}_pass@{k}", float(estimates.mean()), float(low), float(high), len(right)))
    return found
