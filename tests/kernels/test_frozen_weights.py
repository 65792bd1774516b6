"""Frozen matrices in 8 and 4 bits: NF4's published levels, the gradient of the product, and merged weights."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.config import AdapterConfig, ModelConfig, UserError
from fledgling.kernels.frozen_weights import (
    BITS,
    measure_rounding_error,
    quantize_blocks,
    quantize_weight,
    round_to_quantized,
)
from fledgling.kernels.nf4 import nf4_levels
from fledgling.model.adapter import attach_adapter, initialize_adapter, is_adapter_name, merge_adapter
from fledgling.model.transformer import Transformer

PUBLISHED = (-1.0, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0.0)  # arXiv 2305.14314, appendix E
PUBLISHED += (0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1.0)


def test_the_levels_of_nf4_are_the_published_ones():
    assert nf4_levels() == pytest.approx(PUBLISHED, abs=5e-6)


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.0065), ("int4", 0.085), ("nf4", 0.1)])
def test_a_product_has_the_gradient_of_the_dequantized_matrix(quantization, error):
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(96, 128, generator=draw), torch.randn(5, 128, generator=draw)
    packed = quantize_weight("w", weight, quantization, torch.float32)
    assert (packed.dequantize() - weight).norm() / weight.norm() < error
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = F.linear(one, packed), F.linear(other, packed.dequantize())
    torch.testing.assert_close(y, expected)
    (y**2).sum().backward(), (expected**2).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    assert torch.equal(packed.detach().to(torch.bfloat16).dequantize(), packed.dequantize(torch.bfloat16))


@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_fresh_adapter_is_the_identity_and_merges_onto_what_it_was_trained_on(quantization, method):
    config = ModelConfig(family="llama", vocab_size=50, depth=1, width=64, heads=2, context=16, intermediate_size=128)
    model, tokens = Transformer(config), torch.arange(12)[None]
    model.initialize(0)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = Transformer(config)
    rounded.load_state_dict(round_to_quantized(weights, config, quantization))
    quantize_blocks(model.requires_grad_(False), quantization)
    adapter = AdapterConfig(method, rank=2, quantization=quantization)
    attach_adapter(model, adapter, config)
    initialize_adapter(model, 0)
    given, merged_values = (
        torch.cat([each[f"{name}.weight"].flatten() for name in config.block_matrices()])
        for each in (weights, rounded.state_dict())
    )
    error = float((merged_values - given).norm() / given.norm())
    assert measure_rounding_error(model, weights) == pytest.approx(error, rel=1e-4) and 1e-3 < error < 0.2
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), rounded(tokens), rtol=1e-5, atol=1e-5)
        own = {name: value for name, value in model.named_parameters() if is_adapter_name(name)}
        for value in own.values():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        merged = Transformer(config)
        merged.load_state_dict(merge_adapter(rounded.state_dict(), adapter, own))
        torch.testing.assert_close(model(tokens), merged(tokens), rtol=1e-4, atol=1e-4)
    model(tokens).sum().backward()
    assert all(value.grad is not None for value in own.values())


def test_a_width_that_has_no_whole_groups_is_rejected():
    with pytest.raises(UserError, match=r"q has 40 columns, expected a multiple of 64 for 4 bits"):
        quantize_weight("q", torch.zeros(8, 40), "nf4", torch.float32)
