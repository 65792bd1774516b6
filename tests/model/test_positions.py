"""Rotary and learned positions: rotations as complex numbers, and scores that depend on distances only."""

from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.positions import (
    LearnedPositions,
    RotaryPositions,
    apply_rotary,
    make_positions,
    make_rotary_table,
)

CONFIG = ModelConfig(vocab_size=99, depth=1, width=32, heads=4, kv_heads=4, context=64)
D = CONFIG.head_width


@pytest.mark.parametrize("direction", (1, -1))
def test_each_pair_is_rotated_by_its_own_angle(direction):
    config = replace(CONFIG, rope_direction=direction)
    x = torch.randn(2, 4, 64, D, generator=torch.Generator().manual_seed(0))
    pairs = torch.complex(x[..., : D // 2], x[..., D // 2 :]).to(torch.complex128)
    times = torch.arange(64, dtype=torch.float64)[:, None]
    frequencies = config.rope_base ** (-2 * torch.arange(D // 2, dtype=torch.float64) / D)
    turned = pairs * torch.polar(torch.ones(64, D // 2, dtype=torch.float64), direction * times * frequencies)
    found = apply_rotary(x, make_rotary_table(config)).double()
    assert torch.allclose(found, torch.cat((turned.real, turned.imag), -1), atol=1e-4)


def test_scores_depend_on_the_distance_only():
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 1, D, generator=generator).expand(1, 1, 64, D) for _ in range(2))
    rotary = make_rotary_table(CONFIG)
    scores = (apply_rotary(q, rotary) @ apply_rotary(k, rotary).mT)[0, 0]  # (T, T)
    for distance in (0, 1, 7, 40):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


def test_positions_of_rows_select_rows_of_the_table():
    positions, x = RotaryPositions(CONFIG), torch.zeros(2, 3, 32)
    rows = torch.tensor([[0, 1, 2], [9, 30, 63]])
    same, rotary = positions(x, rows)
    assert same is x and rotary is not None and rotary[0].shape == (2, 1, 3, D // 2)
    assert torch.equal(rotary[1][1, 0, 2], make_rotary_table(CONFIG)[1][63])
    assert torch.equal(positions(x, slice(4, 7))[1][0][0, 0], make_rotary_table(CONFIG)[0][4:7])
    assert not list(positions.parameters()) and not positions.state_dict()


def test_learned_positions_are_added_to_the_embedding():
    positions = make_positions(replace(CONFIG, positions="learned"))
    assert isinstance(positions, LearnedPositions)
    positions.weight.data = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    x = torch.ones(1, 2, 32)
    added, rotary = positions(x, torch.tensor([[5, 60]]))
    assert rotary is None and torch.equal(added[0], 1 + positions.weight[[5, 60]])
