"""Each formula of a loss and its gradient against the paper's formula in numpy."""

import numpy as np
import pytest
import torch

from fledgling.config import RLConfig
from fledgling.data.batch import IGNORE_INDEX
from fledgling.train.loss import (
    CLIPPED_ANSWERS,
    cispo_loss,
    estimate_kl,
    is_clipped,
    logprobs_from_hidden,
    mean_log_ratio,
    policy_gradient_loss,
    ppo_clip_loss,
    token_entropy,
    value_clip_loss,
)
from fledgling.train.rl.algorithm import make_algorithm
from tests.invariants.losses import batch_of
from tests.invariants.many_ranks import fresh

RNG = np.random.default_rng(0)


def with_gradient(function, x):
    """Returns values and derivatives of a torch function of one tensor, elementwise."""
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = function(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach().numpy(), gradient.numpy()


def compare(function, formula, x):
    """Compares the function with the formula, and its gradient with the formula's central difference."""
    value, gradient = with_gradient(function, x)
    h = 1e-6
    np.testing.assert_allclose(value, formula(x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, (formula(x + h) - formula(x - h)) / (2 * h), rtol=1e-4, atol=1e-7)


RATIO = np.array([0.5, 0.5, 0.9, 0.9, 1.1, 1.1, 1.25, 1.25, 1.6, 1.6])
ADVANTAGES = np.array([1.0, -1.0] * 5) * 1.7


def test_ppo_clip_loss_follows_its_formula_with_two_bounds():
    def formula(r):
        return -np.minimum(r * ADVANTAGES, np.clip(r, 1 - 0.2, 1 + 0.3) * ADVANTAGES)

    compare(lambda r: ppo_clip_loss(r, torch.tensor(ADVANTAGES), 0.2, 0.3), formula, RATIO)


def test_clipped_tokens_are_those_without_gradient():
    _, gradient = with_gradient(lambda r: ppo_clip_loss(r, torch.tensor(ADVANTAGES), 0.2, 0.3), RATIO)
    clipped = is_clipped(torch.tensor(RATIO), torch.tensor(ADVANTAGES), 0.2, 0.3).numpy()
    assert (clipped == (gradient == 0)).all() and clipped.sum() == 2


def test_cispo_bounds_the_weight_of_a_token_and_leaves_it_its_gradient():
    """Of log p: the ratio is exp(log p - old), and its clipped value is a constant."""
    old = np.log(RNG.uniform(0.1, 0.9, size=len(RATIO)))
    weight = np.clip(RATIO, 1 - 0.2, 1 + 0.3)

    def function(logprobs):
        return cispo_loss((logprobs - torch.tensor(old)).exp(), logprobs, torch.tensor(ADVANTAGES), 0.2, 0.3)

    value, gradient = with_gradient(function, old + np.log(RATIO))
    np.testing.assert_allclose(value, -weight * ADVANTAGES * (old + np.log(RATIO)))
    np.testing.assert_allclose(gradient, -weight * ADVANTAGES)


def test_the_ratio_of_an_answer_is_the_geometric_mean_of_its_tokens():
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 3]])
    mask = torch.tensor([[False, True, True, True, False, True, False]])
    log_ratio = torch.tensor([[9.0, 0.2, -0.4, 0.5, 9.0, 0.1, 9.0]], dtype=torch.float64)
    found = mean_log_ratio(log_ratio, mask, documents)
    np.testing.assert_allclose(found.numpy(), [[0, -0.1, -0.1, 0.3, 0, 0.3, 0]], atol=1e-12)


