"""Norms against their definitions, written out in double precision."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.norm import LayerNorm, RMSNorm, WeightedRMSNorm, make_norm, rms_norm


def test_rms_norm_is_x_over_its_root_mean_square():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    root = (12.5 + 1e-6) ** 0.5  # of (9 + 16) / 2
    assert torch.allclose(rms_norm(x, 1e-6), torch.tensor([[3 / root, 4 / root], [0.0, 0.0]]))
    assert torch.allclose(rms_norm(1000 * x, 1e-6)[0], rms_norm(x, 1e-6)[0], rtol=1e-5)


def test_rms_norm_is_computed_in_fp32_and_returned_in_the_dtype_of_x():
    x = torch.full((1, 4096), 300.0, dtype=torch.bfloat16)  # the sum of squares exceeds what bf16 adds exactly
    assert rms_norm(x, 0.0).dtype == torch.bfloat16 and torch.equal(rms_norm(x, 0.0), torch.ones_like(x))


def test_a_weight_multiplies_after_the_rounding():
    norm = WeightedRMSNorm(8, 1e-5)
    norm.weight.data = torch.linspace(0.5, 2, 8)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(norm(x), rms_norm(x, 1e-5) * norm.weight.bfloat16())


def test_layer_norm_subtracts_the_mean_and_divides_by_the_biased_standard_deviation():
    norm = LayerNorm(6, 1e-5)
    norm.weight.data, norm.bias.data = torch.arange(1.0, 7), torch.arange(6.0)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2
    wide = x.double()
    variance = (wide - wide.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    expected = (wide - wide.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt() * torch.arange(1.0, 7) + torch.arange(6)
    assert torch.allclose(norm(x).double(), expected, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("fledgling", RMSNorm), ("llama", WeightedRMSNorm), ("gpt2", LayerNorm)])
def test_each_family_has_its_norm(family, kind):
    assert type(make_norm(ModelConfig(99, 1, 32, 2, 2, 16, family=family))) is kind
