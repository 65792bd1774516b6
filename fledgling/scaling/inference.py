"""What more samples buy: accuracy against k, the coverage law fitted to it, and what k costs. Reads draws, no torch.

The one idea: from n draws of each question every k <= n is estimated without drawing again. Coverage (pass@k) and
best-of-k by log-probability are exact means over all k-subsets of the n; the majority vote is a mean over random ones.

    coverage   1 - C(n - c, k) / C(n, k), c of n right (arXiv 2107.03374, equation 1); what best-of-k reaches with a
               verifier that never errs, which the tasks' own scores are
    best       of a k-subset sorted by log-probability, the answer of rank r is the best of C(n - 1 - r, k - 1) subsets
    majority   the answer said most often in the subset; ties go to the one said first (arXiv 2203.11171)
    law        coverage = exp(a k^b), a < 0, b < 0 (arXiv 2407.21787, section 3): least squares on coverage

Q questions, n draws of each, K values of k, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import UserError
from fledgling.record import read_jsonl
from fledgling.scaling.fits import Estimate, minimize_huber
from fledgling.tasks.task import normalize_text

RESAMPLES = 1000
SUBSETS = 64  # random k-subsets of one question's draws, for the majority vote
HELD_OUT = 2  # of the largest k: predicted, not fitted
SELECTION_METHODS = ("coverage", "best", "majority")


@dataclass(frozen=True)
class SampleSet:
    """Draws of one model: right (Q, n), logprob (Q, n) nats, tokens (Q, n), said (Q, n) as numbers of texts."""

    name: str
    correct: np.ndarray
    logprob: np.ndarray
    tokens: np.ndarray
    answer_ids: np.ndarray
    prompt_tokens: float  # mean over questions
    flops_per_token: float  # forward

    @property
    def samples_per_question(self) -> int:
        """Draws of a question."""
        return self.correct.shape[1]


def load_samples(path: Path) -> SampleSet:
    """Draws out of a file that `fledgling scaling inference` wrote. Raises UserError if it holds none."""
    head, *lines = read_jsonl(path) or [{}]
    if not lines:
        raise UserError(f"{path} holds no draws; expected what fledgling scaling inference writes")
    codes = [{text: i for i, text in enumerate(dict.fromkeys(map(normalize_text, line["answers"])))} for line in lines]
    return SampleSet(
        head["name"],
        np.array([line["scores"] for line in lines]) >= 1,
        np.array([line["logprobs"] for line in lines]),
        np.array([line["tokens"] for line in lines]),
        np.array([[code[normalize_text(t)] for t in line["answers"]] for line, code in zip(lines, codes, strict=True)]),
        float(np.mean([line["prompt_tokens"] for line in lines])),
        float(head["flops_per_token"]),
    )


def rank_probabilities(n: int, k: int) -> np.ndarray:
    """(n,): how likely rank r (0 first) is the first of a random k-subset: C(n - 1 - r, k - 1) / C(n, k)."""
    total = math.comb(n, k)
    return np.array([math.comb(n - 1 - r, k - 1) / total for r in range(n)])


def accuracy_curve(draws: SampleSet, kind: str, ks: Sequence[int], seed: int = 0) -> np.ndarray:
    """(Q, K): the expected accuracy on each question with k draws of it."""
    if kind == "majority":
        return np.stack([_majority(draws, k, np.random.default_rng([seed, k])) for k in ks], axis=1)
    order = np.argsort(-(draws.correct if kind == "coverage" else draws.logprob).astype(float), axis=1, kind="stable")
    right = np.take_along_axis(draws.correct, order, 1).astype(float)  # right ones first: any of them is found
    return np.stack([right @ rank_probabilities(draws.samples_per_question, k) for k in ks], axis=1)


def _majority(draws: SampleSet, k: int, rng: np.random.Generator) -> np.ndarray:
    if k == 1:
        return draws.correct.mean(1)
    subsets = SUBSETS if k < draws.samples_per_question else 1
    found = np.zeros(len(draws.correct))
    for q, (said, right) in enumerate(zip(draws.answer_ids, draws.correct, strict=True)):
        for _ in range(subsets):
            chosen = rng.permutation(draws.samples_per_question)[:k]
            texts = said[chosen]
            counts = np.bincount(texts)[texts]
            found[q] += right[chosen[int(counts.argmax())]]  # the first of those said most often
    return found / subsets


@dataclass(frozen=True)
class CoverageLaw:
    """coverage = exp(a k^b), fitted on `fitted` and held against `held`: (k, measured, predicted with its interval)."""

    a: Estimate
    b: Estimate
    fitted: tuple[int, ...]
    held_out: tuple[tuple[int, float, Estimate], ...]

    def coverage_at(self, k: float) -> float:
        """The law's coverage at k."""
        return math.exp(self.a.value * k**self.b.value)

    @property
    def error(self) -> float:
        """Mean absolute error at the held-out k, in points of coverage of 1."""
        return float(np.mean([abs(predicted.value - measured) for _, measured, predicted in self.held_out]))


