"""pass@k: the probability that at least one of k sampled answers is right, estimated from n >= k samples a question.

With c of n answers right, the share of all k-subsets of the n that contain a right one is 1 - C(n - c, k) / C(n, k);
its mean over questions is unbiased, where 1 - (1 - c/n)^k is not (Chen et al. 2021, arXiv 2107.03374, equation 1).
Answers are sampled with the noise of (seed, question, sample), so that a later run with more samples begins with the
same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from fledgling.evals.chat import Exam, ExamAnswer, count_clusters, crop_prompt, encode_question
from fledgling.evals.episodes import make_tools, read_answers
from fledgling.evals.intervals import number_clusters, share_interval
from fledgling.evals.measurement import Measurement
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.tasks.task import Question, score_answers

MAX_SAMPLES = 1 << 16  # of one question; each has its own request index


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the unbiased estimate of pass@k from n samples of which c are right; 1 <= k <= n, 0 <= c <= n."""
    assert 1 <= k <= n and 0 <= c <= n, f"k {k}, n {n}, c {c}"
    return 1.0 - comb(n - c, k) / comb(n, k)  # comb(a, k) is 0 where a < k


def sample_answers(
    engine: Engine,
    exam: Exam,
    samples: int,
    temperature: float,
    first_question: int = 0,
    seed: int = 0,
) -> list[list[ExamAnswer]]:
    """Returns `samples` answers to each question of the exam.

    Args:
        exam: with its questions.
        samples: answers to each question, at most MAX_SAMPLES.
        temperature: of sampling.
        first_question: number of the first one; the random numbers of an answer follow from its question and sample.
        seed: of sampling.
    """
    assert 1 <= samples <= MAX_SAMPLES, samples
    max_prompt = engine.context - min(exam.task.max_new_tokens, engine.context // 2)
    prompts = [crop_prompt(encode_question(engine.tokenizer, question), max_prompt) for question in exam.questions]
    indices = [(first_question + i) * MAX_SAMPLES + s for i in range(len(prompts)) for s in range(samples)]
    sampling = SamplingParams(temperature=temperature, max_new_tokens=exam.task.max_new_tokens, seed=seed)
    requests = [prompt for prompt, _ in prompts for _ in range(samples)]
    questions = [question for question in exam.questions for _ in range(samples)]
    with_task = [(exam.task, question) for question in questions]
    completions = engine.generate(requests, sampling, request_indices=indices, tools=make_tools(with_task))
    texts = read_answers(engine.tokenizer, [exam.task] * len(questions), [c.tokens for c in completions])
    scores = score_answers(with_task, texts)
    answers = [
        ExamAnswer(question, text, score, prompts[i // samples][1], len(completion.tokens), sum(completion.logprobs))
        for i, (question, text, score, completion) in enumerate(zip(questions, texts, scores, completions, strict=True))
    ]
    return [answers[i * samples : (i + 1) * samples] for i in range(len(exam.questions))]


def measure_pass_at_k(
    name: str, questions: Sequence[Question], num_correct: Sequence[int], n: int, ks: Sequence[int]
) -> list[Measurement]:
    """Returns pass@k for each k, from the number of right answers among n samples of each question.

    The samples of a question are one estimate, and questions of one wording one cluster: the 95 % interval is over what
    the questions do not share (`share_interval`).

    Args:
        name: of the exam.
        questions: whose wordings are the clusters.
        num_correct: right answers to each question.
        n: answers to each question.
        ks: each k of pass@k, at most n.
    """
    clusters = number_clusters([question.cluster for question in questions])
    facts, measurements = count_clusters(questions), []
    for k in ks:
        estimates = np.array([pass_at_k(n, c, k) for c in num_correct])
        low, high = share_interval(estimates, clusters)
        mean = float(estimates.mean())
        measurements.append(Measurement(f"{name}_pass@{k}", mean, low, high, len(num_correct), **facts))
    return measurements
