"""Each rule against its reference."""

import itertools

import pytest
import torch

from fledgling.optim.groups import ROLES, role_of, rules
from fledgling.optim.rules import adamw, muon, orthogonalize
from fledgling.optim.schedule import trapezoid


def test_adamw_is_torch_adamw():
    torch.manual_seed(0)
    own, reference = torch.randn(7, 5), None
    reference = own.clone().requires_grad_()
    theirs = torch.optim.AdamW([reference], lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
    mean = square = torch.zeros(7, 5)
    for step in range(1, 6):
        gradient = torch.randn(7, 5)
        reference.grad = gradient.clone()
        theirs.step()
        own, mean, square = adamw(
            own,
            gradient,
            mean,
            square,
            torch.tensor(float(step)),
            torch.tensor(0.01),
            (0.8, 0.95),
            1e-10,
            0.1,
        )
        torch.testing.assert_close(own, reference.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64)])
def test_orthogonalize_is_near_the_polar_factor(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalize(matrices, 5)
    singular = torch.linalg.svdvals(found)
    assert singular.max() < 1.25 and singular.median() > 0.6
    cosine = (found * (u @ v)).sum() / found.norm() / (u @ v).norm()
    assert cosine > 0.97


def test_muon_moves_a_stack_as_it_moves_each_matrix():
    torch.manual_seed(0)
    parameters, gradients, velocity = torch.randn(3, 4, 16, 8).unbind(1)[0:3]
    rate = torch.tensor(0.02)
    together, moving = muon(parameters, gradients, velocity, rate, 0.95, 0.0, 5)
    for i in range(3):
        part = slice(i, i + 1)
        alone, _ = muon(parameters[part], gradients[part], velocity[part], rate, 0.95, 0.0, 5)
        torch.testing.assert_close(together[part], alone, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(moving, velocity * 0.95 + gradients * 0.05)


def test_every_role_has_a_rule():
    from fledgling.config import OptimizerTable

    assert set(rules(OptimizerTable())) == set(ROLES)
    assert role_of("blocks.0.mlp.fc1.weight", (4, 4)) == "matrix"
    assert role_of("head.weight", (4, 4)) == "head"
    assert role_of("embedding.weight", (4, 4)) == "embedding"
    assert role_of("blocks.0.scale", (4,)) == "scalar"


def test_trapezoid_rises_stays_and_falls():
    values = [trapezoid(step / 100, 100, warmup=10, decay=0.4) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9] == 1.0 and values[59] == 1.0
    assert values[99] == pytest.approx(0.025) and all(a >= b for a, b in itertools.pairwise(values[9:]))
    assert trapezoid(0.999, 1000, decay=0.5, final=0.2) == pytest.approx(0.2, abs=2e-3)
