"""Each rule against its reference."""

import itertools
import math

import pytest
import torch

from fledgling.optim.roles import ROLES, assign_role, assign_rules
from fledgling.optim.rules import JORDAN_COEFFICIENTS, adamw, muon, orthogonalize
from fledgling.optim.schedule import trapezoidal_schedule


def test_adamw_is_torch_adamw():
    torch.manual_seed(0)
    own = torch.randn(7, 5)
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


def spread(shape, least):
    """A stack whose singular values lie between `least` and most of the Frobenius norm; and its polar factors."""
    count, rows, columns = shape
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, math.log10(least), min(rows, columns), dtype=torch.float64)
    values = (values / values.norm()).clamp(min=least)
    return (u * values.expand(count, -1)[:, None] @ v).float(), (u @ v).float(), (u, values, v)


SHAPES = [(3, 32, 32), (2, 64, 16), (2, 16, 64), (1, 48, 12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_moves_singular_values_alone(shape):
    matrices, _, (u, values, v) = spread(shape, 1e-4)
    moved = values / values.norm()
    for _ in range(5):  # the scalar iteration: 3.4445 s - 4.775 s^3 + 2.0315 s^5 (Jordan et al. 2024)
        moved = 3.4445 * moved - 4.7750 * moved**3 + 2.0315 * moved**5
    expected = u * moved.expand(shape[0], -1)[:, None] @ v
    found = orthogonalize(matrices, 5, torch.float32)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=5e-4)


@pytest.mark.parametrize(("dtype", "least", "rounding"), [(torch.float32, 0.0015, 1e-3), (torch.bfloat16, 0.005, 0.01)])
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_is_within_the_stated_error_of_the_polar_factor(shape, dtype, least, rounding):
    matrices, polar, _ = spread(shape, least)
    found = orthogonalize(7 * matrices, 5, dtype)
    error = torch.linalg.matrix_norm(found - polar, 2).max()
    assert 0.1 < error <= 0.32 + rounding, "an approximation, and as good as stated"
    singular = torch.linalg.svdvals(found)
    assert 0.68 - rounding <= singular.min() and singular.max() <= 1.21 + rounding


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_is_torch_muon(shape, decay):
    torch.manual_seed(0)
    own = torch.randn(shape)
    reference = own.clone().requires_grad_()
    theirs = torch.optim.Muon(
        [reference],
        lr=0.02,
        weight_decay=decay,
        momentum=0.95,
        nesterov=True,
        ns_coefficients=JORDAN_COEFFICIENTS,
        ns_steps=5,
    )
    start, own, velocity = own.clone(), own[None], torch.zeros(1, *shape)
    for _ in range(8):
        gradient = torch.randn(shape)
        reference.grad = gradient.clone()
        theirs.step()
        own, velocity = muon(own, gradient[None], velocity, torch.tensor(0.02), 0.95, decay, 5)
        torch.testing.assert_close(own[0], reference.detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(velocity[0], theirs.state[reference]["momentum_buffer"], rtol=1e-6, atol=1e-6)
    assert (own[0] - start).abs().mean() > 1e-3


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
    from fledgling.config import OptimizerConfig

    assert set(assign_rules(OptimizerConfig())) == set(ROLES)
    assert assign_role("blocks.0.mlp.fc1.weight", (4, 4)) == "matrix"
    assert assign_role("head.weight", (4, 4)) == "head"
    assert assign_role("embedding.weight", (4, 4)) == "embedding"
    assert assign_role("blocks.0.scale", (4,)) == "scalar"


def test_trapezoid_rises_stays_and_falls():
    values = [trapezoidal_schedule(step / 100, 100, warmup_steps=10, decay_fraction=0.4) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9] == 1.0 and values[59] == 1.0
    assert values[99] == pytest.approx(0.025) and all(a >= b for a, b in itertools.pairwise(values[9:]))
    assert trapezoidal_schedule(0.999, 1000, decay_fraction=0.5, final_lr_fraction=0.2) == pytest.approx(0.2, abs=2e-3)
