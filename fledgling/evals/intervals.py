"""95 % intervals over what is really independent: clusters, such as the questions that share a wording or a passage.

Ten questions in one wording are not ten tests of whether the model reads new wordings. Whole clusters are resampled
with replacement (a cluster bootstrap), and the variance of the mean says how many independent questions the exam has
the worth of. Start with `share_interval`. Without torch; the seed is fixed, so that a score has one interval.

Q questions (values), C clusters, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from fledgling.evals.measurement import Z95, wilson_interval

RESAMPLES = 2000
CHUNK = 1 << 22  # cluster indices drawn at a time
PRIOR_ERRORS = 2.0  # rare answers for which the clusters are taken to agree completely


def number_clusters(keys: Sequence[Hashable]) -> np.ndarray:
    """Returns the cluster of each key, (Q,) int64 from 0 to C - 1 in the order of first appearance."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def resample_clusters(sums: np.ndarray, sizes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Returns sum / size over C clusters drawn with replacement, R times: (R,), or (R, K) for sums (C, K).

    Args:
        sums: of each cluster's values, (C,) or (C, K).
        sizes: of each cluster (C,): its number of values, or any other denominator.
    """
    rng, count = np.random.default_rng(seed), len(sizes)
    step = max(1, CHUNK // count)
    parts = []
    for start in range(0, resamples, step):
        drawn = rng.integers(count, size=(min(step, resamples - start), count))
        totals = sizes[drawn].sum(1)
        parts.append(sums[drawn].sum(1) / (totals if sums.ndim == 1 else totals[:, None]))
    return np.concatenate(parts)


def sum_by_cluster(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sums (C,) or (C, K) and the sizes (C,) of the clusters of values (Q,) or (Q, K)."""
    sizes = np.bincount(clusters).astype(float)
    sums = np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(sums, clusters, values)
    return sums, sizes


def share_interval(values: Sequence[float] | np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of values in [0, 1], of which those of one cluster may depend.

    It is Wilson's interval for as many independent questions as give the bootstrap's variance (Franco et al. 2019,
    "Comparative study of confidence intervals for proportions in complex sample surveys"), widened by Student's t of
    C - 1 degrees. So it stays within [0, 1] and has a width where every answer is right. Where right or wrong answers
    are rare, the variance between clusters cannot be seen, and `PRIOR_ERRORS` answers count for complete agreement
    within clusters. Clusters of one question each: exactly Wilson's.

    Args:
        values: (Q,) scores.
        clusters: (Q,) from `number_clusters`.
    """
    scores = np.asarray(values, float)
    n, mean = len(scores), float(np.mean(scores))
    sums, sizes = sum_by_cluster(scores, clusters)
    is_binary = bool(np.isin(scores, (0.0, 1.0)).all())
    if len(sizes) == n and is_binary:
        return wilson_interval(mean * n, n)
    if len(sizes) < 2:
        return 0.0, 1.0  # one wording says nothing about another
    worst = float(np.square(sizes).sum()) / n  # variance over that of independent answers, if clusters agree
    rare = n * min(mean, 1 - mean)
    ratio = 0.0
    if rare > 0:
        variance = float(resample_clusters(sums, sizes).var()) * len(sizes) / (len(sizes) - 1)
        ratio = variance / (mean * (1 - mean) / n)
    ratio = (rare * ratio + PRIOR_ERRORS * worst) / (rare + PRIOR_ERRORS)
    if is_binary:
        ratio = max(1.0, ratio)
    effective = n / ratio / student_to_normal_ratio(len(sizes) - 1) ** 2
    return wilson_interval(mean * effective, effective)


def combine_intervals(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Returns the mean of independent parts with its 95 % interval, each (value, low, high).

    Each side's half-widths are added as squares (Zou and Donner 2008, "Construction of confidence limits about effect
    measures"), so that a part of 0 or 1 keeps its width.
    """
    values, lows, highs = np.array(parts, float).T
    mean, count = float(values.mean()), len(values)
    below = float(np.sqrt(np.square(values - lows).sum())) / count
    above = float(np.sqrt(np.square(highs - values).sum())) / count
    return mean, mean - below, mean + above


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float | None, float | None]:
    """Returns sum(numerators) / sum(denominators) over independent clusters (C,), and its 95 % interval.

    The variance is that of a ratio (delta method), with Student's t of C - 1 degrees. One cluster has no variance that
    could be seen, so it has no interval: None.
    """
    total, count = float(denominators.sum()), len(numerators)
    value = float(numerators.sum() / total)
    if count < 2:
        return value, None, None
    squares = float(np.square(numerators - value * denominators).sum())
    deviation = (squares * count / (count - 1)) ** 0.5 / total
    half = Z95 * student_to_normal_ratio(count - 1) * deviation
    return value, value - half, value + half


def student_to_normal_ratio(degrees: int) -> float:
    """Returns the ratio of Student's 95 % interval to the normal one.

    Exact for 1 and 2 degrees of freedom, which is also the least: fewer count as 1. From 3 on it is a series, .12 % too
    small at 3, .03 % at 4, .01 % at 5, and less with more.

    Source: the quantiles in closed form; the Cornish-Fisher series to the fourth order (Abramowitz and Stegun 26.7.5).
    """
    p, z, v = 0.975, NormalDist().inv_cdf(0.975), max(1, degrees)
    if v == 1:
        return math.tan(math.pi * (p - 0.5)) / z
    if v == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p)) / z
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4),
    )
    return 1 + sum(terms) / z
