"""An adapter is the identity when it is fresh, alone receives gradients, and merges into the weights exactly."""

import pytest
import torch

from fledgling.config import AdapterConfig, ModelConfig, UserError
from fledgling.model.adapter import attach_adapter, initialize_adapter, is_adapter_name, merge_adapter
from fledgling.model.logprob import cross_entropy_sum, target_logprobs
from fledgling.model.transformer import Transformer

METHODS = ("lora", "rslora", "dora")
TOKENS = torch.arange(24).view(2, 12)


def adapted(method: str, family: str = "fledgling", **fields) -> Transformer:
    config = ModelConfig(family=family, vocab_size=50, depth=2, width=32, heads=2, context=16, **fields)
    model = Transformer(config)
    model.initialize(0)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    attach_adapter(model, AdapterConfig(method, rank=3, alpha=6.0), config)
    initialize_adapter(model, 0)
    return model


def fill(model: Transformer) -> dict[str, torch.Tensor]:
    """Makes the adapter do something; returns its tensors."""
    draw, own = torch.Generator().manual_seed(2), {}
    for name, parameter in model.named_parameters():
        if is_adapter_name(name):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
            own[name] = parameter.data
    return own


def plain(model: Transformer, weights: dict[str, torch.Tensor]) -> Transformer:
    other = Transformer(model.config)
    other.load_state_dict({name: value for name, value in weights.items() if not is_adapter_name(name)})
    return other


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "fields"), [("fledgling", {"flash_norm": True}), ("gpt2", {}), ("llama", {})])
def test_a_new_adapter_changes_nothing_and_a_merged_one_computes_the_same(method, family, fields):
    model = adapted(method, family, **fields)
    base = plain(model, model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), base(TOKENS), rtol=1e-5, atol=1e-5)
        own = fill(model)
        merged = plain(model, merge_adapter(base.state_dict(), AdapterConfig(method, rank=3, alpha=6.0), own))
        assert (model(TOKENS) - base(TOKENS)).abs().max() > 0.01
        torch.testing.assert_close(model(TOKENS), merged(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_has_gradients_and_they_are_those_of_the_merged_weights(method):
    model = adapted(method)
    own = fill(model)
    hidden = model(TOKENS)
    loss = cross_entropy_sum(hidden, model.head.weight, TOKENS, 15.0, 0.0)
    loss = loss - target_logprobs(hidden, model.head.weight, TOKENS, 15.0, 0.0).sum()
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == own.keys()
    if method == "dora":
        return  # its gradient takes the lengths for constants
    merged = merge_adapter(model.state_dict(), AdapterConfig(method, rank=3, alpha=6.0), own)
    other = plain(model, merged)
    hidden = other(TOKENS)
    total = cross_entropy_sum(hidden, other.head.weight, TOKENS, 15.0, 0.0)
    (total - target_logprobs(hidden, other.head.weight, TOKENS, 15.0, 0.0).sum()).backward()
    layer = model.blocks[0].attention.q_proj
    expected = layer.adapter.scale * other.blocks[0].attention.q_proj.weight.grad @ layer.adapter.lora_A.T
    torch.testing.assert_close(layer.adapter.lora_B.grad, expected, rtol=1e-3, atol=1e-4)


def test_targets_are_matrices_of_the_blocks_by_last_or_whole_name():
    config = ModelConfig(vocab_size=50, depth=3, width=32, heads=2, context=16)
    chosen = AdapterConfig("lora", targets=("q_proj", "blocks.1.mlp.fc1")).select_matrices(config)
    assert list(chosen) == [
        *("blocks.0.attention.q_proj", "blocks.1.attention.q_proj", "blocks.1.mlp.fc1", "blocks.2.attention.q_proj")
    ]
    assert len(AdapterConfig("lora").select_matrices(config)) == 18
    with pytest.raises(UserError, match=r'adapter.targets: "gate_proj" is not a matrix .*fc1'):
        AdapterConfig("lora", targets=("gate_proj",)).select_matrices(config)
    longest = max(max(shape) for shape in config.block_matrices().values())
    assert len(AdapterConfig("lora", rank=longest).select_matrices(config)) == 18
    with pytest.raises(UserError, match=f"adapter.rank: got 4,611,686,018,427,387,904, expected at most {longest}"):
        AdapterConfig("lora", rank=2**62).select_matrices(config)
