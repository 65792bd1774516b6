"""A fresh model with residual scalars computes what the model without them computes."""

import torch

from fledgling.config import ModelConfig
from fledgling.model.transformer import Transformer

SIZES = {"vocab_size": 60, "depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "context": 48}


def test_initial_residual_scalars_change_nothing():
    plain, scaled = (Transformer(ModelConfig(family="llama", **SIZES, residual_scalars=on)) for on in (False, True))
    for model in (plain, scaled):
        model.initialize(3)
    tokens = torch.arange(48)[None]
    with torch.no_grad():
        assert torch.equal(plain(tokens), scaled(tokens))
        scaled.blocks[1].residual.weight[1] = 0.5
        assert not torch.allclose(plain(tokens), scaled(tokens))
