"""Each update rule against its reference: PyTorch's optimizers, the scalar iteration, the papers' error bounds."""

import math
from dataclasses import replace

import pytest
import torch

from fledgling.optim.rules import (
    JORDAN_COEFFICIENTS,
    MuonSettings,
    adamw,
    muon_,
    muon_direction_,
    newton_schulz_coefficients,
    normalize_lines_,
    normalize_rows_,
    orthogonalize,
)

pytestmark = pytest.mark.usefixtures("seeded")
FP32 = MuonSettings(dtype=torch.float32)


def muon(parameter, gradient, momentum_buffer, settings):
    """Returns stacks (n, rows, columns) of parameters and momentum buffers after a step at a rate of .02."""
    parameter, momentum_buffer = parameter.clone(), momentum_buffer.clone()
    muon_(parameter.unbind(), gradient.clone(), momentum_buffer, torch.tensor(0.02), settings)
    return parameter, momentum_buffer


def test_adamw_equals_torch_adamw():
    parameter = torch.randn(7, 5)
    reference = parameter.clone().requires_grad_()
    torch_adamw = torch.optim.AdamW([reference], lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
    exp_avg = exp_avg_sq = torch.zeros(7, 5)
    for step in range(1, 6):
        gradient = torch.randn(7, 5)
        reference.grad = gradient.clone()
        torch_adamw.step()
        parameter, exp_avg, exp_avg_sq = adamw(
            parameter,
            gradient,
            exp_avg,
            exp_avg_sq,
            torch.tensor(float(step)),
            torch.tensor(0.01),
            (0.8, 0.95),
            1e-10,
            0.1,
        )
        torch.testing.assert_close(parameter, reference.detach(), rtol=1e-5, atol=1e-6)


def make_matrices(shape, smallest):
    """A stack with singular values between `smallest` and most of the Frobenius norm; its polar factors; its SVD."""
    count, rows, columns = shape
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, math.log10(smallest), min(rows, columns), dtype=torch.float64)
    values = (values / values.norm()).clamp(min=smallest)
    return (u * values.expand(count, -1)[:, None] @ v).float(), (u @ v).float(), (u, values, v)


