"""The share of exact zeros in activations, counted by hand."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.data.batch import Batch
from fledgling.evals.sparsity import measure_activation_sparsity
from fledgling.model.transformer import Transformer

SIZES = {"vocab_size": 40, "depth": 3, "width": 16, "heads": 2, "kv_heads": 2, "context": 12}


@pytest.mark.parametrize("flash_norm", [False, True])
def test_zeros_are_counted_layer_by_layer(flash_norm):
    model = Transformer(ModelConfig(family="fledgling", **SIZES, flash_norm=flash_norm))
    model.initialize(0)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            block.mlp.fc1.weight[: 16 * layer] = 0  # of 64 hidden values: 0, 16, 32 are zero for any input
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(0))
    mean, *layers = measure_activation_sparsity(model, [Batch(tokens, tokens)])
    assert [one.name for one in layers] == ["zeros_layer_01", "zeros_layer_02", "zeros_layer_03"]
    assert mean.n == 24 and mean.value == pytest.approx(sum(one.value for one in layers) / 3)
    for layer, one in enumerate(layers):
        least = 16 * layer / 64
        assert least + (1 - least) * 0.3 < one.value < least + (1 - least) * 0.7  # of the others, about half
    assert not model.blocks[0].mlp._forward_pre_hooks


def test_gelu_has_none():
    model = Transformer(ModelConfig(family="fledgling", **SIZES, activation="gelu"))
    model.initialize(0)
    tokens = torch.arange(12)[None]
    assert measure_activation_sparsity(model, [Batch(tokens, tokens)])[0].value == 0
