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

from fledgling.evals.chat import BOOTSTRAP_SAMPLES, Exam, ExamAnswer, crop_prompt, encode_question
from fledgling.evals.measurement import Measurement
from fledgling.infer.detokenizer import decode_final_text
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams

MAX_SAMPLES = 1 << 16  # draws of one question that have numbers of their own


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k from n draws of which c are right; 1 <= k <= n, 0 <= c <= n."""
    assert 1 <= k <= n and 0 <= c <= n, f"k {k}, n {n}, c {c}"
    return 1.0 - comb(n - c, k) / comb(n, k)  # comb(a, k) is 0 where a < k


def sample_answers(
    engine: Engine,
    exam: Exam,
    samples: int,
    temperature: float,
    first_question: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[ExamAnswer]]:
    """`samples` answers to each question of the exam, whose own numbers begin at `first`."""
    assert 1 <= samples <= MAX_SAMPLES, samples
    room = engine.context - min(exam.task.max_new_tokens, engine.context // 2)
    cut = [crop_prompt(encode_question(engine.tokenizer, question), room) for question in exam.questions]
    numbers = [(first_question + i) * MAX_SAMPLES + s for i in range(len(cut)) for s in range(samples)]
    sampling = SamplingParams(temperature=temperature, max_new_tokens=exam.task.max_new_tokens, seed=seed)
    prompts = [ids for ids, _ in cut for _ in range(samples)]
    completions = engine.generate(prompts, sampling, request_indices=numbers, progress=progress)
    pairs = [
        (question, decode_final_text(engine.tokenizer, completions[i * samples + s].tokens))
        for i, question in enumerate(exam.questions)
        for s in range(samples)
    ]
    scores = exam.task.score_batch(pairs)
    answers = [
        ExamAnswer(question, text, score, cut[at // samples][1], len(said.tokens), sum(said.logprobs))
        for at, ((question, text), score, said) in enumerate(zip(pairs, scores, completions, strict=True))
    ]
    return [answers[i * samples : (i + 1) * samples] for i in range(len(exam.questions))]


def measure_pass_at_k(
    name: str, num_correct: Sequence[int], n: int, ks: Sequence[int], seed: int = 0
) -> list[Measurement]:
    """pass@k for each k, from the number of right ones among n draws of each question.

    The 95 % interval is the bootstrap's over questions: percentiles of `DRAWS` means of as many questions, drawn
    with replacement.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(num_correct), size=(BOOTSTRAP_SAMPLES, len(num_correct)))
    found = []
    for k in ks:
        estimates = np.array([pass_at_k(n, c, k) for c in num_correct])
        low, high = np.percentile(estimates[chosen].mean(1), [2.5, 97.5])
        found.append(
            Measurement(f"{name}_pass@{k}", float(estimates.mean()), float(low), float(high), len(num_correct))
        )
    return found
