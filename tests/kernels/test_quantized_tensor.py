"""A quantized tensor multiplies like its dequantized matrix, with and without native kernels, and is a tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fledgling.kernels import native
from fledgling.kernels.format import DEFAULT_GROUP_SIZES, dequantize_matrix
from fledgling.kernels.quantized_tensor import QuantizedTensor
from tests.kernels.matrices import make_matrix, quantize

pytestmark = pytest.mark.usefixtures("seeded")
BITS = pytest.mark.parametrize("bits", [8, 4])


@BITS
@pytest.mark.parametrize("rows", [1, 2, 7, 13, native.MAX_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_dequantized_matrix(bits, rows, bias):
    linear = nn.Linear(192, 42, bias=bias).bfloat16()
    packed = quantize(linear.weight, bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
    x = make_matrix(rows, 192).bfloat16()
    with torch.inference_mode():
        result = F.linear(x[None], packed, linear.bias)
        exact = dequantize_matrix(packed.values, packed.scales, bits, torch.float64)
        exact = F.linear(x[None].double(), exact, linear.bias.double() if bias else None)
    assert result.shape == (1, rows, 42) and result.dtype == torch.bfloat16
    assert (result.double() - exact).abs().max() <= 2**-7 * exact.abs().max()


@BITS
def test_without_a_compiler_the_result_is_the_same(bits, monkeypatch):
    compiled = quantize(make_matrix(40, 192), bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
    whole, x = compiled.dequantize(), make_matrix(2, 192, 1).bfloat16()
    expected = F.linear(x, compiled).float()
    monkeypatch.setenv(native.ENV_SWITCH, "0")
    native.load_native_library.cache_clear()
    try:
        plain = quantize(make_matrix(40, 192), bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
        assert plain.matrix is None and torch.equal(plain.dequantize(), whole)
        result = F.linear(x, plain).float()
    finally:
        native.load_native_library.cache_clear()
    assert (result - expected).abs().max() < 2**-6 * expected.abs().max()


@BITS
def test_native_and_plain_dequantization_are_equal(bits):
    packed = quantize(make_matrix(7, 192), bits, DEFAULT_GROUP_SIZES[bits], torch.bfloat16)
    exact = dequantize_matrix(packed.values, packed.scales, bits, torch.bfloat16)
    assert torch.equal(packed.dequantize(), exact) and packed.dequantize(torch.float32).dtype == torch.float32


@BITS
def test_a_quantized_tensor_is_a_tensor_to_other_code(bits):
    packed = quantize(make_matrix(10, 128), bits, 64, torch.float32)
    whole, index = packed.dequantize(), torch.tensor([[3, 0], [9, 3]])
    assert packed.shape == (10, 128) and packed.numel() == 1280 and packed.packed_bytes == 1280 * bits // 8 + 40
    assert torch.equal(F.embedding(index, packed), whole[index])
    assert torch.equal(torch.ones(2, 128) @ packed.T, torch.ones(2, 128) @ whole.T)
    moved = nn.Parameter(packed, requires_grad=False).detach().to(torch.bfloat16)
    assert isinstance(moved, QuantizedTensor) and moved.dtype == torch.bfloat16
    assert torch.equal(moved.values, packed.values)
    with torch.inference_mode():  # where PyTorch dispatches differently
        assert packed.to(torch.float32) is packed and isinstance(packed.to(torch.bfloat16), QuantizedTensor)
