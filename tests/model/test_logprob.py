"""Chunked log-probabilities and their gradients against the plain computation on whole logits."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.model import head_chunk
from fledgling.model.logprob import IGNORE_INDEX, cross_entropy_sum, rational_tanh, target_logprobs


@pytest.fixture
def case():
    torch.manual_seed(0)
    hidden = torch.randn(3, 20, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (3, 20))
    targets[0, :5] = IGNORE_INDEX
    return hidden, weight, targets


def plain(hidden, weight, targets, cap=15.0):
    logits = hidden @ weight.T
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none").view(
        targets.shape
    )


@pytest.mark.parametrize("cap", [15.0, 0.0])
@pytest.mark.parametrize("values", [1 << 24, 350])  # one chunk, and chunks of seven tokens
def test_sum_and_gradients(case, values, cap, monkeypatch):
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, "cpu", values)
    hidden, weight, targets = case
    expected = plain(*case, cap).sum()
    found = cross_entropy_sum(hidden, weight, targets, cap)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for got, want in zip(
        torch.autograd.grad(found * 0.37, [hidden, weight]),
        torch.autograd.grad(expected * 0.37, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", [15.0, 0.0])
def test_logprobs_with_a_weight_of_its_own_for_every_token(case, cap, monkeypatch):
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, "cpu", 350)
    hidden, weight, targets = case
    coefficients = torch.randn(3, 20)
    expected, found = -plain(*case, cap), target_logprobs(hidden, weight, targets, cap)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[targets == IGNORE_INDEX] == 0).all()
    for got, want in zip(
        torch.autograd.grad((found * coefficients).sum(), [hidden, weight]),
        torch.autograd.grad((expected * coefficients).sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_logits_far_beyond_what_exp_can_hold_are_no_trouble_without_a_cap(case):
    hidden, weight, targets = case
    large = (hidden * 40).detach().requires_grad_()  # logits up to several hundred
    found = cross_entropy_sum(large, weight, targets, 0.0)
    expected = plain(large, weight, targets, 0.0).sum()
    assert (large @ weight.T).max() > 200
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    for got, want in zip(
        torch.autograd.grad(found, [large, weight]), torch.autograd.grad(expected, [large, weight]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def test_nothing_to_learn_gives_zero_and_no_gradient(case):
    hidden, weight, targets = case
    loss = cross_entropy_sum(hidden, weight, torch.full_like(targets, IGNORE_INDEX), 15.0)
    assert loss == 0
    assert not torch.autograd.grad(loss, [weight])[0].any()


def test_rational_tanh_is_tanh():
    x = torch.linspace(-12, 12, 100_001)
    torch.testing.assert_close(rational_tanh(x), torch.tanh(x.double()).float(), rtol=5e-7, atol=1e-9)
