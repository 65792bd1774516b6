"""Measures inference-time scaling: accuracy against k samples, its coverage law, and the cost of k samples.

From n samples of each question every k <= n is estimated without sampling again. Coverage (pass@k) and best-of-k by
log-probability are exact means over all k-subsets of the n; the majority vote is a mean over random ones.

    coverage   1 - C(n - c, k) / C(n, k), c of n correct (arXiv 2107.03374, equation 1); what best-of-k reaches with a
               perfect verifier, such as the tasks' own scores
    best       of a k-subset sorted by log-probability: the answer of rank r is the best of C(n - 1 - r, k - 1) subsets
    majority   the most frequent answer in the subset; ties go to the first sampled (arXiv 2203.11171)
    law        coverage = exp(a k^b), a < 0, b < 0 (arXiv 2407.21787, section 3): least squares on coverage

Q questions, n samples of each, K values of k, R bootstrap resamples. Does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import UserError
from fledgling.evals.intervals import number_clusters, resample_clusters, share_interval, sum_by_cluster
from fledgling.record import read_jsonl, write_text
from fledgling.record.progress_bar import format_count
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.report.template import render_page
from fledgling.scaling.fits import Estimate, minimize_huber
from fledgling.scaling.sweep_page import format_interval, log10_axis, log_spaced
from fledgling.tasks.task import RIGHT_SCORE, normalize_text

RESAMPLES = 1000
SUBSETS = 64  # random k-subsets of one question's samples, for the majority vote
HELD_OUT = 2  # of the largest k: predicted, not fitted
SELECTION_METHODS = ("coverage", "best", "majority")
METHOD_LABELS = {"coverage": "pass@k (a verifier)", "best": "best of k by log-probability", "majority": "majority vote"}


@dataclass(frozen=True)
class SampleSet:
    """Samples of one model, all (Q, n): correct, logprob in nats, tokens, answer_ids (equal for equal texts)."""

    name: str
    correct: np.ndarray
    logprob: np.ndarray
    tokens: np.ndarray
    answer_ids: np.ndarray
    prompt_tokens: float  # mean over questions
    flops_per_token: float  # forward
    clusters: np.ndarray  # (Q,) from 0: questions of one wording are one cluster

    @property
    def samples_per_question(self) -> int:
        """Samples per question."""
        return self.correct.shape[1]


def load_samples(path: Path, name: str | None = None) -> SampleSet:
    """Returns the samples of a file that `fledgling scaling inference` wrote. Raises UserError if it has none.

    name: of the model; None: what it was called when they were sampled. A copy of its checkpoint has the same file.
    """
    header, *lines = read_jsonl(path) or [{}]
    if not lines:
        raise UserError(f"{path} holds no samples; expected a file that fledgling scaling inference wrote")
    codes = [{text: i for i, text in enumerate(dict.fromkeys(map(normalize_text, line["answers"])))} for line in lines]
    return SampleSet(
        name or header["name"],
        np.array([line["scores"] for line in lines]) >= RIGHT_SCORE,
        np.array([line["logprobs"] for line in lines]),
        np.array([line["tokens"] for line in lines]),
        np.array([[code[normalize_text(t)] for t in line["answers"]] for line, code in zip(lines, codes, strict=True)]),
        float(np.mean([line["prompt_tokens"] for line in lines])),
        float(header["flops_per_token"]),
        number_clusters([line.get("cluster", index) for index, line in enumerate(lines)]),
    )


def rank_probabilities(n: int, k: int) -> np.ndarray:
    """Returns (n,): the probability C(n - 1 - r, k - 1) / C(n, k) that rank r is the first of a random k-subset."""
    total = math.comb(n, k)
    return np.array([math.comb(n - 1 - r, k - 1) / total for r in range(n)])


def accuracy_curve(samples: SampleSet, method: str, ks: Sequence[int], seed: int = 0) -> np.ndarray:
    """Returns (Q, K): the expected accuracy on each question with k samples."""
    if method == "majority":
        return np.stack([_vote_majority(samples, k, np.random.default_rng([seed, k])) for k in ks], axis=1)
    order = np.argsort(
        -(samples.correct if method == "coverage" else samples.logprob).astype(float), axis=1, kind="stable"
    )
    correct = np.take_along_axis(samples.correct, order, 1).astype(
        float
    )  # correct ones first: a verifier finds any of them
    return np.stack([correct @ rank_probabilities(samples.samples_per_question, k) for k in ks], axis=1)


def _vote_majority(samples: SampleSet, k: int, rng: np.random.Generator) -> np.ndarray:
    if k == 1:
        return samples.correct.mean(1)
    subsets = SUBSETS if k < samples.samples_per_question else 1
    accuracy = np.zeros(len(samples.correct))
    for q, (answers, correct) in enumerate(zip(samples.answer_ids, samples.correct, strict=True)):
        for _ in range(subsets):
            chosen = rng.permutation(samples.samples_per_question)[:k]
            subset_answers = answers[chosen]
            counts = np.bincount(subset_answers)[subset_answers]
            accuracy[q] += correct[chosen[int(counts.argmax())]]  # the first of the most frequent answers
    return accuracy / subsets


@dataclass(frozen=True)
class CoverageLaw:
    """coverage = exp(a k^b), fitted on `fitted`, compared on `held_out`: (k, measured, predicted with its interval)."""

    a: Estimate
    b: Estimate
    fitted: tuple[int, ...]
    held_out: tuple[tuple[int, float, Estimate], ...]

    def coverage_at(self, k: float) -> float:
        """Returns the law's coverage at k."""
        return math.exp(self.a.value * k**self.b.value)

    @property
    def error(self) -> float:
        """Mean absolute error of coverage at the held-out k."""
        return float(np.mean([abs(predicted.value - measured) for _, measured, predicted in self.held_out]))


