"""Packed weights compute the product, follow the model when it is trained, and take part in products only."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fledgling.config import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels.packed_weight import PackedWeight, can_pack_bf16, pack_linear_weights
from fledgling.model.cache import CacheRow
from fledgling.model.transformer import Transformer

pytestmark = [
    pytest.mark.skipif(
        not can_pack_bf16(torch.device("cpu"), torch.bfloat16), reason="this processor does not multiply bf16"
    ),
    pytest.mark.usefixtures("seeded"),
]
CONTEXT = 96


@pytest.fixture
def model(tokenizer) -> Transformer:
    model = Transformer(ModelConfig(tokenizer.vocab_size, 2, 64, 4, 2, CONTEXT), torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


@pytest.mark.parametrize("rows", [1, 2, 8, 65])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product(rows, bias):
    linear = nn.Linear(96, 40, bias=bias).bfloat16()
    x = torch.randn(3, rows, 96).bfloat16()
    with torch.inference_mode():
        packed = F.linear(x, PackedWeight(linear.weight), linear.bias)
        exact = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    assert packed.shape == (3, rows, 40) and packed.dtype == torch.bfloat16
    assert (packed.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_the_engine_packs_every_linear_layer_and_computes_what_the_model_does(model, tokenizer):
    engine = Engine(model, tokenizer)
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(engine.runner.backend.replaced_weights) == linears and len(linears) == 2 * 6 + 1
    tokens = [[5, 9, 77, 30, 2, 41]]
    with torch.inference_mode():
        result = engine.model.compute_logits(
            engine.runner.extend_cache(engine.runner.new_cache(), [CacheRow()], tokens)
        )[:, -1]
        expected = model.compute_logits(model(torch.tensor(tokens)))[:, -1]
    assert (result - expected).abs().max() < 0.05 * expected.std()
    assert all(isinstance(module.weight, nn.Parameter) for module in model.modules() if isinstance(module, nn.Linear))


def test_packed_weights_follow_the_model(model, tokenizer):
    engine, sampling = Engine(model, tokenizer), SamplingParams(temperature=0.0, max_new_tokens=8)
    before = engine.generate([[5, 9, 77]], sampling)[0].tokens
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7).add_(0.01)
    after = engine.generate([[5, 9, 77]], sampling)[0].tokens
    assert before != after == Engine(model, tokenizer).generate([[5, 9, 77]], sampling)[0].tokens


def test_a_packed_weight_takes_part_in_products_only(model):
    weight = next(iter(pack_linear_weights(model).values()))
    with pytest.raises(AssertionError, match="does not take part in add"):
        torch.add(weight, torch.ones(1))
    with pytest.raises(AssertionError, match="packed as"):
        weight.to(torch.float32)
