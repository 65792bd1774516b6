"""What a matrix loses in 8 and 4 bits, what memory it takes, and that packed products are products."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fledgling.config import UserError
from fledgling.kernels import native
from fledgling.kernels.format import (
    DEFAULT_GROUP_SIZES,
    LEVELS_4BIT,
    check_columns,
    check_quantization,
    dequantize_matrix,
    quantize_matrix,
)
from fledgling.kernels.quantized_tensor import QuantizedTensor

BITS = pytest.mark.parametrize("bits", [8, 4])


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([32, 64]), st.floats(1e-6, 1e4), st.integers(0, 99))
def test_eight_bits_are_off_by_half_a_scale_at_most(rows, groups, group, size, seed):
    weight = matrix(rows, groups * group, seed) * size
    values, scales = quantize_matrix(weight, 8, group)
    off = (dequantize_matrix(values, scales, 8, torch.float32) - weight).view(rows, groups, group).abs().amax(2)
    assert (off <= 0.5001 * scales.float() + 2**-9 * 127 * scales.float()).all()
    assert values.dtype == torch.int8 and scales.shape == (rows, groups)


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([32, 64]), st.floats(1e-6, 1e4), st.integers(0, 99))
def test_four_bits_are_the_nearest_levels(rows, groups, group, size, seed):
    weight = matrix(rows, groups * 64, seed) * size
    values, scales = quantize_matrix(weight, 4, group)
    back = dequantize_matrix(values, scales, 4, torch.float32)
    parts = back.view(rows, -1, group) / scales.float()[:, :, None]
    assert (parts[..., None] - torch.tensor(LEVELS_4BIT).float()).abs().amin(-1).max() < 1e-4
    assert values.dtype == torch.uint8 and values.shape == (rows, weight.shape[1] // 2)
    nearest = (
        ((weight.view(rows, -1, group) / scales.float()[:, :, None])[..., None] - torch.tensor(LEVELS_4BIT))
        .abs()
        .amin(-1)
    )
    off = ((back - weight).view(rows, -1, group) / scales.float()[:, :, None]).abs()
    assert (off - nearest).abs().max() < 1e-3  # of the levels, the nearest


def test_four_bits_lose_less_than_even_levels_do():
    weight = matrix(64, 1024)
    grouped = weight.view(-1, 32)
    step = grouped.abs().amax(1, keepdim=True) / 8
    even = ((grouped / step).round().clamp(-8, 7) * step - grouped).square().mean().sqrt()
    lost = (dequantize_matrix(*quantize_matrix(weight, 4, 32), 4, torch.float32) - weight).square().mean().sqrt()
    assert lost < 0.079 < 0.085 < even


@BITS
def test_zeros_stay_zeros(bits):
    values, scales = quantize_matrix(torch.zeros(3, 128), bits, 64)
    assert torch.equal(dequantize_matrix(values, scales, bits, torch.float32), torch.zeros(3, 128))


@pytest.mark.parametrize(
    ("given", "told"), [((3, 32), "--bits 3: expected 8 or 4"), ((8, 48), "--group 48"), ((4, 16), "--group 16")]
)
def test_what_cannot_be_is_refused(given, told):
    with pytest.raises(UserError, match=told):
        check_quantization(*given)


def test_rows_that_are_no_whole_groups_are_refused():
    with pytest.raises(UserError, match="fc has 96 columns, expected a multiple of 64"):
        check_columns("fc", 96, 4, 32)
    check_columns("fc", 96, 8, 32)


@BITS
@pytest.mark.parametrize("rows", [1, 2, 7, 13, native.MAX_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product_of_the_dequantized(bits, rows, bias):
    linear = nn.Linear(192, 42, bias=bias).bfloat16()
    packed = QuantizedTensor.from_weight(linear.weight, bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
    x = matrix(rows, 192).bfloat16()
    with torch.inference_mode():
        got = F.linear(x[None], packed, linear.bias)
        exact = dequantize_matrix(packed.values, packed.scales, bits, torch.float64)
        exact = F.linear(x[None].double(), exact, linear.bias.double() if bias else None)
    assert got.shape == (1, rows, 42) and got.dtype == torch.bfloat16
    assert (got.double() - exact).abs().max() <= 2**-7 * exact.abs().max()


@BITS
def test_native_sums_are_fp32(bits):
    if native.load_library() is None:
        pytest.skip("no compiler, or no AVX-512 with bf16")
    packed = QuantizedTensor.from_weight(matrix(9, 3072), bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
    x = matrix(3, 3072, 1).bfloat16()
    exact = x.double() @ dequantize_matrix(packed.values, packed.scales, bits, torch.float64).T
    assert (native.multiply_matrix(x, packed.matrix).double() - exact).abs().max() < 1e-5 * exact.abs().max()


@BITS
def test_without_a_compiler_it_is_the_same(bits, monkeypatch):
    there = QuantizedTensor.from_weight(matrix(40, 192), bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
    whole, x = there.dequantize(), matrix(2, 192, 1).bfloat16()
    ours = F.linear(x, there).float()
    monkeypatch.setenv(native.ENV_SWITCH, "0")
    native.load_library.cache_clear()
    try:
        here = QuantizedTensor.from_weight(matrix(40, 192), bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
        assert here.matrix is None and torch.equal(here.dequantize(), whole)
        theirs = F.linear(x, here).float()
    finally:
        native.load_library.cache_clear()
    assert (theirs - ours).abs().max() < 2**-6 * ours.abs().max()


@BITS
def test_a_matrix_made_whole_is_the_dequantized(bits):
    packed = QuantizedTensor.from_weight(matrix(7, 192), bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
    exact = dequantize_matrix(packed.values, packed.scales, bits, torch.bfloat16)
    assert torch.equal(packed.dequantize(), exact) and packed.dequantize(torch.float32).dtype == torch.float32


@BITS
def test_a_quantized_tensor_is_a_tensor_to_whoever_asks(bits):
    packed = QuantizedTensor.from_weight(matrix(10, 128), bits, 64, torch.float32)
    whole, index = packed.dequantize(), torch.tensor([[3, 0], [9, 3]])
    assert packed.shape == (10, 128) and packed.numel() == 1280 and packed.packed_bytes == 1280 * bits // 8 + 40
    assert torch.equal(F.embedding(index, packed), whole[index])
    assert torch.equal(torch.ones(2, 128) @ packed.T, torch.ones(2, 128) @ whole.T)
    moved = nn.Parameter(packed, requires_grad=False).detach().to(torch.bfloat16)
    assert isinstance(moved, QuantizedTensor) and moved.dtype == torch.bfloat16
    assert torch.equal(moved.values, packed.values)
    with torch.inference_mode():  # where the library asks differently
        assert packed.to(torch.float32) is packed and isinstance(packed.to(torch.bfloat16), QuantizedTensor)
