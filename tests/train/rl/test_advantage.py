"""Advantages against the papers' formulas, written out term by term."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.train.rl.advantage import adapt_kl_weight, gae, group_advantages, overlong_penalty, token_weights

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.25, 0.0, 0.5, 3.0]])


def test_centered_and_zscore_compare_with_the_own_group():
    for row, centered, scored in zip(
        REWARDS, group_advantages(REWARDS, "centered"), group_advantages(REWARDS, "zscore"), strict=True
    ):
        mean = sum(row) / 4
        deviation = (sum((r - mean) ** 2 for r in row) / 4) ** 0.5
        np.testing.assert_allclose(centered, [r - mean for r in row], atol=1e-12)
        np.testing.assert_allclose(scored, [(r - mean) / (deviation + 1e-6) for r in row], atol=1e-9)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    expected = [[r - (sum(row) - r) / 3 for r in row] for row in REWARDS]
    np.testing.assert_allclose(group_advantages(REWARDS, "leave_one_out"), expected, atol=1e-12)


def paper_gae(rewards, values, gamma, gae_lambda):
    """arXiv 1506.02438, equation 16, as a double sum."""
    n = len(values)
    next_values = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * next_values[t] - values[t] for t in range(n)]
    return [sum((gamma * gae_lambda) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)]


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=7), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_generalized_advantages_stay_within_packed_answers(masks, gamma, gae_lambda, seed):
    """Answers of any lengths in one row, with forced tokens anywhere: each as if it were alone."""
    rng = np.random.default_rng(seed)
    length = sum(map(len, masks)) + 2
    values, rewards = rng.normal(size=(2, 1, length))
    sampled, documents = np.zeros((1, length), bool), np.zeros((1, length), np.int32)
    at, expected = 0, np.zeros(length)
    for number, mask in enumerate(masks):
        span = slice(at, at + len(mask))
        documents[0, span], sampled[0, span] = number + 1, mask
        steps = [at + i for i, is_sampled in enumerate(mask) if is_sampled]
        step_rewards = [rewards[0, t] for t in steps]
        expected[steps] = paper_gae(step_rewards, list(values[0, steps]), gamma, gae_lambda)
        at += len(mask)
    advantages = gae(rewards, values, sampled, documents, gamma, gae_lambda)
    np.testing.assert_allclose(advantages[0], expected, atol=1e-9)


def test_with_gae_lambda_one_the_returns_are_the_discounted_rewards():
    sampled, documents = np.ones((1, 5), bool), np.ones((1, 5), int)
    values = np.random.default_rng(0).normal(size=(1, 5))
    advantages = gae(np.array([[0, 1.0, 0, 0, 2.0]]), values, sampled, documents, 0.9, 1.0)
    returns = [2 * 0.9**4 + 0.9, 2 * 0.9**3 + 1, 2 * 0.9**2, 2 * 0.9, 2]
    np.testing.assert_allclose(advantages + values, [returns])


@pytest.mark.parametrize("lengths", [[3, 1, 8], [5], [2, 0, 2]])
def test_token_weights_give_the_mean_of_each_paper(lengths):
    rng = np.random.default_rng(1)
    losses = [rng.normal(size=n) for n in lengths]
    tokens, nonempty = sum(lengths), [loss for loss in losses if len(loss)]
    for normalization, expected in (
        ("token", sum(loss.sum() for loss in losses) / tokens),
        ("sequence", sum(loss.mean() for loss in nonempty) / len(nonempty)),
    ):
        weights = token_weights(lengths, normalization)
        mean = sum(w * loss.sum() for w, loss in zip(weights, losses, strict=True)) / tokens
        assert mean == pytest.approx(expected)
        assert sum(weights * lengths) == pytest.approx(tokens)
    weights = token_weights(lengths, "constant", 10)
    mean = sum(w * loss.sum() for w, loss in zip(weights, losses, strict=True)) / tokens
    assert mean == pytest.approx(sum(loss.sum() for loss in losses) / len(lengths) / 10), "Dr. GRPO: no length divides"


def test_the_length_penalty_starts_after_the_free_tokens():
    assert [overlong_penalty(n, 8, 16) for n in (0, 8, 12, 16, 20)] == [0, 0, -0.5, -1, -1]
    assert overlong_penalty(16, 16, 16) == 0


def test_the_kl_weight_follows_its_target():
    assert [adapt_kl_weight(0.1, kl, 0.03) for kl in (0.01, 0.021, 0.03, 0.044, 0.05)] == [0.05, 0.1, 0.1, 0.1, 0.2]