SHAPES = [(3, 32, 32), (2, 64, 16), (2, 16, 64), (1, 48, 12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_changes_only_the_singular_values(shape):
    matrices, _, (u, values, v) = make_matrices(shape, 1e-4)
    iterated = values / values.norm()
    for _ in range(5):  # the scalar iteration: 3.4445 s - 4.775 s^3 + 2.0315 s^5 (Jordan et al. 2024)
        iterated = 3.4445 * iterated - 4.7750 * iterated**3 + 2.0315 * iterated**5
    expected = u * iterated.expand(shape[0], -1)[:, None] @ v
    result = orthogonalize(matrices, 5, torch.float32)
    torch.testing.assert_close(result, expected.float(), rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("dtype", "smallest", "rounding"), [(torch.float32, 0.0015, 1e-3), (torch.bfloat16, 0.005, 0.01)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_is_within_the_stated_error_of_the_polar_factor(shape, dtype, smallest, rounding):
    matrices, polar, _ = make_matrices(shape, smallest)
    result = orthogonalize(7 * matrices, 5, dtype)
    error = torch.linalg.matrix_norm(result - polar, 2).max()
    assert 0.1 < error <= 0.32 + rounding, "an approximation, and as good as stated"
    singular_values = torch.linalg.svdvals(result)
    assert 0.68 - rounding <= singular_values.min() and singular_values.max() <= 1.21 + rounding


def matrix_with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    u, _ = torch.linalg.qr(torch.randn(rows, len(values)))
    v, _ = torch.linalg.qr(torch.randn(columns, len(values)))
    return (u * values) @ v.T


@pytest.mark.parametrize(
    ("variant", "steps", "max_error"), [("jordan", 5, 0.53), ("polar_express", 5, 0.16), ("polar_express", 8, 1e-4)]
)
def test_singular_values_come_as_close_to_one_as_stated(variant, steps, max_error):
    rest = torch.logspace(-2.5, 0, 23)
    values = torch.cat((torch.tensor([1e-3]), rest * ((1 - 1e-6) / rest.square().sum()).sqrt()))  # their norm is 1
    x = matrix_with_singular_values(values, 64, 32)
    result = torch.linalg.svdvals(orthogonalize(x[None], steps, torch.float32, variant=variant)[0])[:24]
    assert (result - 1).abs().max() < max_error
    assert len(newton_schulz_coefficients(variant, steps)) == steps


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_torch_muon(shape, weight_decay):
    start = torch.randn(shape)
    reference = start.clone().requires_grad_()
    torch_muon = torch.optim.Muon(
        [reference],
        lr=0.02,
        weight_decay=weight_decay,
        momentum=0.95,
        nesterov=True,
        ns_coefficients=JORDAN_COEFFICIENTS,
        ns_steps=5,
    )
    parameter, momentum_buffer = start.clone()[None], torch.zeros(1, *shape)
    for _ in range(8):
        gradient = torch.randn(shape)
        reference.grad = gradient.clone()
        torch_muon.step()
        settings = MuonSettings(weight_decay=weight_decay)
        parameter, momentum_buffer = muon(parameter, gradient[None], momentum_buffer, settings)
        torch.testing.assert_close(parameter[0], reference.detach(), rtol=0, atol=1e-4)
    expected = torch_muon.state[reference]["momentum_buffer"]
    torch.testing.assert_close(momentum_buffer[0], expected, rtol=1e-6, atol=1e-6)
    assert (parameter[0] - start).abs().mean() > 1e-3


def test_muon_updates_a_stack_like_each_matrix_alone():
    parameters, gradients, momentum_buffer = torch.randn(3, 4, 16, 8).unbind(1)[0:3]
    stack, new_buffer = muon(parameters, gradients, momentum_buffer, MuonSettings())
    for i in range(3):
        part = slice(i, i + 1)
        alone, _ = muon(parameters[part], gradients[part], momentum_buffer[part], MuonSettings())
        torch.testing.assert_close(stack[part], alone, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(new_buffer, momentum_buffer * 0.95 + gradients * 0.05)


@pytest.mark.parametrize("exp_avg_sq_row", [None, torch.ones(2, 16)])
@pytest.mark.parametrize("cautious", [False, True])
def test_muon_does_not_move_a_matrix_whose_gradient_is_zero(exp_avg_sq_row, cautious):
    """Its momentum, however small, would be normalized to a whole step; it decays, and so do the weights."""
    parameters = torch.randn(2, 16, 8)
    gradients, momentum = torch.randn(2, 2, 16, 8).unbind()
    gradients[1] = 0
    moved, buffer = parameters.clone(), 1e-3 * momentum
    rows = exp_avg_sq_row if exp_avg_sq_row is None else exp_avg_sq_row.clone()
    lr, settings = torch.tensor(0.02), replace(FP32, cautious=cautious)
    muon_(moved.unbind(), gradients.clone(), buffer, lr, settings, exp_avg_sq_row=rows)
    assert torch.equal(moved[1], parameters[1]) and not torch.equal(moved[0], parameters[0])
    torch.testing.assert_close(buffer[1], 0.95e-3 * momentum[1])
    muon_(moved.unbind(), gradients.clone(), buffer, lr, replace(FP32, weight_decay=0.5))
    torch.testing.assert_close(moved[1], 0.99 * parameters[1])


def test_normalized_rows_have_one_norm_and_the_matrix_keeps_its_norm():
    x = torch.randn(2, 8, 16) * torch.logspace(-2, 1, 8)[:, None]
    normalized, exp_avg_sq_row = x.clone(), torch.zeros(2, 8)
    normalize_rows_(normalized, exp_avg_sq_row)
    torch.testing.assert_close(normalized.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    row_norms = normalized.norm(dim=-1)
    torch.testing.assert_close(row_norms, row_norms.mean(1, keepdim=True).expand_as(row_norms), rtol=1e-3, atol=0)
    torch.testing.assert_close(exp_avg_sq_row, 0.05 * x.square().mean(-1))
    torch.testing.assert_close(normalized / normalized.norm(dim=-1, keepdim=True), x / x.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_muon_eq_ignores_the_scale_of_rows_and_muon_plus_makes_them_equally_long(shape):
    """MuonEq does not see the scale of rows; Muon+ makes rows equally long and keeps the matrix's norm."""
    gradient, scales = torch.randn(2, *shape), torch.rand(2, shape[0], 1) * 9 + 0.1
    plain, scaled = (
        muon_direction_(g.clone(), torch.zeros_like(g), replace(FP32, equilibrate=True))
        for g in (gradient, gradient * scales)
    )
    torch.testing.assert_close(plain, scaled)
    without = muon_direction_(gradient * scales, torch.zeros(2, *shape), FP32)
    assert not torch.allclose(without, scaled, atol=0.05)
    update = gradient.clone()
    update[1, 2] = 0
    lengths = normalize_lines_(update.clone()).norm(dim=-1)
    torch.testing.assert_close(lengths[0], lengths[0, :1].expand_as(lengths[0]))
    assert lengths[1, 2] == 0
    torch.testing.assert_close(normalize_lines_(update.clone()).norm(dim=(-2, -1)), update.norm(dim=(-2, -1)))


def test_cautious_muon_decays_only_values_that_the_update_moves_nearer_to_zero():
    start = torch.randn(6, 5)
    gradient = torch.randn(1, 6, 5)

    def update(weight_decay: float, cautious: bool) -> torch.Tensor:
        parameter = start.clone()
        settings = replace(FP32, momentum=0.9, weight_decay=weight_decay, cautious=cautious)
        muon_([parameter], gradient.clone(), torch.zeros(1, 6, 5), torch.tensor(0.1), settings)
        return parameter

    undecayed, decayed, cautious = update(0.0, False), update(0.5, False), update(0.5, True)
    nearer = (start - undecayed) * start >= 0
    assert nearer.any() and not nearer.all()
    torch.testing.assert_close(cautious[nearer], decayed[nearer])
    torch.testing.assert_close(cautious[~nearer], undecayed[~nearer])


def test_cautious_adamw_decays_only_values_that_the_update_moves_nearer_to_zero():
    parameter, gradient = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
    zero, step, lr = torch.zeros(2), torch.tensor(1.0), torch.tensor(0.1)
    updated, _, _ = adamw(parameter, gradient, zero, zero, step, lr, (0.9, 0.99), 1e-8, 0.5, True)
    torch.testing.assert_close(updated, torch.tensor([1.0 * 0.95 - 0.1, -1.0 - 0.1]))