def test_gspos_gradient_is_that_of_equation_10():
    """An answer's ratio times its advantage times the mean gradient of its log p, and none where it is clipped."""
    documents, mask = torch.tensor([[1, 1, 2, 2, 2]]), torch.ones(1, 5, dtype=torch.bool)
    advantages = torch.tensor([[1.5, 1.5, 2.0, 2.0, 2.0]], dtype=torch.float64)
    log_ratio = torch.tensor([[0.1, -0.3, 0.9, 0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    ratio = mean_log_ratio(log_ratio, mask, documents).exp()
    weights = torch.tensor([[1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    loss = (CLIPPED_ANSWERS.loss(ratio, log_ratio, advantages, 0.2, 0.2) * weights).sum()
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    first = -np.exp(-0.1) * 1.5 / 2
    np.testing.assert_allclose(gradient.numpy(), [[first, first, 0, 0, 0]], atol=1e-12)
    assert CLIPPED_ANSWERS.per_answer and np.exp(0.5) > 1.2


@pytest.mark.parametrize(("stage", "per_answer"), [("rl", False), ("cispo", False), ("gspo", True)])
def test_the_ratio_is_that_of_a_token_or_of_its_answer(stage, per_answer):
    model, batch = fresh(stage), batch_of(stage, 2, 24, 61, seed=4)
    batch.reference_logprobs = None
    logprobs = logprobs_from_hidden(model, model(batch.tokens, batch.document_ids), batch.targets)
    mask = batch.targets != IGNORE_INDEX
    log_ratio = torch.where(mask, logprobs - batch.old_logprobs, 0.0)
    config, surrogate = RLConfig(), make_algorithm(RLConfig(algorithm="grpo" if stage == "rl" else stage)).surrogate
    ratio = (mean_log_ratio(log_ratio, mask, batch.document_ids) if per_answer else log_ratio).exp()
    terms = surrogate.loss(ratio, logprobs, batch.advantages, config.clip_ratio, config.clip_ratio)
    expected = torch.where(mask, terms * batch.loss_weights, 0.0).sum()
    found = policy_gradient_loss(model, batch, config, surrogate=surrogate)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("k1", lambda p, q: p - q),
        ("k2", lambda p, q: (p - q) ** 2 / 2),
        ("k3", lambda p, q: np.exp(q - p) - 1 + (p - q)),
    ],
)
def test_kl_estimators_follow_their_formulas(kind, formula):
    p, q = np.log(RNG.dirichlet(np.ones(9), size=2))
    compare(lambda x: estimate_kl(x, torch.tensor(q), kind), lambda x: formula(x, q), p)


def test_two_of_the_estimators_are_unbiased_and_one_is_never_negative():
    p, q = RNG.dirichlet(np.ones(6) * 3, size=2)
    exact = (p * np.log(p / q)).sum()
    values = {k: estimate_kl(torch.tensor(np.log(p)), torch.tensor(np.log(q)), k).numpy() for k in ("k1", "k2", "k3")}
    assert (p * values["k1"]).sum() == pytest.approx(exact)
    assert (p * values["k3"]).sum() == pytest.approx(exact)
    assert (p * values["k2"]).sum() != pytest.approx(exact, rel=1e-3)
    assert values["k3"].min() >= 0


def test_expected_gradients_of_the_estimators_are_those_their_docstring_names():
    """Of logits z: E_p[d k / d log p . d log p / dz] is grad KL(p|q) for k2, grad KL(q|p) for k3, and 0 for k1."""
    z = torch.tensor(RNG.normal(size=5), requires_grad=True)
    q = torch.tensor(np.log(RNG.dirichlet(np.ones(5))))
    p = z.log_softmax(-1)
    for estimator, divergence in (
        ("k1", lambda: 0 * z.sum()),
        ("k2", lambda: (z.softmax(-1) * (z.log_softmax(-1) - q)).sum()),
        ("k3", lambda: (q.exp() * (q - z.log_softmax(-1))).sum()),
    ):
        (gradient,) = torch.autograd.grad((p.exp().detach() * estimate_kl(p, q, estimator)).sum(), z, retain_graph=True)
        (expected,) = torch.autograd.grad(divergence(), z)
        torch.testing.assert_close(gradient, expected)


def test_value_clip_loss_follows_its_formula():
    values, old, returns = RNG.normal(size=(3, 40))

    def formula(v):
        return np.maximum((v - returns) ** 2, (old + np.clip(v - old, -0.2, 0.2) - returns) ** 2) / 2

    compare(lambda v: value_clip_loss(v, torch.tensor(old), torch.tensor(returns), 0.2), formula, values)


def test_token_entropy_and_its_gradient_follow_the_formula():
    logits = RNG.normal(size=(4, 7))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    h = -(p * np.log(p)).sum(-1)
    value, gradient = with_gradient(token_entropy, logits)
    np.testing.assert_allclose(value, h)
    np.testing.assert_allclose(gradient, -p * (np.log(p) + h[:, None]), atol=1e-12)
