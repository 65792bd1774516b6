"""Tests curves over k against counting every subset, and recovers the coverage law from samples of it."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from fledgling.record.jsonl import JsonlWriter
from fledgling.scaling.inference_scaling import (
    SampleSet,
    accuracy_curve,
    analyze_samples,
    build_inference_page,
    fit_coverage_law,
    load_samples,
    sampling_to_json,
)


def make_samples(seed: int = 0, questions: int = 6, n: int = 7) -> SampleSet:
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, size=(questions, n))
    numbers = np.arange(questions)
    logprobs, tokens = rng.normal(size=(questions, n)), np.full((questions, n), 5)
    return SampleSet("model", ids == 0, logprobs, tokens, ids, 10.0, 100.0, numbers)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_coverage_and_best_are_means_over_all_subsets(k):
    samples = make_samples()
    subsets = [list(chosen) for chosen in combinations(range(samples.samples_per_question), k)]
    for q in range(len(samples.correct)):
        correct, logprob = samples.correct[q], samples.logprob[q]
        covered = np.mean([correct[s].any() for s in subsets])
        best = np.mean([correct[max(s, key=lambda i: logprob[i])] for s in subsets])
        assert accuracy_curve(samples, "coverage", [k])[q, 0] == pytest.approx(covered)
        assert accuracy_curve(samples, "best", [k])[q, 0] == pytest.approx(best)


def test_a_majority_of_one_is_the_mean_and_of_all_the_most_frequent():
    samples = make_samples(1, questions=40, n=9)
    single, full = accuracy_curve(samples, "majority", [1, 9]).T
    assert single.tolist() == pytest.approx(samples.correct.mean(1).tolist())
    assert accuracy_curve(samples, "majority", [2]).mean() == pytest.approx(samples.correct.mean(), abs=0.05), (
        "of two the first"
    )
    counts = [np.bincount(answer_ids, minlength=3) for answer_ids in samples.answer_ids]
    clear = [q for q, c in enumerate(counts) if (c == c.max()).sum() == 1]
    assert len(clear) > 20
    assert [full[q] for q in clear] == [float(counts[q].argmax() == 0) for q in clear]


def test_the_law_is_recovered_and_predicts_larger_k():
    """Coverage follows exp(a k^b) exactly on average, with questions that differ."""
    ks, a, b = [2**i for i in range(9)], -2.5, -0.35
    law = np.exp(a * np.array(ks) ** b)
    rng = np.random.default_rng(0)
    coverage = np.clip(law + rng.normal(size=(400, 1)) * 0.05 * law * (1 - law) * 4, 0, 1)
    coverage += law - coverage.mean(0)
    found = fit_coverage_law(coverage, ks)
    assert found.a.value == pytest.approx(a, rel=0.01) and found.b.value == pytest.approx(b, rel=0.01)
    assert found.a.contains(a) and found.b.contains(b)
    assert found.error < 1e-3 and [k for k, *_ in found.held_out] == [128, 256]
    wrong = fit_coverage_law(np.tile([0.1, 0.5, 0.1, 0.5, 0.1, 0.5, 0.1, 0.5, 0.1], (9, 1)), ks)
    assert wrong.error > 0.1, "a curve that is no such law is not predicted by it"


def test_there_is_no_law_without_correct_answers():
    assert fit_coverage_law(np.zeros((5, 6)), [1, 2, 4, 8, 16, 32]) is None


def test_questions_of_one_wording_are_one_cluster():
    rates = np.repeat(np.random.default_rng(0).choice([0.1, 0.9], 30), 6)
    correct = np.random.default_rng(1).random((180, 16)) < rates[:, None]
    alone = replace(make_samples(0, 180, 16), correct=correct)
    shared = replace(alone, clusters=np.repeat(np.arange(30), 6))
    widths = []
    for samples in (alone, shared):
        result = analyze_samples(samples, [1, 2, 4, 8, 16])
        widths.append(result.accuracy["coverage"][0].high - result.accuracy["coverage"][0].low)
        assert sampling_to_json(result)["clusters"] == int(samples.clusters.max()) + 1
    assert widths[1] > 1.8 * widths[0]


def test_tokens_and_flops_count_the_prompt_once():
    found = analyze_samples(make_samples(), [1, 2, 4])
    assert found.tokens == [15, 20, 30] and found.flops == [1500, 2000, 3000]


def test_samples_are_read_back_and_become_a_page(tmp_path):
    file = JsonlWriter(tmp_path / "draws.jsonl")
    file.append({"name": "a model", "flops_per_token": 10})
    for correct in (1, 3, 0, 2):
        file.append(
            {
                "prompt": "?",
                "prompt_tokens": 4,
                "answers": ["Yes."] * correct + ["no"] * (8 - correct),
                "scores": [1.0] * correct + [0.0] * (8 - correct),
                "logprobs": [-1.0 - i for i in range(8)],
                "tokens": [2] * 8,
            }
        )
    found = analyze_samples(load_samples(file.path), [1, 2, 4, 8], hold=1)
    assert load_samples(file.path, "its copy").name == "its copy"
    assert sampling_to_json(found)["accuracy"]["coverage"][0][0] == pytest.approx(6 / 32)
    assert sampling_to_json(found)["accuracy"]["coverage"][3][0] == pytest.approx(0.75)
    page = build_inference_page([found], "arithmetic", tmp_path / "page.html").read_text()
    assert "a model" in page and page.count("<svg") == 2
