"""The backend that an engine gets, and that its weights follow the model's."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.kernels import backend, native, zero_skipping
from fledgling.kernels.backend import select_backend
from fledgling.kernels.packed_weight import PackedWeight, can_pack_bf16
from fledgling.kernels.zero_skipping import ZeroSkippingWeight
from fledgling.model.transformer import Transformer

CPU = torch.device("cpu")


@pytest.fixture
def model() -> Transformer:
    config = ModelConfig(family="fledgling", vocab_size=60, depth=2, width=64, heads=2, kv_heads=2, context=32)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def kinds_of(weights) -> set[type]:
    return {type(weight) for weight in weights.values()}


def test_weights_in_the_right_dtype_are_read_live(model):
    chosen = select_backend(model, CPU, torch.float32)
    assert chosen.model is model and chosen.native_step is None and not chosen.replaced_weights
    before = chosen.weights_version
    with torch.no_grad():
        model.head.weight.add_(1)
    assert chosen.weights_version != before


@pytest.mark.skipif(native.load_native_library() is None, reason="no native kernels: no compiler, or another processor")
def test_bf16_on_a_cpu_takes_the_native_step(model):
    chosen = select_backend(model, CPU, torch.bfloat16, skip_zeros=True)
    assert chosen.native_step is not None and chosen.model is not model and not chosen.replaced_weights


@pytest.mark.skipif(not can_pack_bf16(CPU, torch.bfloat16), reason="this processor does not multiply bf16")
def test_bf16_without_a_native_step_packs_every_linear_layer(model, monkeypatch):
    monkeypatch.setattr(backend, "supports_decoding_step", lambda model: False)
    chosen = select_backend(model, CPU, torch.bfloat16)
    assert chosen.native_step is None and kinds_of(chosen.replaced_weights) == {PackedWeight}
    assert len(chosen.replaced_weights) == 2 * 6 + 1


def test_skipping_is_on_request(model, monkeypatch):
    monkeypatch.setattr(zero_skipping, "MIN_WEIGHT_NUMEL", 0)
    chosen = select_backend(model, CPU, torch.float32, skip_zeros=True)
    assert chosen.model is not model and kinds_of(chosen.replaced_weights) == {ZeroSkippingWeight}
    assert len(chosen.replaced_weights) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_copy_has_the_model_s_weights_after_a_refresh(model, dtype):
    chosen = select_backend(model, CPU, dtype)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7).add_(0.01)
        stale = chosen.compute_logits(chosen.model(tokens))
        version = chosen.weights_version
        chosen.refresh()
        assert chosen.weights_version != version
        fresh = chosen.compute_logits(chosen.model(tokens))
        expected = select_backend(model, CPU, dtype)
        assert torch.equal(fresh, expected.compute_logits(expected.model(tokens))) and not torch.equal(fresh, stale)