def fit_coverage_law(
    coverage: np.ndarray, ks: Sequence[int], hold: int = HELD_OUT, clusters: np.ndarray | None = None
) -> CoverageLaw | None:
    """Returns the law fitted to per-question coverage (Q, K) without its `hold` largest k; None if all of it is 0 or 1.

    Intervals are 95 % percentiles of fits to clusters of questions (Q,) drawn with replacement; None: each its own.
    """
    fitted_count = len(ks) - hold
    mean = coverage.mean(0)
    if fitted_count < 3 or not ((mean[:fitted_count] > 0) & (mean[:fitted_count] < 1)).any():
        return None
    sums, sizes = sum_by_cluster(coverage, np.arange(len(coverage)) if clusters is None else clusters)
    targets = np.concatenate([mean[None], resample_clusters(sums, sizes, RESAMPLES)])  # (R + 1, K)
    logs = np.log(np.array(ks, dtype=float))
    fits = _fit(targets[:, :fitted_count], logs[:fitted_count])  # (R + 1, 2): log -a, b
    a, b = -np.exp(fits[:, 0]), fits[:, 1]
    predicted = np.exp(a[:, None] * np.exp(b[:, None] * logs[fitted_count:]))
    held_out = tuple(
        (k, float(mean[fitted_count + i]), _estimate(predicted[:, i])) for i, k in enumerate(ks[fitted_count:])
    )
    return CoverageLaw(_estimate(a), _estimate(b), tuple(ks[:fitted_count]), held_out)


