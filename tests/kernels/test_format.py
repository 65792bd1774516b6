"""The errors of 8 and 4 bits, and what the format rejects."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.kernels.format import (
    LEVELS_4BIT,
    check_columns,
    check_quantization,
    dequantize_matrix,
    quantize_matrix,
)
from tests.kernels.matrices import make_matrix

BITS = pytest.mark.parametrize("bits", [8, 4])


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([32, 64]), st.floats(1e-6, 1e4), st.integers(0, 99))
def test_the_error_of_eight_bits_is_at_most_half_a_scale(rows, groups, group, size, seed):
    weight = make_matrix(rows, groups * group, seed) * size
    values, scales = quantize_matrix(weight, 8, group)
    error = (dequantize_matrix(values, scales, 8, torch.float32) - weight).view(rows, groups, group).abs().amax(2)
    assert (error <= 0.5001 * scales.float() + 2**-9 * 127 * scales.float()).all()
    assert values.dtype == torch.int8 and scales.shape == (rows, groups)


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([32, 64]), st.floats(1e-6, 1e4), st.integers(0, 99))
def test_values_of_four_bits_are_the_nearest_levels(rows, groups, group, size, seed):
    weight = make_matrix(rows, groups * 64, seed) * size
    values, scales = quantize_matrix(weight, 4, group)
    restored = dequantize_matrix(values, scales, 4, torch.float32)
    parts = restored.view(rows, -1, group) / scales.float()[:, :, None]
    assert (parts[..., None] - torch.tensor(LEVELS_4BIT).float()).abs().amin(-1).max() < 1e-4
    assert values.dtype == torch.uint8 and values.shape == (rows, weight.shape[1] // 2)
    nearest = (
        ((weight.view(rows, -1, group) / scales.float()[:, :, None])[..., None] - torch.tensor(LEVELS_4BIT))
        .abs()
        .amin(-1)
    )
    error = ((restored - weight).view(rows, -1, group) / scales.float()[:, :, None]).abs()
    assert (error - nearest).abs().max() < 1e-3


def test_four_bits_have_a_smaller_error_than_even_levels():
    weight = make_matrix(64, 1024)
    grouped = weight.view(-1, 32)
    step = grouped.abs().amax(1, keepdim=True) / 8
    even = ((grouped / step).round().clamp(-8, 7) * step - grouped).square().mean().sqrt()
    error = (dequantize_matrix(*quantize_matrix(weight, 4, 32), 4, torch.float32) - weight).square().mean().sqrt()
    assert error < 0.079 < 0.085 < even


@BITS
def test_zeros_stay_zeros(bits):
    values, scales = quantize_matrix(torch.zeros(3, 128), bits, 64)
    assert torch.equal(dequantize_matrix(values, scales, bits, torch.float32), torch.zeros(3, 128))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, 32), "--bits 3: expected 8 or 4"), ((8, 48), "--group-size 48"), ((4, 16), "--group-size 16")],
)
def test_unsupported_bits_and_group_sizes_are_rejected(arguments, message):
    with pytest.raises(UserError, match=message):
        check_quantization(*arguments)


def test_rows_that_are_not_whole_groups_are_rejected():
    with pytest.raises(UserError, match="fc has 96 columns, expected a multiple of 64"):
        check_columns("fc", 96, 4, 32)
    check_columns("fc", 96, 8, 32)
