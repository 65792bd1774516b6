"""Curves over k against counting every subset; the coverage law recovered from draws made with it."""

from itertools import combinations

import numpy as np
import pytest

from fledgling.record.jsonl import JsonlWriter
from fledgling.scaling.inference import (
    SampleSet,
    accuracy_curve,
    analyze_samples,
    fit_coverage_law,
    load_samples,
    sampling_to_json,
)
from fledgling.scaling.inference_page import build_inference_page


def made_up(seed: int = 0, questions: int = 6, n: int = 7) -> SampleSet:
    rng = np.random.default_rng(seed)
    said = rng.integers(3, size=(questions, n))
    return SampleSet("model", said == 0, rng.normal(size=(questions, n)), np.full((questions, n), 5), said, 10.0, 100.0)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_coverage_and_best_are_means_over_all_subsets(k):
    draws = made_up()
    subsets = [list(chosen) for chosen in combinations(range(draws.samples_per_question), k)]
    for q in range(len(draws.correct)):
        right, logprob = draws.correct[q], draws.logprob[q]
        covered = np.mean([right[s].any() for s in subsets])
        best = np.mean([right[max(s, key=lambda i: logprob[i])] for s in subsets])
        assert accuracy_curve(draws, "coverage", [k])[q, 0] == pytest.approx(covered)
        assert accuracy_curve(draws, "best", [k])[q, 0] == pytest.approx(best)


def test_a_majority_of_one_is_chance_and_of_all_is_the_most_frequent():
    draws = made_up(1, questions=40, n=9)
    one, every = accuracy_curve(draws, "majority", [1, 9]).T
    assert one.tolist() == pytest.approx(draws.correct.mean(1).tolist())
    assert accuracy_curve(draws, "majority", [2]).mean() == pytest.approx(draws.correct.mean(), abs=0.05), (
        "of two the first"
    )
    counts = [np.bincount(said, minlength=3) for said in draws.answer_ids]
    clear = [q for q, c in enumerate(counts) if (c == c.max()).sum() == 1]
    assert len(clear) > 20
    assert [every[q] for q in clear] == [float(counts[q].argmax() == 0) for q in clear]


def test_the_law_is_recovered_and_predicts_larger_k():
    """Coverage that follows exp(a k^b) exactly on average, with questions that differ."""
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


def test_there_is_no_law_where_nothing_is_ever_right():
    assert fit_coverage_law(np.zeros((5, 6)), [1, 2, 4, 8, 16, 32]) is None


def test_tokens_and_flops_count_the_prompt_once():
    found = analyze_samples(made_up(), [1, 2, 4])
    assert found.tokens == [15, 20, 30] and found.flops == [1500, 2000, 3000]


def test_draws_are_read_back_and_become_a_page(tmp_path):
    kept = JsonlWriter(tmp_path / "draws.jsonl")
    kept.append({"name": "a model", "flops_per_token": 10})
    for right in (1, 3, 0, 2):
        kept.append(
            {
                "prompt": "?",
                "prompt_tokens": 4,
                "answers": ["Yes."] * right + ["no"] * (8 - right),
                "scores": [1.0] * right + [0.0] * (8 - right),
                "logprobs": [-1.0 - i for i in range(8)],
                "tokens": [2] * 8,
            }
        )
    found = analyze_samples(load_samples(kept.path), [1, 2, 4, 8], hold=1)
    assert sampling_to_json(found)["accuracy"]["coverage"][0][0] == pytest.approx(6 / 32)
    assert sampling_to_json(found)["accuracy"]["coverage"][3][0] == pytest.approx(0.75)
    page = build_inference_page([found], "arithmetic", tmp_path / "page.html").read_text()
    assert "a model" in page and page.count("<svg") == 2