def _fit(targets: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Returns (B, 2): log -a and b of least squares on coverage (B, n); from a line through log -log coverage."""

    def model(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inner = np.exp(coefficients[:, :1] + coefficients[:, 1:] * logs)  # (B, n), -a k^b
        values = np.exp(-inner)
        slope = -values * inner
        return values, np.stack([slope, slope * logs], axis=2)

    y = np.log(-np.log(np.clip(targets, 1e-6, 1 - 1e-6)))
    x = logs - logs.mean()
    b = (y @ x) / (x @ x)
    start = np.stack([y.mean(1) - b * logs.mean(), b], axis=1)
    return minimize_huber(model, targets, start, 1e9, np.array([-20.0, -5.0]), np.array([5.0, 0.0]))[0]


def _estimate(samples: np.ndarray) -> Estimate:
    """Returns an estimate; the first sample is the value, the others its bootstrap."""
    low, high = np.quantile(samples[1:], [0.025, 0.975])
    return Estimate(float(samples[0]), float(low), float(high))


@dataclass(frozen=True)
class SamplingResult:
    """The curves of one model: accuracy by method and k, tokens and FLOPs per question by k, the law."""

    samples: SampleSet
    ks: tuple[int, ...]
    accuracy: dict[str, list[Estimate]]
    tokens: list[float]  # the prompt is prefilled once for any k
    flops: list[float]
    law: CoverageLaw | None


def analyze_samples(samples: SampleSet, ks: Sequence[int], hold: int = HELD_OUT) -> SamplingResult:
    """Returns the accuracy curves, costs and coverage law of one model."""
    curves = {method: accuracy_curve(samples, method, ks) for method in SELECTION_METHODS}
    accuracy = {
        method: [Estimate(float(column.mean()), *share_interval(column, samples.clusters)) for column in values.T]
        for method, values in curves.items()
    }
    tokens = [samples.prompt_tokens + k * float(samples.tokens.mean()) for k in ks]
    flops = [count * samples.flops_per_token for count in tokens]
    law = fit_coverage_law(curves["coverage"], ks, hold, samples.clusters)
    return SamplingResult(samples, tuple(ks), accuracy, tokens, flops, law)


def sampling_to_json(result: SamplingResult) -> dict[str, Any]:
    """Returns a result as JSON values."""

    def bounds(value: Estimate) -> list[float]:
        return [value.value, value.low, value.high]

    law = result.law and {
        "a": bounds(result.law.a),
        "b": bounds(result.law.b),
        "fitted": list(result.law.fitted),
        "held": [{"k": k, "measured": m, "predicted": bounds(p)} for k, m, p in result.law.held_out],
        "error": result.law.error,
    }
    return {
        "name": result.samples.name,
        "questions": len(result.samples.correct),
        "clusters": int(result.samples.clusters.max()) + 1,
        "samples": result.samples.samples_per_question,
        "k": list(result.ks),
        "accuracy": {method: [bounds(value) for value in values] for method, values in result.accuracy.items()},
        "tokens": result.tokens,
        "flops": result.flops,
        "law": law,
    }


# ---- page ----


def build_inference_page(results: Sequence[SamplingResult], task: str, path: Path) -> Path:
    """Writes the page and returns its path."""
    write_text(path, render_page("scaling", "inference.html", **inference_page_contents(results, task)))
    return path


def inference_page_contents(results: Sequence[SamplingResult], task: str) -> dict[str, Any]:
    """Returns the values of the template."""
    return {
        "title": f"{task}: more samples",
        "methods": [(color, METHOD_LABELS[method]) for color, method in enumerate(SELECTION_METHODS)],
        "models": [(color % 4, result.samples.name) for color, result in enumerate(results)],
        "curves": [(result.samples.name, accuracy_chart(result)) for result in results],
        "equal_flops": [("pass@k at equal FLOPs per question", equal_flops_chart(results))],
        "rows": [row for result in results for row in accuracy_rows(result)],
        "laws": [coverage_law_row(result.samples.name, result.law) for result in results if result.law],
    }


def _make_line(label: str, xs: Sequence[float], values: Sequence[Estimate], color: int) -> Line:
    lows, highs = [value.low for value in values], [value.high for value in values]
    return Line(label, [math.log10(x) for x in xs], [v.value for v in values], lows, highs, color, dots=True)


def accuracy_chart(result: SamplingResult) -> Any:
    """Returns accuracy against k: three selection methods, and the law, dashed."""
    lines = [
        _make_line(METHOD_LABELS[method], result.ks, result.accuracy[method], color)
        for color, method in enumerate(SELECTION_METHODS)
    ]
    if result.law:
        xs = log_spaced(result.ks[0], result.ks[-1])
        lines.append(
            Line("law", [math.log10(x) for x in xs], [result.law.coverage_at(x) for x in xs], color=3, dashed=True)
        )
    return render_chart(
        Chart(f"{result.samples.name}: accuracy", lines, floor=0.0, **log10_axis(result.ks, "k", lambda k: f"{k:.0f}"))
    )


def equal_flops_chart(results: Sequence[SamplingResult]) -> Any:
    """Returns coverage of every model against the FLOPs per question: a larger model, or more samples."""
    lines = [
        _make_line(result.samples.name, result.flops, result.accuracy["coverage"], i % 4)
        for i, result in enumerate(results)
    ]
    spans = [flops for result in results for flops in result.flops]
    return render_chart(
        Chart("pass@k", lines, floor=0.0, **log10_axis(spans, "FLOPs per question", lambda value: f"{value:.0e}"))
    )


def accuracy_rows(result: SamplingResult) -> list[tuple[str, ...]]:
    """Returns a model's values, one row per k."""
    return [
        (
            result.samples.name,
            str(k),
            *(format_interval(result.accuracy[method][i], "{:.3f}") for method in SELECTION_METHODS),
            format_count(result.tokens[i]),
            f"{result.flops[i]:.2e}",
        )
        for i, k in enumerate(result.ks)
    ]


def coverage_law_row(name: str, law: CoverageLaw) -> tuple[str, ...]:
    """Returns the law's coefficients and its held-out error."""
    held_out = "; ".join(
        f"k {k}: {measured:.3f}, predicted {format_interval(predicted, '{:.3f}')}"
        for k, measured, predicted in law.held_out
    )
    return name, format_interval(law.a), format_interval(law.b), held_out, f"{law.error:.4f}"
