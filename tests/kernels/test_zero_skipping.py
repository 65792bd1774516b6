"""Columns that meet a zero are skipped, and the result does not change."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.config import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels import backend, zero_skipping
from fledgling.kernels.packed_weight import can_pack_bf16
from fledgling.kernels.zero_skipping import MAX_ACTIVE_SHARE, ZeroSkippingWeight, sum_active_rows
from fledgling.model.transformer import Transformer

CLOSE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}  # of the largest value


def make_model_with_zeros(share: float, activation: str = "relu2") -> Transformer:
    """A random model with at least this share of zero activations in every layer."""
    config = ModelConfig(
        family="fledgling",
        vocab_size=330,
        depth=2,
        width=64,
        heads=2,
        kv_heads=2,
        context=64,
        activation=activation,
    )
    model = Transformer(config)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2
    for block in model.blocks:
        block.mlp.input_projections[0].weight.data[: int(share * config.intermediate_size)] = 0
    return model


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("dtype", CLOSE)
def test_the_result_is_that_of_the_whole_product(dtype, share):
    draw = torch.Generator().manual_seed(1)
    whole = torch.randn(48, 256, generator=draw).to(dtype)
    hidden = torch.randn(1, 1, 256, generator=draw).relu().square().to(dtype)
    hidden[..., : int(share * 256)] = 0
    skipping = ZeroSkippingWeight(whole, whole)
    expected = F.linear(hidden.double(), whole.double())
    found = F.linear(hidden, skipping.to(dtype), None)
    assert found.dtype == dtype and found.shape == (1, 1, 48)
    assert (found - expected).abs().max() <= CLOSE[dtype] * expected.abs().max()
    skipping.copy_(2 * whole)
    assert (F.linear(hidden, skipping, torch.ones(48, dtype=dtype)) - 2 * expected - 1).abs().max() <= CLOSE[dtype] * (
        2 * expected.abs().max() + 1
    )


def test_only_rows_of_nonzero_activations_are_read():
    rows = torch.full((10, 4), float("nan"))
    rows[[2, 7]] = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    found = sum_active_rows(rows, torch.tensor([2, 7]), torch.tensor([2.0, 1.0]))
    assert found.tolist() == [7, 10, 13, 16]
    skipping = ZeroSkippingWeight(rows.T, torch.zeros(4, 10))
    hidden = torch.zeros(1, 10)
    hidden[0, [2, 7]] = torch.tensor([2.0, 1.0])
    assert F.linear(hidden, skipping).tolist() == [[7, 10, 13, 16]]
    hidden[0, :] = 1.0
    assert MAX_ACTIVE_SHARE[torch.float32] * 10 < 10 and F.linear(hidden, skipping).tolist() == [
        [0, 0, 0, 0]
    ]  # the whole one


@pytest.mark.parametrize("dtype", CLOSE)
def test_an_engine_that_skips_gives_the_same_answer_and_follows_the_weights(dtype, tokenizer, monkeypatch):
    if dtype == torch.bfloat16 and not can_pack_bf16(torch.device("cpu"), dtype):
        pytest.skip("no bf16 products on this processor")
    model = make_model_with_zeros(0.9)
    assert not any(
        isinstance(w, ZeroSkippingWeight)
        for w in Engine(model, tokenizer, skip_zeros=True).runner.backend.replaced_weights.values()
    )
    monkeypatch.setattr(zero_skipping, "MIN_WEIGHT_NUMEL", 0)
    monkeypatch.setattr(backend, "supports_decoding_step", lambda model: False)  # where there is no native step
    plain, skipping = Engine(model, tokenizer, dtype=dtype), Engine(model, tokenizer, dtype=dtype, skip_zeros=True)
    assert (
        len(
            [
                weight
                for weight in skipping.runner.backend.replaced_weights.values()
                if isinstance(weight, ZeroSkippingWeight)
            ]
        )
        == 2
    )
    prompt = [5, 9, 100, 31]
    for _ in range(2):
        first, other = (
            engine.generate([prompt], SamplingParams(temperature=0, max_new_tokens=20))[0]
            for engine in (plain, skipping)
        )
        if dtype == torch.float32:
            assert first.tokens == other.tokens
        same = next((i for i, (a, b) in enumerate(zip(first.tokens, other.tokens, strict=True)) if a != b), 20)
        gap = max(abs(a - b) for a, b in zip(first.logprobs[:same], other.logprobs[:same], strict=True)) if same else 0
        assert gap < (1e-4 if dtype == torch.float32 else 0.1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.flip(-1))


def test_other_activations_do_not_skip(tokenizer, monkeypatch):
    monkeypatch.setattr(zero_skipping, "MIN_WEIGHT_NUMEL", 0)
    assert not any(
        isinstance(weight, ZeroSkippingWeight)
        for weight in Engine(
            make_model_with_zeros(0.0, "gelu"), tokenizer, skip_zeros=True
        ).runner.backend.replaced_weights.values()
    )


@pytest.mark.parametrize("speedup", [2.0, 0.5])
def test_auto_skips_only_where_that_is_measured_to_be_faster(speedup, tokenizer, monkeypatch):
    monkeypatch.setattr(zero_skipping, "MIN_WEIGHT_NUMEL", 0)
    monkeypatch.setattr(backend, "measure_zero_skipping", lambda model, weights, tokens: speedup)
    model = make_model_with_zeros(0.9)
    engine = Engine(model, tokenizer, dtype=torch.float32, skip_zeros="auto")
    assert (len(engine.runner.backend.replaced_weights) == 2) == (speedup > 1)
    assert (engine.model is model) == (speedup < 1), "without skipping the weights are live"
    assert engine.runner.backend.skipping_speedup == speedup
    sampling = SamplingParams(temperature=0, max_new_tokens=20)
    answer, expected = (e.generate([[5, 9, 100]], sampling)[0] for e in (engine, Engine(model, tokenizer)))
    assert answer.tokens == expected.tokens
    assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_auto_measures_a_speedup_and_leaves_the_model_unchanged(tokenizer, monkeypatch):
    monkeypatch.setattr(zero_skipping, "MIN_WEIGHT_NUMEL", 0)
    model = make_model_with_zeros(0.9)
    engine = Engine(model, tokenizer, dtype=torch.float32, skip_zeros="auto")
    assert engine.runner.backend.skipping_speedup > 0
    assert all(type(block.mlp.fc2.weight) is torch.nn.Parameter for block in model.blocks)
    assert not any(block.mlp._forward_pre_hooks for block in [*model.blocks, *engine.model.blocks])


def test_auto_measures_nothing_where_nothing_can_be_skipped(tokenizer, monkeypatch):
    monkeypatch.setattr(zero_skipping, "MIN_WEIGHT_NUMEL", 0)
    model = make_model_with_zeros(0.0, "gelu")
    engine = Engine(model, tokenizer, dtype=torch.float32, skip_zeros="auto")
    assert engine.model is model and engine.runner.backend.skipping_speedup is None
