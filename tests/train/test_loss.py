"""The policy's loss against the papers' formulas, in numpy."""

import numpy as np
import pytest
import torch

from fledgling.train.loss import clipped_policy, kl_estimate
from fledgling.train.rollout import advantages


def test_clip_takes_the_smaller_of_both():
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 1.0])
    worth = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    expected = -np.minimum(ratio.numpy() * worth.numpy(), np.clip(ratio.numpy(), 0.8, 1.3) * worth.numpy())
    np.testing.assert_allclose(clipped_policy(ratio, worth, 0.2, 0.3).numpy(), expected, rtol=1e-6)


def test_beyond_the_clip_there_is_no_gradient():
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5], requires_grad=True)
    worth = torch.tensor([1.0, -1.0, 1.0, -1.0])
    clipped_policy(ratio, worth, 0.2, 0.2).sum().backward()
    assert ratio.grad.tolist() == [-1.0, 0.0, 0.0, 1.0]


def test_kl_estimate_is_unbiased_and_never_negative():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 8).log_softmax(-1).unbind(0)
    exact = float((policy.exp() * (policy - reference)).sum())
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True)
    estimates = kl_estimate(policy[drawn], reference[drawn])
    assert estimates.min() >= -1e-6
    assert float(estimates.mean()) == pytest.approx(exact, rel=0.05)


def test_advantages():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]], dtype=np.float32)
    centred = advantages(rewards, "centred")
    np.testing.assert_allclose(centred.sum(1), 0, atol=1e-6)
    assert not centred[1].any() and centred[2, 3] == pytest.approx(0.75)
    np.testing.assert_allclose(advantages(rewards, "zscore")[0], [1, -1, -1, 1], rtol=1e-4)
