"""What else moves matrices: Polar Express, NorMuon's even rows, cautious decay."""

import pytest
import torch

from fledgling.optim.rules import adamw, muon_, newton_schulz_coefficients, normalize_rows_, orthogonalize

DRAW = torch.Generator().manual_seed(0)


def with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    u, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=DRAW))
    v, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=DRAW))
    return (u * values) @ v.T


@pytest.mark.parametrize(
    ("kind", "steps", "most"), [("jordan", 5, 0.53), ("polar_express", 5, 0.16), ("polar_express", 8, 1e-4)]
)
def test_singular_values_come_as_near_to_one_as_it_says(kind, steps, most):
    rest = torch.logspace(-2.5, 0, 23)
    values = torch.cat((torch.tensor([1e-3]), rest * ((1 - 1e-6) / rest.square().sum()).sqrt()))  # their norm is 1
    x = with_singular_values(values, 64, 32)
    found = torch.linalg.svdvals(orthogonalize(x[None], steps, torch.float32, variant=kind)[0])[:24]
    assert (found - 1).abs().max() < most
    assert len(newton_schulz_coefficients(kind, steps)) == steps


def test_even_rows_have_one_norm_and_the_matrix_keeps_its_own():
    x = torch.randn(2, 8, 16, generator=DRAW) * torch.logspace(-2, 1, 8)[:, None]
    even, variance = x.clone(), torch.zeros(2, 8)
    normalize_rows_(even, variance)
    torch.testing.assert_close(even.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    rows = even.norm(dim=-1)
    torch.testing.assert_close(rows, rows.mean(1, keepdim=True).expand_as(rows), rtol=1e-3, atol=0)
    torch.testing.assert_close(variance, 0.05 * x.square().mean(-1))
    torch.testing.assert_close(even / even.norm(dim=-1, keepdim=True), x / x.norm(dim=-1, keepdim=True))


def test_cautious_decay_spares_what_the_step_drives_away_from_zero():
    start = torch.randn(6, 5, generator=DRAW)
    gradient = torch.randn(1, 6, 5, generator=DRAW)

    def moved(decay: float, cautious: bool) -> torch.Tensor:
        parameter = start.clone()
        settings = (torch.tensor(0.1), 0.9, decay, 5, torch.float32)
        muon_([parameter], gradient.clone(), torch.zeros(1, 6, 5), *settings, cautious=cautious)
        return parameter

    still, all_decayed, some = moved(0.0, False), moved(0.5, False), moved(0.5, True)
    nearer = (start - still) * start >= 0
    assert nearer.any() and not nearer.all()
    torch.testing.assert_close(some[nearer], all_decayed[nearer])
    torch.testing.assert_close(some[~nearer], still[~nearer])


def test_cautious_adamw_too():
    parameter, gradient = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
    zero, step, rate = torch.zeros(2), torch.tensor(1.0), torch.tensor(0.1)
    found, _, _ = adamw(parameter, gradient, zero, zero, step, rate, (0.9, 0.99), 1e-8, 0.5, True)
    torch.testing.assert_close(found, torch.tensor([1.0 * 0.95 - 0.1, -1.0 - 0.1]))
