"""Feed-forward parts against their formulas, and a deferred scale against scaling the input."""

from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.feed_forward import (
    FeedForward,
    GatedFeedForward,
    apply_linear,
    gelu_tanh,
    make_feed_forward,
    relu2,
)

CONFIG = ModelConfig(vocab_size=99, depth=1, width=16, heads=2, kv_heads=2, context=8, intermediate_size=24)


def make(activation: str, bias: bool) -> FeedForward | GatedFeedForward:
    torch.manual_seed(0)
    return make_feed_forward(replace(CONFIG, activation=activation, mlp_bias=bias)).double()


def test_activations_have_their_values():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64)
    assert torch.equal(relu2(x), torch.tensor([0.0, 0.0, 0.0, 0.25, 9.0], dtype=torch.float64))
    exact = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    assert (gelu_tanh(x) - exact).abs().max() < 5e-4


@pytest.mark.parametrize("bias", (False, True))
def test_the_feed_forward_is_two_matrices_around_an_activation(bias):
    part, x = make("relu2", bias), torch.randn(2, 3, 16, dtype=torch.float64)
    assert isinstance(part, FeedForward) and part.fc1.weight.shape == (24, 16) and part.fc2.weight.shape == (16, 24)
    between = x @ part.fc1.weight.T + (part.fc1.bias if bias else 0)
    expected = between.clamp(min=0) ** 2 @ part.fc2.weight.T + (part.fc2.bias if bias else 0)
    assert torch.allclose(part(x), expected)
    assert torch.allclose(part.compute_activations(x), between.clamp(min=0) ** 2)


def test_the_gated_feed_forward_is_three_matrices():
    part, x = make("swiglu", False), torch.randn(2, 3, 16, dtype=torch.float64)
    assert isinstance(part, GatedFeedForward) and part.output_projection is part.down_proj
    gate = x @ part.gate_proj.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * (x @ part.up_proj.weight.T)) @ part.down_proj.weight.T
    assert torch.allclose(part(x), expected)


@pytest.mark.parametrize("activation", ("relu2", "gelu", "swiglu"))
@pytest.mark.parametrize("bias", (False, True))
def test_a_deferred_scale_equals_scaling_the_input(activation, bias):
    part, x = make(activation, bias), torch.randn(2, 3, 16, dtype=torch.float64)
    scale = torch.rand(2, 3, 1, dtype=torch.float64) + 0.1
    assert torch.allclose(part(x, scale), part(scale * x))


def test_weights_are_cast_to_the_dtype_of_the_input():
    linear = torch.nn.Linear(4, 2)
    assert apply_linear(torch.randn(3, 4).bfloat16(), linear).dtype == torch.bfloat16
