"""One product of several matrices, and a weight that is cast once, are what single products and casts are."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.config import ModelConfig, UserError
from fledgling.model import fp8, linear
from fledgling.model.linear import Linear, apply_linear, apply_linears, cast_weights
from fledgling.model.transformer import Transformer


@pytest.mark.parametrize("bias", [False, True])
def test_several_layers_on_a_cpu_are_the_layers_one_by_one(bias):
    torch.manual_seed(0)
    layers, x = [Linear(8, width, bias) for width in (8, 4, 4)], torch.randn(3, 5, 8)
    for found, layer in zip(apply_linears(x, layers), layers, strict=True):
        assert torch.equal(found, apply_linear(x, layer)) and torch.equal(found, layer(x))


@pytest.mark.parametrize("scaled", [False, True])
def test_one_product_of_several_layers_has_their_results_and_gradients(scaled, monkeypatch):
    torch.manual_seed(0)
    layers, x = [Linear(8, width, width == 4) for width in (8, 4, 4)], torch.randn(3, 5, 8)
    scale = torch.rand(3, 5, 1) if scaled else None
    monkeypatch.setattr(linear, "joins_products", lambda x: True)
    joined = apply_linears(x, layers, scale)
    for found, layer in zip(joined, layers, strict=True):
        expected = apply_linear(x, layer, scale)
        torch.testing.assert_close(found, expected)
        pair = (torch.autograd.grad(y.square().sum(), layer.weight, retain_graph=True)[0] for y in (found, expected))
        torch.testing.assert_close(*pair)


def test_a_cast_made_once_gives_the_bits_of_a_cast_at_every_use():
    torch.manual_seed(0)
    layer, x = Linear(8, 4, bias=False), torch.randn(3, 8).bfloat16()
    with cast_weights(layer, torch.bfloat16):
        found = [apply_linear(x, layer) for _ in range(2)]
        assert layer.weight_in(torch.bfloat16).data_ptr() == layer.weight_in(torch.bfloat16).data_ptr()
    expected = [F.linear(x, layer.weight.to(torch.bfloat16)) for _ in range(2)]
    assert layer.cast is None and all(map(torch.equal, found, expected))
    grads = [
        torch.autograd.grad(sum(y.float().square().sum() for y in pair), layer.weight)[0] for pair in (found, expected)
    ]
    assert torch.equal(*grads) and grads[0].dtype == torch.float32


def make_model():
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(vocab_size=32, depth=2, width=64, heads=2, kv_heads=2, context=16, preset="nanochat-2025"),
        torch.bfloat16,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 8)
    return model


def test_fp8_rounds_products_in_training_and_not_in_evaluation():
    pytest.importorskip("torchao")
    plain, rounded, tokens = make_model(), make_model(), torch.randint(32, (2, 16))
    names = [name for name, _ in plain.named_parameters()]
    fp8.use_fp8(rounded.blocks, emulate=True)
    assert names == [name for name, _ in rounded.named_parameters()]
    with torch.no_grad():
        assert torch.equal(plain(tokens), rounded(tokens))
    losses, grads = [], []
    for model in (plain, rounded):
        losses.append(model.compute_logits(model(tokens)).square().mean())
        grads.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.0)
    for one, other in zip(*grads, strict=True):
        assert other.dtype == torch.float32 and float((one - other).norm() / one.norm()) < 0.2


def test_fp8_of_sizes_that_the_kernels_lack_is_one_line():
    pytest.importorskip("torchao")
    with pytest.raises(UserError, match="a product of 8 x 4; expected multiples of 16"):
        fp8.use_fp8(torch.nn.Sequential(Linear(8, 4)), emulate=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_recompute_have_the_same_loss_and_gradients(dtype):
    tokens, found = torch.randint(32, (2, 16)), []
    for recompute in (False, True):
        model = make_model()
        model.compute_dtype, model.recompute = dtype, recompute
        loss = model.compute_logits(model(tokens)).square().mean()
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert all(map(torch.equal, *found))
