"""Chunked log-probabilities, their gradients and chunked logits against the computation on whole logits."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.data.batch import Batch
from fledgling.model import head_chunk, logprob
from fledgling.model.logprob import IGNORE_INDEX, cross_entropy_sum, iterate_logits, rational_tanh, target_logprobs


@pytest.fixture
def case():
    torch.manual_seed(0)
    hidden = torch.randn(3, 20, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (3, 20))
    targets[0, :5] = IGNORE_INDEX
    return hidden, weight, targets


def compute_nll(hidden, weight, targets, cap=15.0, shift=0.0):
    logits = hidden @ weight.T
    logits = cap * torch.tanh((logits + shift) / cap) if cap else logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none").view(
        targets.shape
    )


CAPS = [(15.0, 0.0), (0.0, 0.0), (4.0, 3.0)]  # and shifts


@pytest.mark.parametrize(("cap", "shift"), CAPS)
@pytest.mark.parametrize("values", [1 << 24, 350])  # one chunk, and chunks of seven tokens
def test_the_sum_and_its_gradients_are_those_of_whole_logits(case, values, cap, shift, monkeypatch):
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, "cpu", values)
    hidden, weight, targets = case
    expected = compute_nll(*case, cap, shift).sum()
    result = cross_entropy_sum(hidden, weight, targets, cap, shift)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(result * 0.37, [hidden, weight]),
        torch.autograd.grad(expected * 0.37, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("cap", "shift"), CAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_several_targets_of_a_token_are_the_weighted_sum_of_single_ones(case, cap, shift, dtype, monkeypatch):
    """Some are ignored, some have weight 0, some tokens have none, and one token may be a target twice."""
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, "cpu", 350)
    hidden, weight, first = case
    targets = torch.stack([first, first.roll(1, 1), torch.full_like(first, 7)], -1)
    targets[2, :9] = targets[2, :9, :1]
    weights = torch.tensor([1.0, 0.5, 0.25]).repeat(3, 20, 1)
    weights[1, :4, 1:], weights[1, 5], weights[2, 12:, 0] = 0.0, 0.0, 0.0
    expected = sum((compute_nll(hidden, weight, targets[..., k], cap, shift) * weights[..., k]).sum() for k in range(3))
    result = cross_entropy_sum(hidden.to(dtype), weight, targets, cap, shift, weights)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.03}
    torch.testing.assert_close(result, expected, **tolerance)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(result * 0.37, [hidden, weight]),
        torch.autograd.grad(expected * 0.37, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, **tolerance)


@pytest.mark.parametrize(("cap", "shift"), CAPS)
def test_logprobs_can_be_weighted_token_by_token(case, cap, shift, monkeypatch):
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, "cpu", 350)
    hidden, weight, targets = case
    coefficients = torch.randn(3, 20)
    expected, result = -compute_nll(*case, cap, shift), target_logprobs(hidden, weight, targets, cap, shift)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert (result[targets == IGNORE_INDEX] == 0).all()
    for gradient, expected_gradient in zip(
        torch.autograd.grad((result * coefficients).sum(), [hidden, weight]),
        torch.autograd.grad((expected * coefficients).sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_only_listed_positions_are_computed_and_nothing_else_changes(case, several, monkeypatch):
    hidden, weight, targets = case
    targets = targets.clone()
    targets[:, 4:17] = IGNORE_INDEX
    positions = Batch(torch.zeros_like(targets), targets).to("cpu").head_positions
    weights = torch.rand(3, 20, 2) * (targets != IGNORE_INDEX)[..., None] if several else None
    many = torch.stack([targets, targets.roll(1, 1)], -1) if several else targets  # some are of weight 0
    computed, part = [], logprob._chunk_logprobs
    monkeypatch.setattr(logprob, "_chunk_logprobs", lambda h, *rest: (computed.append(len(h)), part(h, *rest))[1])
    whole, listed = (
        cross_entropy_sum(hidden, weight, many, 15.0, 0.0, weights, positions=given) for given in (None, positions)
    )
    torch.testing.assert_close(listed, whole, rtol=1e-5, atol=1e-5)
    for expected, gradient in zip(
        *(torch.autograd.grad(loss, [hidden, weight]) for loss in (whole, listed)), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert set(computed) == {60, len(positions)} and len(positions) < 30


def test_logits_beyond_the_range_of_exp_are_computed_without_a_cap(case):
    hidden, weight, targets = case
    large = (hidden * 40).detach().requires_grad_()  # logits up to several hundred
    result = cross_entropy_sum(large, weight, targets, 0.0, 0.0)
    expected = compute_nll(large, weight, targets, 0.0).sum()
    assert (large @ weight.T).max() > 200
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-3)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(result, [large, weight]), torch.autograd.grad(expected, [large, weight]), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-3)


def test_ignored_targets_give_zero_loss_and_zero_gradient(case):
    hidden, weight, targets = case
    loss = cross_entropy_sum(hidden, weight, torch.full_like(targets, IGNORE_INDEX), 15.0, 0.0)
    assert loss == 0
    assert not torch.autograd.grad(loss, [weight])[0].any()


def test_rational_tanh_equals_tanh():
    x = torch.linspace(-12, 12, 100_001)
    torch.testing.assert_close(rational_tanh(x), torch.tanh(x.double()).float(), rtol=5e-7, atol=1e-9)


def test_chunks_of_logits_are_the_whole_logits(case, monkeypatch):
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, "cpu", 350)
    hidden, weight, _ = case
    hidden = hidden.flatten(0, 1)
    parts, chunks = zip(*iterate_logits(hidden, lambda states: states @ weight.T, len(weight)), strict=True)
    assert [len(chunk) for chunk in chunks] == [7] * 8 + [4] and parts[1] == slice(7, 14)
    torch.testing.assert_close(torch.cat(chunks), hidden @ weight.T)