def fit_coverage_law(
    coverage: np.ndarray, ks: Sequence[int], hold: int = HELD_OUT, seed: int = 0
) -> CoverageLaw | None:
    """Fit the law to per-question coverage (Q, K) without its `hold` largest k; None where all of it is 0 or 1.

    Intervals are 95 % percentiles of fits to questions drawn with replacement.
    """
    few = len(ks) - hold
    mean = coverage.mean(0)
    if few < 3 or not ((mean[:few] > 0) & (mean[:few] < 1)).any():
        return None
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(coverage), size=(RESAMPLES, len(coverage)))
    targets = np.concatenate([mean[None], coverage[chosen].mean(1)])  # (R + 1, K)
    logs = np.log(np.array(ks, dtype=float))
    found = _fit(targets[:, :few], logs[:few])  # (R + 1, 2): log -a, b
    a, b = -np.exp(found[:, 0]), found[:, 1]
    told = np.exp(a[:, None] * np.exp(b[:, None] * logs[few:]))
    held = tuple((k, float(mean[few + i]), _estimate(told[:, i])) for i, k in enumerate(ks[few:]))
    return CoverageLaw(_estimate(a), _estimate(b), tuple(ks[:few]), held)


def _fit(targets: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """(B, 2): log -a and b of least squares on coverage (B, n); from a straight line through log -log coverage."""

    def model(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inner = np.exp(at[:, :1] + at[:, 1:] * logs)  # (B, n), -a k^b
        values = np.exp(-inner)
        slope = -values * inner
        return values, np.stack([slope, slope * logs], axis=2)

    y = np.log(-np.log(np.clip(targets, 1e-6, 1 - 1e-6)))
    x = logs - logs.mean()
    b = (y @ x) / (x @ x)
    start = np.stack([y.mean(1) - b * logs.mean(), b], axis=1)
    return minimize_huber(model, targets, start, 1e9, np.array([-20.0, -5.0]), np.array([5.0, 0.0]))[0]


def _estimate(draws: np.ndarray) -> Estimate:
    """The first is the value, the others its bootstrap."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return Estimate(float(draws[0]), float(low), float(high))


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean over questions (Q,) with its bootstrap interval."""
    chosen = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    return _estimate(np.concatenate([[values.mean()], values[chosen].mean(1)]))


@dataclass(frozen=True)
class SamplingResult:
    """One model's curves: accuracy by kind and k, tokens and FLOPs a question by k, the law."""

    samples: SampleSet
    ks: tuple[int, ...]
    accuracy: dict[str, list[Estimate]]
    tokens: list[float]  # the prompt is read once, whatever k
    flops: list[float]
    law: CoverageLaw | None


def analyze_samples(draws: SampleSet, ks: Sequence[int], hold: int = HELD_OUT) -> SamplingResult:
    """Everything the page and the JSON tell about one model."""
    curves = {kind: accuracy_curve(draws, kind, ks) for kind in SELECTION_METHODS}
    accuracy = {kind: [bootstrap_mean(found[:, i]) for i in range(len(ks))] for kind, found in curves.items()}
    tokens = [draws.prompt_tokens + k * float(draws.tokens.mean()) for k in ks]
    flops = [count * draws.flops_per_token for count in tokens]
    return SamplingResult(draws, tuple(ks), accuracy, tokens, flops, fit_coverage_law(curves["coverage"], ks, hold))


def sampling_to_json(one: SamplingResult) -> dict[str, Any]:
    """An outcome as JSON values."""

    def pair(value: Estimate) -> list[float]:
        return [value.value, value.low, value.high]

    law = one.law and {
        "a": pair(one.law.a),
        "b": pair(one.law.b),
        "fitted": list(one.law.fitted),
        "held": [{"k": k, "measured": m, "predicted": pair(p)} for k, m, p in one.law.held_out],
        "error": one.law.error,
    }
    return {
        "name": one.samples.name,
        "questions": len(one.samples.correct),
        "samples": one.samples.samples_per_question,
        "k": list(one.ks),
        "accuracy": {kind: [pair(value) for value in values] for kind, values in one.accuracy.items()},
        "tokens": one.tokens,
        "flops": one.flops,
        "law": law,
    }
