"""Quantized matrices as two matrices of 4 bits: the product of the dequantized matrix, by PyTorch's kernel."""

import pytest
import torch

from fledgling.kernels.device_matrix import can_pack, pack_device_matrix
from fledgling.kernels.format import LEVELS_4BIT, dequantize_matrix, quantize_matrix


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (8, 32), (8, 128), (4, 32), (4, 64)])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_product_is_that_of_the_dequantized_matrix(bits, group_size, rows):
    torch.manual_seed(0)
    values, scales = quantize_matrix(torch.randn(96, 256), bits, group_size)
    x = torch.randn(rows, 2, 256).bfloat16()
    expected = x.float() @ dequantize_matrix(values, scales, bits, torch.float32).T
    found = pack_device_matrix(values, scales, bits).multiply(x)
    assert found.shape == (rows, 2, 96) and found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 6e-3  # bf16 keeps 8 bits: 2e-3 a rounding


def test_every_level_is_kept():
    levels = torch.arange(-127, 128, dtype=torch.int32)
    assert torch.equal(16 * (levels >> 4) + (levels & 15), levels)
    values = torch.arange(-128, 128, dtype=torch.int8).clamp(min=-127).repeat(16, 1)  # (16, 256): every level once
    matrix = pack_device_matrix(values, torch.ones(16, 4, dtype=torch.bfloat16), 8)
    assert torch.equal(matrix.multiply(torch.eye(256).bfloat16())[:, 0].int(), values[0].int())
    assert set(LEVELS_4BIT) <= set(levels.tolist())


def test_sizes_that_the_kernel_does_not_take_are_not_packed():
    for rows, columns, group_size in ((12, 256, 64), (16, 256, 512), (16, 1024, 512)):
        values = torch.zeros(rows, columns, dtype=torch.int8)
        assert not can_pack(values, torch.ones(rows, max(1, columns // group_size)), 8)
    assert not can_pack(torch.zeros(16, 256, dtype=torch.int8), torch.ones(16, 4), 8)  # on a CPU native.py is faster
